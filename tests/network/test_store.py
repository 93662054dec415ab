"""A graph survives the disk, and a damaged file is refused in one line."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hwsearch.errors import UserError
from hwsearch.network.run import run
from hwsearch.network.store import load_graph, save_graph
from hwsearch.network.trace import trace
from tests.network.modules import CHANNELS, Normed, UNet, settle


@pytest.mark.parametrize("kind", [UNet, Normed])
def test_a_graph_survives_the_disk(kind: type[torch.nn.Module], tmp_path: Path) -> None:
    graph = trace(settle(kind(), seed=5), [torch.randn(1, CHANNELS, 20)])
    save_graph(tmp_path / "graph.safetensors", graph)
    read = load_graph(tmp_path / "graph.safetensors")
    assert (read.inputs, read.operations, read.outputs) == (graph.inputs, graph.operations, graph.outputs)
    x = torch.randn(1, CHANNELS, 33)
    for before, after in zip(run(graph, {"x": x}), run(read, {"x": x}), strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"hwsearch_graph": "{"},
        {"hwsearch_graph": "[]"},
        {"hwsearch_graph": '{"format": 2, "inputs": ["x"], "outputs": ["x"], "operations": []}'},
        {"hwsearch_graph": '{"format": 1, "inputs": ["x"], "outputs": ["y"], "operations": []}'},
        {"hwsearch_graph": '{"format": 1, "inputs": ["x"], "outputs": ["x"], "operations": [{"kind": "Path"}]}'},
        *(
            {"hwsearch_graph": f'{{"format": 1, "inputs": ["x"], "outputs": ["a"], "operations": [{{"name": "a", {fields}}}]}}'}
            for fields in (
                '"kind": "Add"',
                '"kind": "Add", "inputs": []',
                '"kind": "Operation", "inputs": ["x"]',
                '"kind": "Weighted", "inputs": ["x"]',
                '"kind": "Pad", "inputs": ["x"], "padding": [-1, 0]',
                '"kind": "Softmax", "inputs": ["x"], "axis": 0',
            )
        ),
    ],
)
def test_what_is_no_graph_is_refused(metadata: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "graph.safetensors"
    save_file({}, path, metadata=metadata)
    with pytest.raises(UserError, match=r"network graph") as refused:
        load_graph(path)
    assert "\n" not in str(refused.value)
