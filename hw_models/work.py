"""Cost of one layer by a compute rule, without memory levels and clock."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Work:
    """Cycles and energy of one layer by a compute rule.

    Attributes:
        compute: cycles of arithmetic.
        memory: cycles of traffic that the rule models, such as that of tiles; they overlap with `compute`.
        memory_per_weight_byte: further such cycles for each stored byte of weights, whose number the rule does not know.
        fixed: cycles that overlap with nothing: set-up, filling, draining.
        energy_pj: energy that the rule models, such as that of its buffers.
    """

    compute: float
    memory: float = 0.0
    memory_per_weight_byte: float = 0.0
    fixed: float = 0.0
    energy_pj: float = 0.0

    @property
    def total(self) -> float:
        """Cycles from start to end, without the traffic of weights."""
        return max(self.compute, self.memory) + self.fixed
