from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

from hwsearch.errors import UserError
from hwsearch.results.candidates import CandidateTable
from hwsearch.results.query import query
from hwsearch.search.objectives import QUALITY as QUALITY_COLUMN
from hwsearch.search.objectives import objectives_of
from hwsearch.view.front_plot import draw_front, plot_front
from tests.results.tables import make_table

SIZE = [1000.0, 2000.0, 3000.0, 4000.0]
QUALITY = [4.0, 8.0, 7.0, 10.0]
TABLE = make_table(QUALITY, SIZE, drop_ci95_db=[0.1, 0.2, 0.3, 0.4], utterances=[16.0, 16.0, 16.0, 16.0])


def scatters(figure: Figure) -> list[PathCollection]:
    return [artist for artist in figure.axes[0].collections if isinstance(artist, PathCollection)]


def legend(figure: Figure) -> list[str]:
    (found,) = figure.legends
    return [text.get_text() for text in found.get_texts()]


def test_every_candidate_is_a_point_in_kilobytes_and_decibels() -> None:
    points = np.asarray(scatters(draw_front(TABLE, "run", 2))[0].get_offsets())
    np.testing.assert_array_equal(points, np.stack([np.array(SIZE) / 1000, QUALITY], axis=1))


def test_the_front_is_a_step_line_through_the_non_dominated() -> None:
    (line, *_) = draw_front(TABLE, "run", 2).axes[0].lines
    assert line.get_drawstyle() == "steps-post"
    np.testing.assert_array_equal(line.get_xydata(), [[1.0, 4.0], [2.0, 8.0], [4.0, 10.0]])


def test_the_bars_are_the_confidence_intervals_of_the_front() -> None:
    (bars, *_) = draw_front(TABLE, "run", 2).axes[0].containers
    segments = bars.lines[2][0].get_segments()
    np.testing.assert_allclose([np.ptp(segment[:, 1]) / 2 for segment in segments], [0.1, 0.2, 0.4])


def test_uniform_candidates_are_marked_and_labelled_by_width() -> None:
    figure = draw_front(TABLE, "run", None)
    np.testing.assert_array_equal(np.asarray(scatters(figure)[1].get_offsets()), [[1.0, 4.0]])
    assert "4 bit" in [text.get_text() for text in figure.axes[0].texts]
    table = make_table([4.0, 9.96, 10.0, 8.0], [1000.0] * 4)
    table.uniform[:] = True
    table.widths[:] = [[4, 4, 6], [4, 4, 7], [4, 4, 8], [4, 4, 5]]
    texts = [text.get_text() for text in draw_front(table, "run", None).axes[0].texts]
    assert sorted(texts) == ["3", "W4 A5", "W4 A6", "W4 A7", "W4 A8"]


def test_the_candidates_of_the_front_are_numbered_beside_their_points() -> None:
    (axes,) = draw_front(TABLE, "run", None).axes
    numbers = {text.get_text(): text.xy for text in axes.texts if isinstance(text, Annotation)}
    assert {name: place for name, place in numbers.items() if name.isdigit()} == {
        "1": (1.0, 4.0),
        "2": (2.0, 8.0),
        "4": (4.0, 10.0),
    }


@pytest.mark.parametrize("number", [2, 3])
def test_the_chosen_candidate_is_marked_and_named_on_the_front_or_off_it(number: int) -> None:
    figure = draw_front(TABLE, "run", number)
    (star,) = [line for line in figure.axes[0].lines if line.get_marker() == "*"]
    np.testing.assert_array_equal(star.get_xydata(), [[SIZE[number - 1] / 1000, QUALITY[number - 1]]])
    assert f"chosen: candidate {number}" in legend(figure)
    assert str(number) in [text.get_text() for text in figure.axes[0].texts]


@pytest.mark.parametrize("chosen", [None, 99])
def test_a_chosen_candidate_that_is_not_drawn_is_not_marked(chosen: int | None) -> None:
    figure = draw_front(TABLE, "run", chosen)
    assert not [line for line in figure.axes[0].lines if line.get_marker() == "*"]
    assert not [name for name in legend(figure) if "chosen" in name]


def test_scores_without_training_are_drawn_beside_those_with_it() -> None:
    untrained = make_table([1.0, 7.5, 6.0], SIZE[:3])
    figure = draw_front(TABLE, "run", 2, untrained)
    (axes,) = figure.axes
    (line,) = [line for line in axes.lines if line.get_label() == "without training: front of 3 of these"]
    assert line.get_drawstyle() == "steps-post"
    np.testing.assert_array_equal(line.get_xydata(), [[1.0, 1.0], [2.0, 7.5]])
    (uniform,) = [found for found in scatters(figure) if found.get_label() == "without training: uniform"]
    np.testing.assert_array_equal(np.asarray(uniform.get_offsets()), [[1.0, 1.0]])
    assert {"without training: front of 3 of these", "without training: uniform"} <= set(legend(figure))
    assert axes.get_ylim()[0] < 1.0
    for none in (None, untrained.take(np.array([], dtype=np.intp))):
        assert not [name for name in legend(draw_front(TABLE, "run", 2, none)) if "without training" in name]


