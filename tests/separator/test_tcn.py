import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsearch.experiment import SeparatorConfig
from hwsearch.separator.tcn import MaskNetwork
from tests.separator.small import activation_sites, weight_sites

TINY = SeparatorConfig(n_fft=128, hop_length=64, B=8, H=12, X=3, R=2, beam=False)  # with a beam a fresh head is zero


@settings(max_examples=15, deadline=None)
@given(frames=st.integers(1, 60), X=st.integers(1, 4), R=st.integers(1, 2), P=st.sampled_from([3, 5]))
def test_every_length_keeps_its_frames(frames: int, X: int, R: int, P: int) -> None:
    network = MaskNetwork(TINY.model_copy(update={"X": X, "R": R, "P": P}), features=10).eval()
    assert network(torch.randn(2, 10, frames)).shape == (2, 2 * 65, frames)


def reach(network: MaskNetwork, frames: int, moved: int) -> tuple[int, int]:
    """First and last output frame that depends on input frame `moved`."""
    network.double()
    x = torch.randn(1, 10, frames, dtype=torch.float64)
    y = x.clone()
    y[..., moved] += 1.0
    changed = (network(x) - network(y)).abs().amax(dim=(0, 1)) > 0
    found = torch.nonzero(changed).flatten()
    return int(found[0]), int(found[-1])


def test_causal_network_never_looks_ahead() -> None:
    network = MaskNetwork(TINY.model_copy(update={"causal": True}), features=10).eval()
    assert reach(network, 80, 40)[0] == 40


@pytest.mark.parametrize("repeats", [1, 2])
def test_receptive_field_is_that_of_the_dilations(repeats: int) -> None:
    network = MaskNetwork(TINY.model_copy(update={"R": repeats, "activation": "prelu"}), features=10).eval()
    one_side = repeats * (1 + 2 + 4)
    assert reach(network, 80, 40) == (40 - one_side, 40 + one_side)


def test_parameter_count_is_the_papers() -> None:
    """32 ConvBlocks of 256 -> 512 hold 8,544,320 parameters without norms and slopes (arXiv 2111.14479, size column).

    The reference's convolutions have a bias, which here is the norm's: 1x1 (256 * 512 + 512), depthwise (3 * 512 + 512), 1x1
    (512 * 256 + 256), and it counts two norms and two slopes per block beside them.
    """
    network = MaskNetwork(SeparatorConfig(n_fft=512, hop_length=256, B=256, H=512, X=8, R=4), features=10)
    weights = sum(layer.weight.numel() for block in network.blocks for layer in (block.expand, block.depthwise, block.project))
    biases = 32 * (512 + 512 + 256)
    norms_and_slopes = 32 * (2 * 2 * 512 + 2)
    assert weights == 32 * (256 * 512 + 3 * 512 + 512 * 256)
    assert abs(weights + biases + norms_and_slopes - 8_544_320) / 8_544_320 < 0.001


def test_sites_are_the_networks_weights() -> None:
    network = MaskNetwork(TINY, features=10)
    convolutions = [f"{name}.weight" for name, module in network.named_modules() if isinstance(module, torch.nn.Conv1d)]
    assert list(weight_sites(TINY)) == convolutions
    assert len(activation_sites(TINY)) == 4 * 6 + 3
