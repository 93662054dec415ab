"""What a network looks at is told from its graph: held to gradients, and to runs on parts."""

from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hwsearch.network.context import context
from hwsearch.network.graph import Graph
from hwsearch.network.run import run
from hwsearch.network.trace import trace
from tests.network.modules import CHANNELS, Normed, Stack, UNet, settle

FRAMES = 97


class Deep(nn.Module):
    """Two strides down and up again, a layer without padding, and parts of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv1d(CHANNELS, 6, 3)
        self.down = nn.Sequential(nn.Conv1d(6, 6, 3, stride=2, padding=1), nn.Tanh(), nn.Conv1d(6, 6, 4, stride=3, padding=2))
        self.up = nn.Sequential(nn.ConvTranspose1d(6, 6, 5, stride=3), nn.Tanh(), nn.ConvTranspose1d(6, 6, 3, stride=2))
        self.join = nn.Conv1d(12, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.plain(functional.pad(x, (1, 1)))
        z = self.up(self.down(y))[..., 2:][..., : x.shape[-1]]
        joined: Tensor = self.join(torch.cat([y, z], 1))
        return joined


class Cut(nn.Module):
    """Frames at the end are left out and put back."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv1d(CHANNELS, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return functional.pad(torch.sigmoid(self.layer(x))[..., :-4], (0, 6))


MODULES = {"stack": Stack(), "causal": Stack(causal=True), "unet": UNet(), "deep": Deep(), "cut": Cut()}


@cache
def graph_of(kind: str) -> Graph:
    return trace(settle(MODULES[kind], seed=0), [torch.randn(1, CHANNELS, 32)])


def run_on(graph: Graph, x: Tensor) -> Tensor:
    return run(graph, {graph.inputs[0]: x})[0]


@pytest.mark.parametrize("kind", MODULES)
def test_no_frame_outside_the_context_matters(kind: str) -> None:
    graph = graph_of(kind)
    reach = context(graph)
    assert reach is not None
    x = torch.randn(1, CHANNELS, FRAMES).requires_grad_()
    y = run_on(graph, x)
    before, after = 0, 0
    for frame in range(30, 60):  # a ReLU lets some see less
        (gradient,) = torch.autograd.grad(y[..., frame].sum(), x, retain_graph=True)
        seen = gradient.abs().sum(dim=(0, 1)).nonzero().flatten() if y[..., frame].any() else torch.tensor([frame])
        before, after = max(before, frame - int(seen.min())), max(after, int(seen.max()) - frame)
    assert reach.before - reach.multiple < before <= reach.before
    assert after <= reach.after
    if kind in ("stack", "causal"):
        assert (before, after) == (reach.before, reach.after)


@pytest.mark.parametrize("kind", MODULES)
def test_a_part_with_its_context_gives_what_the_whole_gives(kind: str) -> None:
    graph = graph_of(kind)
    reach = context(graph)
    assert reach is not None
    x = torch.randn(1, CHANNELS, FRAMES)
    whole = run_on(graph, x)
    for first, last in ((30, 31), (31, 50), (47, 60)):
        start = first - reach.before
        start -= start % reach.multiple
        part = run_on(graph, x[..., start : last + reach.after])[..., first - start : last - start]
        torch.testing.assert_close(part, whole[..., first:last])


def test_multiples_are_those_of_all_strides() -> None:
    contexts = {kind: context(graph_of(kind)) for kind in MODULES}
    multiples = {kind: each.multiple for kind, each in contexts.items() if each is not None}
    assert multiples == {"stack": 1, "causal": 1, "unet": 2, "deep": 6, "cut": 1}


class First(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.normed = Normed()

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.normed(x)[0]
        return made


def test_a_norm_over_all_frames_looks_at_all() -> None:
    assert context(trace(settle(First(), seed=0), [torch.randn(1, CHANNELS, 20)])) is None
