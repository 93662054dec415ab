"""Small allocation problems, their solution by going through every allocation, and one of the paper's size."""

from itertools import product

import numpy as np
from hypothesis import strategies as st

from hwsearch.search.exact.problem import AllocationProblem, Cost, additive_cost

WIDTHS = (2, 3, 4, 6, 8)


def whole_numbers(limit):
    """Values whose sums are exact, with many ties and zeros."""
    return st.integers(0, limit).map(float)


def any_numbers(limit):
    """Values whose sums round."""
    return st.floats(1e-3, float(limit), allow_nan=False)


@st.composite
def problems(draw, numbers=whole_numbers, costs=("size",), cuts=0):
    """Up to six sites with up to four widths each, some of them fixed, one group or none."""
    size = draw(st.integers(1, 6))
    widths = [
        (f"s{i}.weight", tuple(sorted(draw(st.sets(st.sampled_from(WIDTHS), min_size=1, max_size=4))))) for i in range(size)
    ]
    groups = ()
    if size > 2 and draw(st.booleans()):
        widths[2] = (widths[2][0], widths[0][1])
        groups = ((widths[2][0], widths[0][0]),)

    def table(limit):
        return {site: {width: draw(numbers(limit)) for width in options} for site, options in widths}

    tables = [additive_cost(name, tuple(widths), table(9), draw(numbers(5))) for name in costs]
    if cuts:
        sums = [additive_cost("cut", tuple(widths), table(9), draw(numbers(5))) for _ in range(cuts)]
        tables.append(Cost("peak", np.concatenate([x.tables for x in sums]), np.concatenate([x.constants for x in sums])))
    loss = additive_cost("loss", tuple(widths), table(12)).tables[0]
    return AllocationProblem(tuple(widths), loss, tuple(tables), groups)


def every_allocation(problem):
    """Loss and costs of every allocation in which groups agree, by plain sums: a list of (loss, {cost: value})."""
    sites = [site for site, _ in problem.widths]
    found = []
    for widths in product(*(options for _, options in problem.widths)):
        by_site = dict(zip(sites, widths, strict=True))
        if any(len({by_site[site] for site in group}) > 1 for group in problem.groups):
            continue
        index = [options.index(width) for (_, options), width in zip(problem.widths, widths, strict=True)]
        costs = {
            cost.name: max(
                constant + sum(table[i, k] for i, k in enumerate(index))
                for table, constant in zip(cost.tables, cost.constants, strict=True)
            )
            for cost in problem.costs
        }
        found.append((sum(problem.loss[i, k] for i, k in enumerate(index)), costs))
    return found


def paper_sized(sites=224, *, whole=True, seed=0):
    """Losses and costs like those of the reference system's network: few layer shapes, sensitivities over four decades."""
    rng = np.random.default_rng(seed)
    widths = np.array([2, 3, 4, 5, 6, 8])
    counts = rng.choice([1536, 65536, 131072], (sites, 1)) if whole else rng.uniform(1e3, 1e5, (sites, 1))
    loss = np.exp(rng.normal(0, 1.5, (sites, 1)) + rng.normal(0, 0.2, (sites, 6))) * counts**0.5 * 4.0**-widths
    latency = np.ceil(counts / 512) * np.maximum(widths, 4) * 0.37 if whole else rng.uniform(1, 2, (sites, 1)) * widths
    return AllocationProblem(
        tuple((f"s{i}.weight", tuple(widths.tolist())) for i in range(sites)),
        loss,
        (
            Cost("size", (counts * widths / 8)[None], np.array([1000.0])),
            Cost("latency", latency[None], np.zeros(1)),
        ),
    )
