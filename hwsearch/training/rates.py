"""Learning rates: their course over the steps, and the share of each parameter."""

from hwsearch.network.graph import Graph
from hwsearch.network.sites import LAYERS, WEIGHT
from hwsearch.separator.allocation import BitAllocation, is_weight
from hwsearch.training.loss import half_cosine

WARM_UP = 0.05
"""Share of all steps over which the learning rate rises."""

FINAL_RATE = 0.05
"""Learning rate at the end, as a share of the highest one."""

WIDTH_FACTORS = {2: 4.0, 3: 2.0}
"""Factors of the learning rate of weights by their width, and of the biases beside them."""

_COARSE = 8
"""Widest activations whose scales are trained."""

_INPUTS = 128
"""Number of values that an output is made of, in a layer that learns at the full rate."""


def rate_share(step: int, steps: int) -> float:
    """Return the learning rate of a step, counted from 0, as a share of the highest one.

    It rises in a line, times half a cosine that falls over all steps.
    """
    return min(1.0, (step + 1) / (WARM_UP * steps)) * half_cosine(step / steps, 1.0, FINAL_RATE)


def rate_factors(graph: Graph, allocation: BitAllocation | None = None) -> dict[str, float]:
    """Return the factors of the learning rate by parameter; 1 for others.

    Adam moves all weights by steps of one size, which changes an output by the size times the square root of the number of its
    weights. So layers with many inputs learn more slowly. Otherwise the first layer, with thousands of inputs, spoils the others.

    Args:
        graph: the network.
        allocation: the widths of all sites, if they have one each. Narrow weights and the biases beside them learn faster.
            The scales of activations with more than 8 bits stay, since they lose nothing.
    """
    layers = [operation.name for operation in graph.operations if isinstance(operation, LAYERS)]
    factors: dict[str, float] = {}
    for layer in layers:
        weight, bias = layer + WEIGHT, f"{layer}.bias"
        inputs = graph.parameters[weight].numel() / graph.parameters[bias].numel()
        width = 1.0 if allocation is None else WIDTH_FACTORS.get(allocation.by_site[weight], 1.0)
        factors |= {weight: width * (_INPUTS / inputs) ** 0.5, bias: width}
    sites = () if allocation is None else allocation.widths
    return factors | {f"{site}.scale": 0.0 for site, bits in sites if bits > _COARSE and not is_weight(site)}