def test_a_front_of_other_objectives_is_no_line() -> None:
    objectives = objectives_of([QUALITY_COLUMN, "latency", "size_bytes"])
    table = replace(make_table(QUALITY, SIZE, latency=[4.0, 3.0, 2.0, 1.0]), objectives=objectives)
    axes = draw_front(table, "run", None).axes[0]
    assert axes.lines[0].get_linestyle() == "None"
    assert axes.get_xlabel() == "model size (kB)"


def test_a_front_against_a_cost_of_a_chip_is_drawn_against_it() -> None:
    column = "latency_ms[cortex-m7-cmsis-nn]"
    table = make_table([10.0, 9.0, 8.0, 7.0], SIZE, **{column: [4.0, 3.0, 3.5, 1.0]})
    axes = draw_front(replace(table, objectives=objectives_of([QUALITY_COLUMN, column])), "run", None).axes[0]
    assert axes.get_xlabel() == "latency (ms) on cortex-m7-cmsis-nn"
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), [[1.0, 7.0], [3.0, 9.0], [4.0, 10.0]])
    assert axes.lines[0].get_drawstyle() == "steps-post"


@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_labels_cover_neither_each_other_nor_a_mark_nor_the_frame(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 30))
    coordinate = st.lists(st.integers(0, 60), min_size=count, max_size=count)
    table = make_table([float(value) for value in data.draw(coordinate)], [1000.0 + 7 * value for value in data.draw(coordinate)])
    table.uniform[: count // 3] = True
    table.widths[:, 0] = np.arange(count)
    chosen = data.draw(st.integers(1, count))
    figure = draw_front(table, "run", chosen)
    assert_clear(figure, table, chosen)


def test_what_has_no_room_for_a_number_is_counted() -> None:
    size = np.linspace(1000, 2000, 150)
    table = make_table((size / 100).tolist(), size.tolist())
    figure = draw_front(table, "run", 75)
    assert_clear(figure, table, 75)
    numbers = [text.get_text() for text in figure.axes[0].texts if text.get_text().isdigit()]
    assert 20 < len(numbers) < 150
    # One label is left for the uniform candidate.
    assert f"front, 150 candidates ({150 - len(numbers)} without room for a number)" in legend(figure)
    assert "75" in numbers


def assert_clear(figure: Figure, table: CandidateTable, chosen: int) -> None:
    """No label shares room with another, with a mark, with the frame, or with the picture's edge, once all is drawn."""
    figure.canvas.draw()
    (axes,) = figure.axes
    labels = [Text.get_window_extent(text) for text in axes.texts]
    for one, other in combinations(labels, 2):
        assert not overlap(one, other)
    front = query(table)
    shown = np.flatnonzero(np.isin(table.candidate, front.candidate) | table.uniform | (table.candidate == chosen))
    marks = axes.transData.transform(np.stack([table.columns["size_bytes"] / 1000, table.columns[QUALITY_COLUMN]], axis=1)[shown])
    for label in labels:
        assert not any(label.x0 < x < label.x1 and label.y0 < y < label.y1 for x, y in marks)
        frame = axes.get_window_extent()
        assert frame.x0 <= label.x0 <= label.x1 <= frame.x1
        assert frame.y0 <= label.y0 <= label.y1 <= frame.y1
    (words,) = figure.legends
    for outer in (words.get_window_extent(), axes.get_tightbbox()):
        assert outer is not None
        assert figure.bbox.x0 <= outer.x0 <= outer.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= outer.y0 <= outer.y1 <= figure.bbox.y1
    assert not overlap(words.get_window_extent(), axes.get_window_extent())


def overlap(one: Bbox, other: Bbox) -> bool:
    return min(one.x1, other.x1) > max(one.x0, other.x0) and min(one.y1, other.y1) > max(one.y0, other.y0)


def test_the_axes_say_what_they_measure_and_over_how_many_utterances() -> None:
    figure = draw_front(TABLE, "run", 2)
    (axes,) = figure.axes
    assert axes.get_xlabel() == "model size (kB)"
    assert axes.get_ylabel() == "SI-SNR improvement (dB)\n16 utterances, bars: 95 % of the paired loss"
    assert axes.get_title(loc="left") == "run, scored at 'post-training'"
    assert "full precision, 12.00 dB" in legend(figure)


def test_candidates_too_poor_to_show_are_counted() -> None:
    table = make_table([4.0, 8.0, -90.0], [1000.0, 2000.0, 3000.0])
    figure = draw_front(table, "run", None)
    assert figure.axes[0].get_ylim()[0] > -10
    assert "3 candidates (1 below the axis)" in legend(figure)


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF"), (".PNG", b"\x89PNG")])
def test_the_suffix_chooses_the_format_and_nothing_else_is_left(tmp_path: Path, suffix: str, magic: bytes) -> None:
    path = tmp_path / f"front{suffix}"
    plot_front(TABLE, path, "run", 2)
    assert path.read_bytes().startswith(magic)
    assert list(tmp_path.iterdir()) == [path]


def test_other_suffixes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot draw a '.gif' file; wanted one of .png, .svg, .pdf"):
        plot_front(TABLE, tmp_path / "front.gif", "run", None)


def test_nothing_to_draw_is_said(tmp_path: Path) -> None:
    empty = make_table([], [])
    empty.columns.clear()
    with pytest.raises(UserError, match="no candidate to draw"):
        plot_front(empty, tmp_path / "front.png", "run", None)
    assert not list(tmp_path.iterdir())
