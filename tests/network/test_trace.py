"""A traced graph computes what the module does, and what cannot be traced is refused in one line."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from hwsearch.errors import UserError
from hwsearch.network.operations import Affine, Convolution, Pad
from hwsearch.network.run import run
from hwsearch.network.trace import trace
from tests.network.modules import CHANNELS, Normed, Stack, UNet, settle


class Computed(nn.Module):
    """Trained tensors that are cut, reshaped, scaled and normalised before anything reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = weight_norm(nn.Conv1d(CHANNELS, 6, 3, padding=1))
        self.gains = nn.Parameter(torch.ones(8))
        self.weight = nn.Parameter(torch.ones(5, 6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x * self.gains[:CHANNELS, None]) + self.gains[2:, None].exp()
        return nn.functional.conv1d(y, 0.5 * self.weight.unsqueeze(-1))


MODULES: dict[str, Callable[[], nn.Module]] = {
    "computed": Computed,
    "stack": Stack,
    "causal": lambda: Stack(causal=True, prelu=True),
    "unet": UNet,
    "normed": Normed,
}


@pytest.mark.parametrize("kind", MODULES)
def test_a_graph_computes_what_its_module_does(kind: str) -> None:
    module = settle(MODULES[kind](), seed=3)
    graph = trace(module, [torch.randn(1, CHANNELS, 23)])
    for batch, frames in ((1, 23), (2, 40), (3, 57)):
        x = torch.randn(batch, CHANNELS, frames)
        wanted = module(x)
        found = run(graph, {graph.inputs[0]: x})
        for ours, theirs in zip(found, wanted if isinstance(wanted, tuple) else (wanted,), strict=True):
            assert torch.allclose(ours, theirs, atol=1e-5), (kind, frames)


class _Fan(nn.Module):
    """Layers that read one tensor, each with a norm behind it."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(layer, nn.BatchNorm1d(8)) for layer in layers)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(branch(x) for branch in self.branches)


def test_every_shape_of_convolution_and_the_norm_behind_it() -> None:
    shapes = [(1, 1, 1, 1), (3, 1, 1, 2), (4, 2, 1, CHANNELS), (3, 1, 3, 1), (2, 3, 2, 2)]  # kernel, stride, dilation, groups
    layers = [
        kind(CHANNELS, 8, kernel, stride, padding, dilation=dilation, groups=groups, bias=bool(padding))
        for kind in (nn.Conv1d, nn.ConvTranspose1d)
        for padding, (kernel, stride, dilation, groups) in zip((0, 1, 1, 1, 0), shapes, strict=True)
    ]
    module = settle(_Fan(layers), seed=len(layers))
    graph = trace(module, [torch.randn(1, CHANNELS, 20)])
    assert len(graph.operations) == len(layers)  # the norms are in the convolutions
    x = torch.randn(2, CHANNELS, 31)
    for ours, theirs in zip(run(graph, {"x": x}), module(x), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_padding_and_norms_are_folded() -> None:
    graph = trace(settle(Stack(causal=True), seed=0), [torch.randn(1, CHANNELS, 20)])
    assert not any(isinstance(operation, Pad | Affine) for operation in graph.operations)
    depthwise = graph.by_name["blocks.1.depthwise"]
    assert isinstance(depthwise, Convolution)
    assert (depthwise.padding, depthwise.dilation, depthwise.groups) == ((4, 0), 2, 6)


def test_a_norm_that_no_layer_precedes_is_a_depthwise_convolution() -> None:
    graph = trace(settle(nn.Sequential(nn.BatchNorm1d(CHANNELS), nn.ReLU()), seed=0), [torch.randn(1, CHANNELS, 20)])
    norm = graph.by_name["0"]
    assert isinstance(norm, Convolution)
    assert norm.groups == CHANNELS


def test_a_norm_of_what_something_else_reads_too_is_not_folded_into_it() -> None:
    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm = nn.Conv1d(CHANNELS, CHANNELS, 1), nn.BatchNorm1d(CHANNELS)

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x)
            return y + self.norm(y)

    module = settle(Forked(), seed=1)
    graph = trace(module, [torch.randn(1, CHANNELS, 20)])
    x = torch.randn(1, CHANNELS, 9)
    assert torch.allclose(run(graph, {"x": x})[0], module(x), atol=1e-6)


def test_a_module_is_left_as_it_was() -> None:
    module = Stack().train()
    trace(module, [torch.randn(1, CHANNELS, 20)])
    assert module.training


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.LSTM(CHANNELS, CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return self.memory(x.transpose(1, 2))[0].transpose(1, 2)


class _Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu() if x.sum() > 0 else x


class _OneLength(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu() if x.shape[-1] == 20 else x


class _EvenLengths(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv1d(CHANNELS, CHANNELS, 2, stride=2)
        self.up = nn.ConvTranspose1d(CHANNELS, CHANNELS, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(self.down(x))


class _Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv1d(CHANNELS, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x))


class _Difference(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.relu()


class _Reshaped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(1, -1, x.shape[-1] * 2)


class _Ramp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.arange(x.shape[-1])


class _Reflected(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pad(x, (2, 2), mode="reflect")


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (_Recurrent(), "module 'memory' (LSTM): 'lstm' is no operation of a network graph"),
        (_Branch(), "without branches that depend on the data"),
        (_OneLength(), "computes something else on 21 frames than on 20"),
        (_EvenLengths(), "does not run on 21 frames"),
        (_Twice(), "module 'layer' (Conv1d): 'conv1d' has trained numbers and is used more than once"),
        (_Difference(), "'sub' subtracts one tensor from another"),
        (_Reshaped(), "_Reshaped: 'reshape' is no operation of a network graph"),
        (_Ramp(), "'mul' computes with the number of frames"),
        (_Reflected(), "'pad' pads with something else than zeros"),
        (nn.Sequential(nn.BatchNorm1d(CHANNELS, track_running_stats=False)), "without running statistics"),
    ],
)
def test_what_no_graph_can_be_is_refused_in_one_line(module: nn.Module, words: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError) as refused:
        trace(module, [torch.randn(1, CHANNELS, 20)])
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    assert capfd.readouterr() == ("", "")  # torch explains such things at length
