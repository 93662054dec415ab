from itertools import combinations

import numpy as np
import pytest
from matplotlib.text import Text

from hw_models.breakdown import per_layer
from hw_models.compile import compile_target
from hw_models.cost import evaluate
from hw_models.errors import TargetError
from hw_models.figures import significant
from hw_models.plot import draw_layers, draw_one_more_bit, draw_roofline, one_more_bit
from hw_models.workload import WIDTHS, LayerKind
from tests.hw_models.networks import RUNNABLE_WIDTHS, TARGETS, tcn

every_target = pytest.mark.parametrize("name", TARGETS)
FEW = ("bitfusion", "ethos-u55-128", "finn-pynq-z2", "nvidia-t4")
"""Targets of every kind."""


def compiled(name, *, streaming=False):
    network = tcn().streamed() if streaming else tcn()
    width = next(w for w in RUNNABLE_WIDTHS[name] if w >= 4)
    return compile_target(TARGETS[name], network), np.full(len(network.sites), width)


@every_target
def test_the_bars_of_a_block_add_up_to_its_layers(name):
    table, bits = compiled(name)
    panels = draw_layers(table, bits).axes
    layers = per_layer(table, bits)
    # An FPGA's energy is known of the whole alone.
    assert len(panels) == 1 + (table.target.energy is not None and table.dataflow is None)
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


def mixed(name):
    """A target at widths that vary from site to site."""
    table, bits = compiled(name)
    weights = len(table.workload.weight_sites)
    bits[:weights] = np.resize([width for width in RUNNABLE_WIDTHS[name] if width <= 8], weights)
    return table, bits


def written(axes):
    """Boxes of every text of a panel that is seen."""
    texts = [*axes.texts, axes.xaxis.label, axes.yaxis.label, axes._left_title]
    for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        ticks = [tick for tick in axis.get_major_ticks() if min(limits) <= tick.get_loc() <= max(limits)]
        texts += [tick.label1 for tick in ticks if tick.label1.get_visible()]
    return [Text.get_window_extent(text) for text in texts if text.get_text()]


@pytest.mark.parametrize("name", [name if name in FEW else pytest.param(name, marks=pytest.mark.slow) for name in TARGETS])
@pytest.mark.parametrize("draw", [draw_layers, draw_roofline, draw_one_more_bit])
@pytest.mark.filterwarnings("error")
def test_no_text_or_legend_of_a_picture_covers_another_or_is_cut_off(name, draw):
    figure = draw(*mixed(name))
    figure.canvas.draw()
    legends = [legend.get_window_extent() for legend in figure.legends]
    boxes = [box for axes in figure.axes for box in written(axes)] + legends + [figure._suptitle.get_window_extent()]
    for one, other in combinations(boxes, 2):
        apart = one.x1 <= other.x0 or other.x1 <= one.x0 or one.y1 <= other.y0 or other.y1 <= one.y0
        assert apart, (one, other)
    for box in boxes:
        assert -1 <= box.x0 <= box.x1 <= figure.bbox.x1 + 1
        assert -1 <= box.y0 <= box.y1 <= figure.bbox.y1 + 1
    for legend in legends:
        assert all(legend.y1 <= axes.get_window_extent().y0 for axes in figure.axes)


@every_target
def test_the_axes_of_a_roofline_have_two_numbers_at_least(name):
    table, bits = compiled(name)
    for axes in draw_roofline(table, bits).axes:
        for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            assert sum(low <= tick <= high for tick in axis.get_majorticklocs()) >= 2


@every_target
def test_every_bound_has_a_sign_of_its_own_without_colour(name):
    table, bits = compiled(name)
    bounds = {layer.bound for layer in per_layer(table, bits)}
    figure = draw_layers(table, bits)
    hatches = {bar.get_hatch() for bar in figure.axes[0].patches}
    assert len(hatches) == len(bounds) == len(figure.legends[0].get_texts())
    arithmetic = {layer.bound for layer in per_layer(table, bits) if layer.macs}
    named = [
        text.get_text().removeprefix("bound by ").partition(":")[0] for text in draw_roofline(table, bits).legends[0].get_texts()
    ]
    assert arithmetic == set(named) & bounds


@every_target
def test_every_roof_of_the_roofline_names_its_widths(name):
    table, bits = mixed(name)
    executed = {(one.executed.weight_bits, one.executed.activation_bits) for one in per_layer(table, bits) if one.macs}
    for axes in draw_roofline(table, bits).axes:
        roofs = {line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"}
        assert {text.xy[1] for text in axes.texts} == roofs
        words = [word for text in axes.texts for word in text.get_text().replace(",", "").split()]
        assert {word for word in words if word[0] == "w"} == {f"w{weight}" for weight, _ in executed}
        assert {word for word in words if word[0] == "a"} == {f"a{activation}" for _, activation in executed}


def test_what_no_bit_more_changes_is_said():
    table = compile_target(TARGETS["bitfusion"], tcn())
    bits = np.full(len(table.workload.sites), 8)
    for axes in draw_one_more_bit(table, bits).axes:
        assert [text.get_text() for text in axes.texts] == ["no site can be wider"]


def test_the_energy_of_layers_that_work_at_once_is_no_bar():
    table, bits = compiled("finn-pynq-z2")
    (panel,) = draw_layers(table, bits).axes
    total = evaluate(table, bits[None]).latency_ms[0]
    assert panel.get_title(loc="left") == f"{significant(total)} ms in all; the layers work at once"
