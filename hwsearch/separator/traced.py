"""The graph of a separator's network, which is traced once and kept in a file."""

from pathlib import Path

import torch
from torch import nn

from hwsearch.errors import UserError
from hwsearch.network.graph import Graph
from hwsearch.network.shapes import tensor_shapes
from hwsearch.network.sites import LAYERS
from hwsearch.network.store import load_graph, save_graph
from hwsearch.separator.separator import Separator

_EXAMPLE_SAMPLES = 4000
_LENGTHS = 512
"""Successive lengths for which the frames of the output are counted: more than strides multiply to."""


def traced(separator: Separator) -> Graph:
    """Trace the network of a separator.

    Raises:
        UserError: an operation that a graph does not have, no layer with weights, more than one input or output, or an output of
            another shape than the front end takes.
    """
    front_end, name = separator.front_end, type(separator.network).__name__
    frames = front_end.frames(_EXAMPLE_SAMPLES)
    graph = graph_of(separator.network, front_end.inputs, frames)
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise UserError(f"{name}: {len(graph.inputs)} tensors in and {len(graph.outputs)} out; wanted one and one")
    if not any(isinstance(operation, LAYERS) for operation in graph.operations):
        raise UserError(f"{name}: has no layer with weights; wanted a convolution or a linear layer")
    for count in range(frames, frames + _LENGTHS):
        read, wanted = (front_end.inputs, count), (front_end.outputs, count)
        made = tensor_shapes(graph, {graph.inputs[0]: read})[graph.outputs[0]]
        if made != wanted:
            raise UserError(
                f"{name}: gives {list(made)} for {list(read)}; wanted {list(wanted)}: channels, and as many frames as came in "
                "(crop or pad)"
            )
    return graph


def graph_of(module: nn.Module, inputs: int, frames: int = 64) -> Graph:
    """Trace a module that takes a tensor [batch, inputs, frames], on noise; raises as `network.trace.trace`."""
    # torch.export takes seconds to load.
    from hwsearch.network.trace import trace

    return trace(module, [torch.randn(1, inputs, frames, generator=torch.Generator().manual_seed(0))])


def graph_file(folder: Path, key: str) -> Path:
    """Return the file of `kept_graph`."""
    return folder / f"network-{key[:16]}.safetensors"


def kept_graph(separator: Separator, folder: Path, key: str) -> Graph:
    """Read the graph of a separator from a folder, or trace it, which takes seconds, and write it there.

    Raises:
        UserError: as `traced`, or a damaged file.
    """
    path = graph_file(folder, key)
    if path.is_file():
        return load_graph(path)
    graph = traced(separator)
    save_graph(path, graph)
    return graph
