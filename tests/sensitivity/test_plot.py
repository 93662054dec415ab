"""Every site at every width has its colour, every site of an allocation its bar."""

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgba

from hwsearch.experiment import SeparatorConfig
from hwsearch.sensitivity.table import SensitivityTable
from hwsearch.separator.allocation import BitAllocation, is_weight
from hwsearch.view.sensitivity_plot import NOT_ABOVE_ZERO_COLOUR, draw_bits, draw_tables, save_figure
from tests.separator.small import all_sites, weight_sites

PAPER = SeparatorConfig(X=8, R=4)
SITES = ("input_proj.weight", "blocks.0.expand.weight", "features")


def make_table(method: str = "kl", sites: tuple[str, ...] = SITES, value: object = None) -> SensitivityTable:
    if value is None:
        value = np.random.default_rng(0).lognormal(0.0, 3.0, size=(len(sites), 3))
    return SensitivityTable(method, sites, (2, 4, 8), value, np.full(np.shape(value), math.nan), 4)


def test_each_table_has_a_panel_that_says_method_unit_and_mixtures() -> None:
    figure = draw_tables([make_table(), make_table("curvature")], "run")
    panels = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert [axes.get_title(loc="left") for axes in panels] == [
        "kl   (nats per frame, 4 mixtures)",
        "curvature   (dB times values, 4 mixtures)",
    ]
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["2", "4", "8"]
    assert [label.get_text() for label in panels[1].get_xticklabels()] == ["input_proj", "0 expand", "features"]


def test_values_above_zero_are_coloured_by_their_logarithm_others_are_grey_and_missing_ones_white() -> None:
    value = [[1.0, 1e-2, 1e-4], [1e-12, 0.0, -3.0], [math.nan, 1e-1, 1e-3]]
    panel = draw_tables([make_table(value=value)], "run").axes[0]
    grey, coloured = panel.images
    assert np.array_equal(grey.get_array().mask, ~(np.array(value).T <= 0))
    assert np.array_equal(coloured.get_array().mask, ~(np.array(value).T > 0))
    assert grey.cmap(0) == to_rgba(NOT_ABOVE_ZERO_COLOUR)
    # Equal ratios are equal steps; what lies far below the largest has the last colour.
    steps = coloured.norm(np.array([1.0, 1e-2, 1e-4, 1e-6, 1e-12]))
    np.testing.assert_allclose(steps, [1.0, 2 / 3, 1 / 3, 0.0, 0.0], atol=1e-6)


@pytest.mark.parametrize("value", [np.zeros((3, 3)), -np.ones((3, 3)), np.full((3, 3), 0.5)])
def test_a_table_without_a_span_of_values_is_drawn(tmp_path: Path, value: np.ndarray) -> None:
    save_figure(draw_tables([make_table(value=value)], "run"), tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [tmp_path / "map.png"]


def test_the_names_of_229_sites_do_not_touch() -> None:
    sites = all_sites(PAPER)
    assert len(sites) == 229
    figure = draw_tables([make_table(sites=sites)], "run")
    figure.canvas.draw()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_xticklabels()]
    assert len(boxes) == 229
    assert all(left.x1 <= right.x0 for left, right in pairwise(boxes))


def test_a_bar_is_as_high_as_its_sites_bits() -> None:
    rng = np.random.default_rng(0)
    allocations = {
        name: BitAllocation.of({site: int(rng.choice([4, 6, 8])) for site in all_sites(PAPER)}) for name in ("64.0 kB", "99.5 kB")
    }
    sites = weight_sites(PAPER)
    figure = draw_bits(allocations, sites, "run")
    for panel, (name, allocation) in zip(figure.axes, allocations.items(), strict=True):
        bits = [allocation.by_site[site] for site in sites]
        assert [bar.get_height() for bar in panel.patches] == bits
        assert panel.get_title(loc="left") == f"{name}, mean {np.mean(bits):.2f} bits"
    colours = {site.split(".")[-2]: bar.get_facecolor() for site, bar in zip(sites, figure.axes[0].patches, strict=True)}
    assert len(set(colours.values())) == 4
    assert colours["input_proj"] == colours["mask_head"]


def test_layers_of_any_network_have_names_and_colours() -> None:
    sites = ("stem.weight", "down.0.conv.weight", "down.0.norm.weight", "up.0.conv.weight", "up.0.conv.output")
    (panel,) = draw_bits({"run": BitAllocation.of(dict.fromkeys(sites, 4))}, sites, "run").axes
    wanted = ["stem", "down 0 conv", "down 0 norm", "up 0 conv", "up 0 conv out"]
    assert [label.get_text() for label in panel.get_xticklabels()] == wanted
    stem, conv, norm, other_conv, activation = (bar.get_facecolor() for bar in panel.patches)
    assert conv == other_conv
    assert len({stem, conv, norm, activation}) == 4
    assert {text.get_text() for text in panel.get_legend().get_texts()} == {"other layers", "conv", "norm", "activations"}


def test_more_kinds_of_layers_than_colours_share_the_last() -> None:
    sites = tuple(f"block.layer{index}.weight" for index in range(9))
    (panel,) = draw_bits({"run": BitAllocation.of(dict.fromkeys(sites, 4))}, sites, "run").axes
    assert len({bar.get_facecolor() for bar in panel.patches}) == 7
    assert panel.get_legend().get_texts()[-1].get_text() == "other layers"


def test_bits_are_drawn_into_one_file(tmp_path: Path) -> None:
    allocation = BitAllocation.of({site: 2 if is_weight(site) else 8 for site in SITES})
    save_figure(draw_bits({"1.0 kB": allocation}, SITES, "run"), tmp_path / "bits.png")
    assert (tmp_path / "bits.png").read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [tmp_path / "bits.png"]
