"""A graph on disk: its tensors in safetensors, its operations as JSON in the file's metadata. Loading executes nothing."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from hwsearch.files.tensors import read_tensors, refused, write_tensors
from hwsearch.network import operations
from hwsearch.network.graph import Graph
from hwsearch.network.operations import Operation

_KEY = "hwsearch_graph"
_FORMAT = 1
_WHAT = "a network graph"
_MEND = "delete it and it is made again"

STRUCTURE_ERRORS = (ValidationError, KeyError, TypeError, ValueError, RecursionError)
"""What a damaged structure may raise."""

_KINDS = {
    kind.__name__: TypeAdapter(kind)
    for kind in vars(operations).values()
    if isinstance(kind, type) and issubclass(kind, Operation) and not kind.__subclasses__()
}


def save_graph(path: Path, graph: Graph) -> None:
    """Write a graph atomically."""
    write_tensors(path, graph.parameters, _KEY, {"format": _FORMAT} | structure(graph))


def load_graph(path: Path) -> Graph:
    """Read a graph.

    Raises:
        UserError: no such file, no graph in it, or one that is inconsistent or was changed.
    """
    content, tensors = read_tensors(path, _KEY, _WHAT, _MEND)
    if content.get("format") != _FORMAT:
        raise refused(path, _WHAT, f"its format is not {_FORMAT}", _MEND)
    try:
        # Copies: kernels round differently where the tensors of a mapped file are not aligned.
        return from_structure(content, {name: tensor.clone() for name, tensor in tensors.items()}).in_order()
    except STRUCTURE_ERRORS as error:
        raise refused(path, _WHAT, error, _MEND) from None


def structure(graph: Graph) -> dict[str, Any]:
    """Convert all of a graph but its parameters to a JSON object, without the defaults of operations."""
    return {
        "inputs": list(graph.inputs),
        "outputs": list(graph.outputs),
        "operations": [_fields(each) for each in graph.operations],
    }


def from_structure(content: Mapping[str, Any], parameters: Mapping[str, Tensor]) -> Graph:
    """Make the graph that `structure` described.

    Raises:
        Exception: one of `STRUCTURE_ERRORS`: content or parameters are not those of a graph.
    """
    operations = tuple(_operation(each) for each in content["operations"])
    return Graph(tuple(content["inputs"]), operations, tuple(content["outputs"]), parameters)


def _fields(operation: Operation) -> dict[str, Any]:
    found: dict[str, Any] = {"kind": type(operation).__name__}
    for field in dataclasses.fields(operation):
        value = getattr(operation, field.name)
        if value != field.default:
            found[field.name] = list(value) if isinstance(value, tuple) else value
    return found


def _operation(value: Any) -> Operation:
    fields = dict(value)
    made: Operation = _KINDS[fields.pop("kind")].validate_python(fields)
    return made
