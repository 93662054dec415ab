"""The same network with activations that one grid per tensor fits more finely.

Two rewrites change weights and biases and leave the output as it is:

- `equalised`: a depthwise layer undoes any gain per channel, and a ReLU lets positive gains through. So the channels before a
  depthwise layer are scaled to one range (arXiv 1906.04721, equation 10).
- `centred`: a layer without padding takes back any constant per channel with its bias. So each channel of a residual trunk is
  moved to the middle of its range.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from hwsearch.network.graph import Graph
from hwsearch.network.operations import Add, Convolution, Elementwise, Function, LeakyReLU, Operation, PReLU, Read
from hwsearch.network.run import run
from hwsearch.process.interrupts import checkpoint

Ranges = Mapping[str, tuple[Tensor, Tensor]]
"""The lowest and the highest value of each channel of each tensor, [channels] each."""


LARGEST_GAIN = 4.0
"""Largest gain of a channel. Larger ones fit grids no better, and training moves all weights of a layer by like amounts."""


def channel_ranges(graph: Graph, features: Iterable[Tensor]) -> Ranges:
    """Observe every tensor.

    Args:
        graph: of one input.
        features: inputs [batch, channels, frames].
    """
    ranges: dict[str, tuple[Tensor, Tensor]] = {}

    def observe(name: str, x: Tensor) -> Tensor:
        low, high = torch.aminmax(x.transpose(0, 1).flatten(1), dim=1)
        if name in ranges:
            low, high = torch.minimum(low, ranges[name][0]), torch.maximum(high, ranges[name][1])
        ranges[name] = low, high
        return x

    with torch.no_grad():
        for each in features:
            checkpoint()
            run(graph, {graph.inputs[0]: each}, observe)
    return ranges


def equalised(graph: Graph, ranges: Ranges) -> Graph:
    """Scale the channels before each depthwise layer towards the range of the widest channel; channels that are always zero
    stay.
    """
    parameters = dict(graph.parameters)
    for before, tensor, depthwise in _before_depthwise(graph):
        low, high = ranges[tensor]
        reach = torch.maximum(high, -low)
        gain = torch.where(reach > 0, reach.max() / reach, 1.0).clamp_max(LARGEST_GAIN)
        parameters[f"{before}.weight"] = parameters[f"{before}.weight"] * gain[:, None, None]
        parameters[f"{before}.bias"] = parameters[f"{before}.bias"] * gain
        parameters[f"{depthwise}.weight"] = parameters[f"{depthwise}.weight"] / gain[:, None, None]
    return replace(graph, parameters=parameters)


def centred(graph: Graph, ranges: Ranges) -> Graph:
    """Shift each channel of the residual trunks to the middle of its range.

    These are sums with a layer's result, and layers' results without a function behind, if all their readers can take the shift
    back.
    """
    parameters = dict(graph.parameters)
    shifts: dict[str, Tensor] = {}
    for operation in graph.operations:
        name = operation.name
        read = [shifts[each] for each in operation.inputs if each in shifts]
        if isinstance(operation, Read) and read:
            shifts[name] = read[0]
        elif isinstance(operation, Convolution):
            for shift in read:
                _raise_bias(parameters, name, _of_constant(operation, graph.parameter(operation, "weight"), shift))
            if _is_shifted(graph, operation, ranges):
                shifts[name] = _middle(ranges[name])
                _raise_bias(parameters, name, -shifts[name])
        elif isinstance(operation, Add) and (layer := _free_layer(graph, operation, ranges)) is not None:
            if _is_shifted(graph, operation, ranges):
                shifts[name] = _middle(ranges[name])
                _raise_bias(parameters, layer, -shifts[name])
            for shift in read:
                _raise_bias(parameters, layer, shift)
    return replace(graph, parameters=parameters)


def _before_depthwise(graph: Graph) -> Iterator[tuple[str, str, str]]:
    """Find each layer, the tensor behind it or its function, and the depthwise layer that alone reads that tensor."""
    for depthwise in graph.operations:
        if not isinstance(depthwise, Convolution) or graph.parameter(depthwise, "weight").shape[:2] != (depthwise.groups, 1):
            continue
        names = [depthwise.inputs[0]]
        before = graph.by_name.get(names[0])
        if isinstance(before, LeakyReLU | PReLU) or (isinstance(before, Elementwise) and before.function is Function.RELU):
            names.append(before.inputs[0])
            before = graph.by_name.get(names[1])
        alone = all(len(graph.readers[name]) == 1 and name not in graph.outputs for name in names)
        if alone and isinstance(before, Convolution):
            yield before.name, names[0], depthwise.name


def _is_shifted(graph: Graph, operation: Convolution | Add, ranges: Ranges) -> bool:
    """Return whether `centred` shifts what an operation makes; a result that only sums read follows from theirs."""
    readers = graph.readers[operation.name]
    follows = isinstance(operation, Convolution) and all(isinstance(reader, Add) for reader in readers)
    taken = all(_takes_back(graph, reader, operation.name, ranges) for reader in readers)
    return taken and not follows and operation.name not in graph.outputs


def _takes_back(graph: Graph, reader: Operation, tensor: str, ranges: Ranges) -> bool:
    match reader:
        case Read():
            return all(_takes_back(graph, each, reader.name, ranges) for each in graph.readers[reader.name])
        case Convolution(padding=padding):
            return padding == (0, 0)
        case Add():
            return _free_layer(graph, reader, ranges) not in (None, tensor)
        case _:
            return False


def _free_layer(graph: Graph, add: Add, ranges: Ranges) -> str | None:
    """Return the layer whose bias shifts a sum and nothing else, if there is one."""
    channels = {len(ranges[name][0]) for name in (*add.inputs, add.name)}
    if len(channels) > 1 or len(set(add.inputs)) == 1:
        return None
    for name in reversed(add.inputs):
        if isinstance(graph.by_name.get(name), Convolution) and len(graph.readers[name]) == 1 and name not in graph.outputs:
            return name
    return None


def _middle(ends: tuple[Tensor, Tensor]) -> Tensor:
    return (ends[0] + ends[1]) / 2


def _of_constant(operation: Convolution, weight: Tensor, values: Tensor) -> Tensor:
    """Return what the weights make [out] of an input that is constant in each channel [in]."""
    gains = weight.double().sum(2).reshape(operation.groups, -1, weight.shape[1])
    return (gains @ values.double().reshape(operation.groups, -1, 1)).flatten()


def _raise_bias(parameters: dict[str, Tensor], layer: str, by: Tensor) -> None:
    name = f"{layer}.bias"
    parameters[name] = (parameters[name].double() + by.double()).float()
