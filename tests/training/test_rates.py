"""Learning rates rise once and fall, and fit the size and the width of a layer."""

from itertools import pairwise

import pytest
import torch

from hwsearch.experiment import FLOAT_BITS, QatConfig
from hwsearch.separator.allocation import uniform
from hwsearch.separator.trained import initial_state
from hwsearch.training.qat import train_quantized
from hwsearch.training.rates import WIDTH_FACTORS, rate_factors, rate_share
from tests.training.graphs import graph_base
from tests.training.pools import small_base, small_pool

CONFIG = QatConfig(batch_size=2, learning_rate=3e-4, scale_learning_rate=1e-3)


def test_the_rate_rises_and_falls():
    shares = [rate_share(step, 100) for step in range(100)]
    assert shares[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0], rel=0.01)
    assert all(later < earlier for earlier, later in pairwise(shares[4:]))
    assert shares[50] == pytest.approx((1 + 0.05) / 2)
    assert rate_share(100, 100) == pytest.approx(0.05)
    assert rate_share(0, 1) == 1.0


@pytest.mark.parametrize("base", [small_base, graph_base])
def test_a_layer_learns_by_the_square_root_of_what_an_output_reads(base):
    """Counted from the weights that a single output depends on."""
    graph = base().graph
    factors = rate_factors(graph)
    inputs = {name: 128 / factor**2 for name, factor in factors.items() if name.endswith(".weight")}
    assert inputs
    for name, count in inputs.items():
        layer = graph.by_name[name.removesuffix(".weight")]
        outputs = len(graph.parameters[f"{layer.name}.bias"])
        assert count * outputs == pytest.approx(graph.parameters[name].numel())
        assert factors[f"{layer.name}.bias"] == 1.0


def test_narrow_weights_learn_faster():
    base, pool = small_base(), small_pool()
    moved = {}
    for bits in (2, 3, 4, FLOAT_BITS):
        widths = uniform(base.sites, bits, 8)
        factors = rate_factors(base.graph, widths)
        assert factors["mask_head.bias"] == WIDTH_FACTORS.get(bits, 1.0)
        before = initial_state(base, widths).parameters
        # Adam's first step moves every parameter by the learning rate.
        after = train_quantized(base, widths, pool, CONFIG, 1, 0).parameters
        moved[bits] = float((after["mask_head.weight"] - before["mask_head.weight"]).abs().median()) / CONFIG.learning_rate
    whole = rate_factors(base.graph)["mask_head.weight"]
    wanted = {bits: WIDTH_FACTORS.get(bits, 1.0) * whole for bits in moved}
    assert moved == {bits: pytest.approx(factor, rel=0.05) for bits, factor in wanted.items()}


def test_scales_of_wide_activations_stay():
    base, pool = small_base(), small_pool()
    for bits in (8, 16):
        widths = uniform(base.sites, 4, bits)
        before = initial_state(base, widths).parameters
        after = train_quantized(base, widths, pool, CONFIG, 2, 0).parameters
        scales = [f"{site}.scale" for site in base.sites.activations]
        # The logarithm is what is trained; it gives the scale back but for its last bit.
        assert {torch.allclose(before[name], after[name], rtol=1e-6, atol=0.0) for name in scales} == {bits == 16}
