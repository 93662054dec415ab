"""A graph on disk: its tensors in safetensors, its operations as JSON in the file's metadata. Loading executes nothing."""

from pathlib import Path

from hwsearch.files.tensors import read_tensors, refused, write_tensors
from hwsearch.network.graph import Graph
from hwsearch.network.structure import STRUCTURE_ERRORS, from_structure, structure

_KEY = "hwsearch_graph"
_FORMAT = 1
_WHAT = "a network graph"
_MEND = "delete it and it is made again"


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
