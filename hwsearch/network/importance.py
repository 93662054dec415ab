"""Which channels of a network matter most: those that add the most energy to what reads them."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hwsearch.network import operations as ops
from hwsearch.network.channels import ChannelGroup
from hwsearch.network.graph import Graph
from hwsearch.network.options import Options, Order


def channel_orders(graph: Graph, options: Options, squares: Mapping[str, Tensor]) -> dict[str, Order]:
    """Rank the classes of each group of channels, the most important first; of equals, the lower number comes first.

    The importance of a class is the energy that its channels add to the outputs of the layers that read them, if inputs are
    independent: the mean square of each input times the squares of the weights that multiply it. A depthwise layer passes a
    channel on, so it counts only for a group that no other layer reads.

    Args:
        graph: the whole network.
        options: what can be left out of it.
        squares: mean squares [groups, values] of what the weights of a layer are multiplied with, by layer; 1 for other layers.
    """
    dense, depthwise = _energies(graph, options, squares)
    return {group.name: _order(group, dense if dense.keys() & set(group.classes) else depthwise) for group in options.groups}


def _order(group: ChannelGroup, energies: Mapping[int, float]) -> Order:
    return sorted(group.classes, key=lambda each: (-energies.get(each, 0.0), each))


def _energies(graph: Graph, options: Options, squares: Mapping[str, Tensor]) -> tuple[dict[int, float], dict[int, float]]:
    """Return what each class adds to the outputs of layers that mix channels, and to those of depthwise ones."""
    dense: dict[int, float] = {}
    depthwise: dict[int, float] = {}
    for layer in graph.operations:
        if isinstance(layer, ops.Convolution | ops.TransposedConvolution):
            found = dense if layer.groups == 1 else depthwise
            classes = options.classes.of_tensor[layer.inputs[0]]
            for each, energy in zip(classes.tolist(), _energy(graph, layer, squares.get(layer.name)), strict=True):
                found[each] = found.get(each, 0.0) + float(energy)
    return dense, depthwise


def _energy(graph: Graph, layer: ops.Convolution | ops.TransposedConvolution, squares: Tensor | None) -> NDArray[np.float64]:
    """Return the energy that each input channel of a layer adds to its outputs."""
    weights = graph.parameter(layer, "weight").detach().cpu().double().numpy() ** 2
    if isinstance(layer, ops.TransposedConvolution):
        return np.asarray(weights.sum(axis=(1, 2)))
    groups, values = layer.groups, weights.shape[1]
    by_input = weights.reshape(groups, -1, values, weights.shape[2]).sum(axis=1)
    if squares is not None:
        by_input = by_input * squares.cpu().double().numpy().reshape(by_input.shape)
    return np.asarray(by_input.sum(axis=2).flatten())
