"""The result of one differentiable search."""

from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, TypeAdapter

from hwsearch.search.exact.problem import AllocationProblem
from hwsearch.separator.allocation import BitAllocation

_WIDTHS = TypeAdapter(dict[str, int])


def _allocation(value: Any) -> BitAllocation:
    return value if isinstance(value, BitAllocation) else BitAllocation.of(_WIDTHS.validate_python(value, strict=True))


_Allocation = Annotated[BitAllocation, PlainValidator(_allocation), PlainSerializer(BitAllocation.to_json)]
_Share = Annotated[float, Field(ge=0.0, le=1.0)]


class NasResult(BaseModel):
    """The candidates of one cost weight."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    cost_weight: float
    """dB that the widest allocation is charged."""
    allocation: _Allocation
    """The likeliest option of each choice after the last step."""
    halfway: _Allocation
    """The same after half of the steps."""
    probabilities: tuple[tuple[_Share, ...], ...]
    """[choices][options] after the last step."""
    loss_db: float
    """Negative SI-SNR of the relaxed network, mean over the last steps."""
    cost: float
    """Expected cost after the last step; 1 is the cost of the widest allocation."""

    def belongs_to(self, problem: AllocationProblem) -> bool:
        """Whether probabilities and allocations are of this problem."""
        counts = problem.option_valid.sum(axis=1).tolist()
        return (
            [len(row) for row in self.probabilities] == counts
            and all(abs(float(np.sum(row)) - 1.0) < 1e-3 for row in self.probabilities)
            and all(_is_of(allocation, problem) for allocation in (self.allocation, self.halfway))
        )


def _is_of(allocation: BitAllocation, problem: AllocationProblem) -> bool:
    found = allocation.by_site
    return (
        allocation.widths == tuple((site, found.get(site)) for site in problem.sites)
        and all(found[site] in widths for site, widths in problem.widths)
        and all(len({found[site] for site in group}) == 1 for group in problem.groups)
    )
