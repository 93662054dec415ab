"""What a layer's time is made of."""

from dataclasses import dataclass
from typing import Literal

Bound = Literal["compute", "memory", "overhead"]


@dataclass(frozen=True)
class Cycles:
    """Cycles of one layer.

    `compute` and `memory` overlap; `fixed` (set-up, filling and draining) does not.
    """

    compute: float
    memory: float
    fixed: float

    @property
    def total(self) -> float:
        """Cycles from start to end."""
        return max(self.compute, self.memory) + self.fixed

    @property
    def bound(self) -> Bound:
        """The largest part."""
        if self.fixed > max(self.compute, self.memory):
            return "overhead"
        return "compute" if self.compute >= self.memory else "memory"
