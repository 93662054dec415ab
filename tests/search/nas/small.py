"""A tiny base with free weights, and examples whose target is what the base itself gives: rounding anything hurts."""

from dataclasses import replace

import numpy as np

from hwsearch.search.exact.problem import AllocationProblem, additive_cost
from hwsearch.separator.allocation import is_weight
from tests.separator.small import RELU, all_sites
from tests.training.pools import small_base, small_pool

BASE = small_base()
POOL = replace(small_pool(), target=small_pool().estimate)


def problem_of(free, widths=(2, 4, 8), activation_bits=32, groups=()):
    """Sites of `free` take `widths`, other weights 8 bits; their cost is bits times values."""
    by_site = tuple(
        (site, widths if site in free else ((8,) if is_weight(site) else (activation_bits,))) for site in all_sites(RELU)
    )
    loss = np.zeros((len(by_site), max(len(options) for _, options in by_site)))
    return AllocationProblem(by_site, loss, (), groups)


def size(problem):
    """Bits of all weights, and a thousand more."""
    values = {site: BASE.graph.parameters[site].numel() for site in BASE.sites.weights}
    charges = {site: {bits: float(bits * values[site]) for bits in options} for site, options in problem.widths if site in values}
    return additive_cost("bits", problem.widths, charges, 1000.0)
