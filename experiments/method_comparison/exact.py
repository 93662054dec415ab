"""The exact optimum of an additive loss at a size."""

from collections.abc import Mapping

from bench import Bench

from hwsearch.search.exact.front import front_at
from hwsearch.search.exact.problem import allocation_problem
from hwsearch.search.objectives import PACKED_SIZE
from hwsearch.separator.allocation import BitAllocation


def exact(bench: Bench, loss: Mapping[str, Mapping[int, float]], bits: float) -> BitAllocation:
    """Return the allocation that loses least within the bytes of a size."""
    problem = allocation_problem(bench.space, loss, (bench.costs.exact(PACKED_SIZE),))
    return problem.allocation(front_at(problem, PACKED_SIZE, [bench.budget(bits)]).indices[0])
