"""What one differentiable search found."""

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from hwsearch.errors import UserError
from hwsearch.search.exact.problem import AllocationProblem
from hwsearch.separator.allocation import BitAllocation

_KEYS = frozenset({"cost_weight", "allocation", "halfway", "probabilities", "loss_db", "cost"})


@dataclass(frozen=True)
class NasResult:
    """The candidates of one cost weight.

    Attributes:
        cost_weight: dB that the widest allocation is charged.
        allocation: every choice's likeliest option after the last step.
        halfway: the same after half of the steps.
        probabilities: by choice, of its options, after the last step.
        loss_db: negative SI-SNR of the relaxed network, mean over the last steps.
        cost: expected cost after the last step, 1 for the widest allocation.
    """

    cost_weight: float
    allocation: BitAllocation
    halfway: BitAllocation
    probabilities: tuple[tuple[float, ...], ...]
    loss_db: float
    cost: float

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "cost_weight": self.cost_weight,
            "allocation": self.allocation.to_json(),
            "halfway": self.halfway.to_json(),
            "probabilities": [list(row) for row in self.probabilities],
            "loss_db": self.loss_db,
            "cost": self.cost,
        }

    @classmethod
    def from_json(cls, value: Any, problem: AllocationProblem, source: str) -> Self:
        """Validate what `to_json` gave, for the same problem.

        Raises:
            UserError: anything missing, unknown or out of range; names `source`.
        """
        if not isinstance(value, dict) or value.keys() != _KEYS:
            raise UserError(f"{source}: holds no result of a differentiable search; delete it and it is made again")
        numbers = [value[key] for key in ("cost_weight", "loss_db", "cost")]
        if not all(type(number) is float and math.isfinite(number) for number in numbers):
            raise UserError(f"{source}: has numbers {numbers!r}; wanted finite ones: delete it and it is made again")
        rows = value["probabilities"]
        counts = problem.option_valid.sum(axis=1).tolist()
        if not isinstance(rows, list) or len(rows) != len(counts) or not all(map(_is_distribution, rows, counts)):
            raise UserError(f"{source}: has probabilities that are not those of the space; delete it and it is made again")
        return cls(
            cost_weight=value["cost_weight"],
            allocation=_allocation(value["allocation"], problem, source),
            halfway=_allocation(value["halfway"], problem, source),
            probabilities=tuple(tuple(row) for row in rows),
            loss_db=value["loss_db"],
            cost=value["cost"],
        )


def _is_distribution(row: Any, count: int) -> bool:
    return (
        isinstance(row, list)
        and len(row) == count
        and all(type(share) is float and 0.0 <= share <= 1.0 for share in row)
        and abs(float(np.sum(row)) - 1.0) < 1e-3
    )


def _allocation(value: Any, problem: AllocationProblem, source: str) -> BitAllocation:
    if not isinstance(value, dict) or value.keys() != set(problem.sites):
        raise UserError(f"{source}: its sites are not those of the space; delete it and it is made again")
    for site, widths in problem.widths:
        if type(value[site]) is not int or value[site] not in widths:
            raise UserError(f"{source}: site '{site}' has width {value[site]!r}; wanted one of {list(widths)}")
    for sites in problem.members:
        if len({value[problem.sites[site]] for site in sites}) > 1:
            raise UserError(f"{source}: site '{problem.sites[sites[0]]}' has another width than the rest of its group")
    return BitAllocation.of({site: value[site] for site in problem.sites})
