from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from hwsearch.errors import UserError
from hwsearch.front.plot import draw_front, plot_front
from tests.front.tables import make_table

SIZE = [1000.0, 2000.0, 3000.0, 4000.0]
QUALITY = [4.0, 8.0, 7.0, 10.0]
TABLE = make_table(QUALITY, SIZE, drop_ci95_db=[0.1, 0.2, 0.3, 0.4], utterances=[16.0, 16.0, 16.0, 16.0])


def scatters(figure: Figure) -> list[PathCollection]:
    return [artist for artist in figure.axes[0].collections if isinstance(artist, PathCollection)]


def test_every_candidate_is_a_point_in_kilobytes_and_decibels() -> None:
    points = np.asarray(scatters(draw_front(TABLE, "run"))[0].get_offsets())
    np.testing.assert_array_equal(points, np.stack([np.array(SIZE) / 1000, QUALITY], axis=1))


def test_the_front_is_a_step_line_through_the_non_dominated() -> None:
    (line, *_) = draw_front(TABLE, "run").axes[0].lines
    assert line.get_drawstyle() == "steps-post"
    np.testing.assert_array_equal(line.get_xydata(), [[1.0, 4.0], [2.0, 8.0], [4.0, 10.0]])


def test_the_bars_are_the_confidence_intervals_of_the_front() -> None:
    (bars, *_) = draw_front(TABLE, "run").axes[0].containers
    segments = bars.lines[2][0].get_segments()
    np.testing.assert_allclose([np.ptp(segment[:, 1]) / 2 for segment in segments], [0.1, 0.2, 0.4])


def test_uniform_candidates_are_marked_and_labelled_by_width() -> None:
    figure = draw_front(TABLE, "run")
    np.testing.assert_array_equal(np.asarray(scatters(figure)[1].get_offsets()), [[1.0, 4.0]])
    assert [text.get_text() for text in figure.axes[0].texts] == ["4 bit"]


def test_uniform_candidates_that_would_cover_each_others_labels_share_one() -> None:
    table = make_table([4.0, 9.96, 10.0, 8.0], [1000.0] * 4)
    table.uniform[:] = True
    table.widths[:] = [[4, 4, 6], [4, 4, 7], [4, 4, 8], [4, 4, 5]]
    texts = draw_front(table, "run").axes[0].texts
    assert [text.get_text() for text in texts] == ["W4 A8", "W4 A5", "W4 A6"]


def test_the_axes_say_what_they_measure_and_over_how_many_utterances() -> None:
    (axes,) = draw_front(TABLE, "run").axes
    assert axes.get_xlabel() == "model size (kB)"
    assert axes.get_ylabel() == "SI-SNR improvement (dB)\n16 utterances, bars: 95 % of the paired loss"
    assert axes.get_title(loc="left") == "run"
    assert "full precision, 12.00 dB" in [text.get_text() for text in axes.get_legend().get_texts()]


def test_candidates_too_poor_to_show_are_counted() -> None:
    table = make_table([4.0, 8.0, -90.0], [1000.0, 2000.0, 3000.0])
    (axes,) = draw_front(table, "run").axes
    assert axes.get_ylim()[0] > -10
    assert "3 candidates (1 below the axis)" in [text.get_text() for text in axes.get_legend().get_texts()]


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF"), (".PNG", b"\x89PNG")])
def test_the_suffix_chooses_the_format_and_nothing_else_is_left(tmp_path: Path, suffix: str, magic: bytes) -> None:
    path = tmp_path / f"front{suffix}"
    plot_front(TABLE, path, "run")
    assert path.read_bytes().startswith(magic)
    assert list(tmp_path.iterdir()) == [path]


def test_other_suffixes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot draw a '.gif' file; wanted one of .png, .svg, .pdf"):
        plot_front(TABLE, tmp_path / "front.gif", "run")


def test_nothing_to_draw_is_said(tmp_path: Path) -> None:
    empty = make_table([], [])
    empty.columns.clear()
    with pytest.raises(UserError, match="scored no candidate yet"):
        plot_front(empty, tmp_path / "front.png", "run")
