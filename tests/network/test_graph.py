"""A graph is a value that cannot be inconsistent, and running it keeps no more tensors than it needs."""

import pytest
import torch
from torch import Tensor

from hwsearch.network.graph import Graph
from hwsearch.network.operations import Add, Convolution, Elementwise, Operation
from hwsearch.network.run import compute, run
from hwsearch.network.trace import trace
from tests.network.modules import CHANNELS, Stack, settle

RELU = Elementwise("relu", ("x",))


@pytest.mark.parametrize(
    ("operations", "outputs", "parameters", "words"),
    [
        ((Elementwise("relu", ("y",)),), ("relu",), {}, "reads 'y', which nothing before it makes"),
        ((RELU, RELU), ("relu",), {}, "two tensors are named 'relu'"),
        ((Elementwise("x", ("x",)),), ("x",), {}, "two tensors are named 'x'"),
        ((RELU,), ("mask",), {}, "the output 'mask' is made by no operation"),
        ((Convolution("layer", ("x",)),), ("layer",), {"layer.weight": torch.ones(1, 1, 1)}, "'layer.bias'"),
        ((RELU,), ("relu",), {"relu.weight": torch.ones(1)}, "'relu.weight'"),
    ],
)
def test_an_inconsistent_graph_is_refused(
    operations: tuple[Operation, ...], outputs: tuple[str, ...], parameters: dict[str, Tensor], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        Graph(("x",), operations, outputs, parameters)


def test_every_tensor_is_shown_in_order_and_may_be_replaced() -> None:
    graph = Graph(("x",), (RELU, Add("sum", ("x", "relu"))), ("sum",), {})
    seen: list[str] = []

    def at_tensor(name: str, x: Tensor) -> Tensor:
        seen.append(name)
        return 10 * x if name == "relu" else x

    (found,) = run(graph, {"x": torch.tensor([[[-1.0, 2.0]]])}, at_tensor)
    assert seen == ["x", "relu", "sum"]
    assert found.tolist() == [[[-1.0, 22.0]]]


def test_no_tensor_is_kept_longer_than_something_reads_it() -> None:
    graph = trace(settle(Stack(blocks=6), seed=0), [torch.randn(1, CHANNELS, 20)])
    alive: set[int] = set()
    most = 0

    class Counted(Tensor):
        def __del__(self) -> None:
            alive.discard(id(self))

    def how(operation: Operation, graph: Graph, inputs: tuple[Tensor, ...]) -> Tensor:
        nonlocal most
        made = compute(operation, graph, tuple(x.as_subclass(Tensor) for x in inputs)).as_subclass(Counted)
        alive.add(id(made))
        most = max(most, len(alive))
        return made

    run(graph, {"features": torch.randn(1, CHANNELS, 30)}, how=how)
    assert most == 3  # the trunk, what a layer reads and what it makes; without liveness 26
