"""A graph on disk: its tensors in safetensors, its operations as JSON in the file's metadata. Loading executes nothing."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hwsearch.errors import UserError
from hwsearch.files import atomic_write
from hwsearch.network import operations
from hwsearch.network.graph import Graph
from hwsearch.network.operations import Operation

_KEY = "hwsearch_graph"
_FORMAT = 1

_KINDS = {
    kind.__name__: TypeAdapter(kind)
    for kind in vars(operations).values()
    if isinstance(kind, type) and issubclass(kind, Operation) and kind is not Operation
}


def save_graph(path: Path, graph: Graph) -> None:
    """Write a graph atomically."""
    content = {
        "format": _FORMAT,
        "inputs": graph.inputs,
        "outputs": graph.outputs,
        "operations": [{"kind": type(each).__name__} | dataclasses.asdict(each) for each in graph.operations],
    }
    tensors = {name: tensor.detach().contiguous() for name, tensor in graph.parameters.items()}
    metadata = {_KEY: json.dumps(content)}
    atomic_write(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))


def load_graph(path: Path) -> Graph:
    """Read a graph.

    Raises:
        UserError: no such file, no graph in it, or one that is inconsistent.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; wanted a network graph")
    try:
        with safe_open(path, framework="pt") as stored:
            content = json.loads((stored.metadata() or {})[_KEY])
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (no mapping)
        if content["format"] != _FORMAT:
            raise UserError(f"{path}: a network graph of format {content['format']!r}; wanted format {_FORMAT}")
        made = tuple(_operation(each) for each in content["operations"])
        return Graph(tuple(content["inputs"]), made, tuple(content["outputs"]), tensors)
    except (SafetensorError, ValidationError, KeyError, TypeError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path}: not a network graph ({reason})") from None


def _operation(value: Any) -> Operation:
    fields = dict(value)
    made: Operation = _KINDS[fields.pop("kind")].validate_python(fields)
    return made
