"""The graph of a separator's network: traced once, and kept beside what is made of it."""

from pathlib import Path

import torch
from torch import nn

from hwsearch.errors import UserError
from hwsearch.network.graph import Graph
from hwsearch.network.run import run
from hwsearch.network.shapes import tensor_shapes
from hwsearch.network.sites import LAYERS
from hwsearch.network.store import load_graph, save_graph
from hwsearch.separator.separator import Separator

_EXAMPLE_SAMPLES = 4000
_LENGTHS = 512
"""Lengths, one after the other, whose frames are counted: more than strides multiply to."""


def traced(separator: Separator) -> Graph:
    """Trace the network between a front end's input and output.

    Raises:
        UserError: an operation that a graph does not have, no layer with weights, more than one tensor in or out, or an output
            of another shape than the front end takes.
    """
    front_end, name = separator.front_end, type(separator.network).__name__
    frames = front_end.frames(_EXAMPLE_SAMPLES)
    graph = graph_of(separator.network, front_end.inputs, frames)
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise UserError(f"{name}: {len(graph.inputs)} tensors in and {len(graph.outputs)} out; wanted one and one")
    if not any(isinstance(operation, LAYERS) for operation in graph.operations):
        raise UserError(f"{name}: has no layer with weights; wanted a convolution or a linear layer")
    example = torch.zeros(1, front_end.inputs, frames)
    (output,) = run(graph, {graph.inputs[0]: example})
    other = next((more for more in range(_LENGTHS) if _output(graph, front_end.inputs, frames + more)[1:] != (frames + more,)), 0)
    if other:
        found = _output(graph, front_end.inputs, frames + other)
        raise UserError(f"{name}: gives {found[-1]} frames for {frames + other}; wanted as many as came in: crop or pad")
    if output.shape[:2] != (1, front_end.outputs) or output.shape[2:] != example.shape[2:]:
        raise UserError(
            f"{name}: gives {list(output.shape)} for {list(example.shape)}; wanted [batch, {front_end.outputs}, frames] with as "
            "many frames as came in"
        )
    return graph


def _output(graph: Graph, inputs: int, frames: int) -> tuple[int, ...]:
    """Channels and frames of the output."""
    return tensor_shapes(graph, {graph.inputs[0]: (inputs, frames)})[graph.outputs[0]]


def graph_of(module: nn.Module, inputs: int, frames: int = 64) -> Graph:
    """Trace a module that takes a tensor [batch, inputs, frames], on noise.

    Raises:
        UserError: as `network.trace.trace`.
    """
    # torch.export takes seconds to load.
    from hwsearch.network.trace import trace

    return trace(module, [torch.randn(1, inputs, frames, generator=torch.Generator().manual_seed(0))])


def graph_file(folder: Path, key: str) -> Path:
    """Where `kept_graph` keeps a graph."""
    return folder / f"network-{key[:16]}.safetensors"


def kept_graph(separator: Separator, folder: Path, key: str) -> Graph:
    """The graph from a folder, or traced and put there: tracing takes seconds, which each process would wait for.

    Args:
        separator: whose network it is.
        folder: that keeps it.
        key: what it depends on.

    Raises:
        UserError: as `traced`, or a damaged file.
    """
    path = graph_file(folder, key)
    if path.is_file():
        return load_graph(path)
    graph = traced(separator)
    save_graph(path, graph)
    return graph
