import numpy as np
import pytest

from hw_models.breakdown import per_layer
from hw_models.compile import compile_target
from hw_models.cost import evaluate
from hw_models.errors import TargetError
from hw_models.plot import draw_layers, draw_one_more_bit, draw_roofline, one_more_bit
from hw_models.workload import WIDTHS, LayerKind
from tests.hw_models.networks import RUNNABLE_WIDTHS, TARGETS, tcn

every_target = pytest.mark.parametrize("name", TARGETS)


def compiled(name, *, streaming=False):
    network = tcn().streamed() if streaming else tcn()
    width = next(w for w in RUNNABLE_WIDTHS[name] if w >= 4)
    return compile_target(TARGETS[name], network), np.full(len(network.sites), width)


@every_target
def test_the_bars_of_a_block_add_up_to_its_layers(name):
    table, bits = compiled(name)
    panels = draw_layers(table, bits).axes
    assert len(panels) == 1 + (table.target.energy is not None)
    layers = per_layer(table, bits)
    heights = [bar.get_height() for bar in panels[0].patches]
    assert heights == pytest.approx([layer.latency_ms for layer in layers])
    tops = {}
    for bar in panels[0].patches:
        assert bar.get_y() == pytest.approx(tops.get(bar.get_x(), 0.0))
        tops[bar.get_x()] = bar.get_y() + bar.get_height()
    assert len(tops) == 6  # projection, four blocks, masks


@every_target
@pytest.mark.parametrize("streaming", [False, True])
def test_points_of_the_roofline_lie_under_every_roof(name, streaming):
    table, bits = compiled(name, streaming=streaming)
    panels = draw_roofline(table, bits).axes
    for axes in panels:
        points = np.concatenate([np.asarray(group.get_offsets()) for group in axes.collections])
        assert len(points) == sum(layer.kind is not LayerKind.ADD for layer in table.workload.layers)
        roofs = [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"]
        assert points[:, 1].max() <= max(roofs) * (1 + 1e-9)
        for line in axes.lines:
            if line.get_linestyle() == "-":
                x, y = line.get_xdata(), line.get_ydata()
                assert (points[:, 1] <= points[:, 0] * y[0] / x[0] * (1 + 1e-9)).all()
    bandwidths = [level for level in table.target.memory if level.bytes_per_cycle is not None]
    assert len(panels) == 1 or len(panels) <= len(bandwidths)


@every_target
def test_one_more_bit_is_the_difference_of_two_allocations(name):
    table, bits = compiled(name)
    added = one_more_bit(table, bits, "latency_ms")
    site = 2
    wider = bits.copy()
    wider[site] = WIDTHS[WIDTHS.index(bits[site]) + 1]
    both = evaluate(table, np.stack([bits, wider])).latency_ms
    assert added[site] == pytest.approx(both[1] - both[0], rel=1e-9, abs=1e-15)
    assert len(draw_one_more_bit(table, bits).axes) == len(set(table.metrics) - {"peak_activation_bytes", "occupancy"})


def test_a_site_that_cannot_be_wider_adds_nothing_known():
    table = compile_target(TARGETS["bitfusion"], tcn())
    bits = np.full(len(table.workload.sites), 8)
    assert np.isnan(one_more_bit(table, bits, "latency_ms")).all()


def test_an_unknown_metric_is_refused_with_those_there_are():
    table, bits = compiled("bitfusion")
    with pytest.raises(TargetError, match="no metric 'speed' on target 'bitfusion'; wanted one of latency_ms"):
        one_more_bit(table, bits, "speed")
