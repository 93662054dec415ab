"""A graph without its parameters, as a JSON object."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from hwsearch.network import operations
from hwsearch.network.graph import Graph
from hwsearch.network.operations import Operation

if TYPE_CHECKING:
    from torch import Tensor

STRUCTURE_ERRORS = (ValidationError, KeyError, TypeError, ValueError, RecursionError)
"""What a damaged structure may raise."""

_KINDS = {
    kind.__name__: TypeAdapter(kind)
    for kind in vars(operations).values()
    if isinstance(kind, type) and issubclass(kind, Operation) and not kind.__subclasses__()
}


def structure(graph: Graph) -> dict[str, Any]:
    """Convert all of a graph but its parameters to a JSON object, without the defaults of operations."""
    return {
        "inputs": list(graph.inputs),
        "outputs": list(graph.outputs),
        "operations": [_fields(each) for each in graph.operations],
    }


def from_structure(content: Mapping[str, Any], parameters: "Mapping[str, Tensor]") -> Graph:
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
