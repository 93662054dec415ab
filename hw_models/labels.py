"""Labels in a plot that cover neither each other nor drawn elements."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation, Text

Boxes = npt.NDArray[np.float64]
"""Rectangles `[boxes, 4]` in pixels: left, bottom, right, top."""

_DISTANCES: Final = (5.0, 9.0, 14.0, 22.0, 32.0, 45.0, 60.0)
"""Distances between a point and its label, in points."""
_JOINED_FROM: Final = 14.0
"""From this distance, a thin line joins point and label."""
_ANGLES: Final = 24
_GAP: Final = 1.0
"""Margin around a label, in points."""
_THICK: Final = 1.0
"""Width of a drawn line, in points."""
_STEP: Final = 3.0
"""Distance between the boxes that represent a thin line, in points."""
_STEPS_OUT: Final = 2
"""Number of these boxes that may cover drawn elements, because a line begins at a point."""


@dataclass(frozen=True)
class Label:
    """A text at a point.

    Attributes:
        text: the text.
        x: data coordinate of the point.
        y: data coordinate of the point.
        towards_deg: preferred direction of the label: 0 is right of the point, 90 above it.
        style: properties of the text, such as `color`.
    """

    text: str
    x: float
    y: float
    towards_deg: float
    style: dict[str, Any] = field(default_factory=dict)


def fix_layout(figure: Figure) -> None:
    """Lay out a figure once and for all, so that pixel positions stay valid."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def around(axes: Axes, x: npt.ArrayLike, y: npt.ArrayLike, radius: float) -> Boxes:
    """Boxes around data points; `radius` is half their width in points."""
    centres = axes.transData.transform(np.column_stack([x, y]))
    half = _scale(axes) * radius
    return np.hstack([centres - half, centres + half])


def between(axes: Axes, x: npt.ArrayLike, y: npt.ArrayLike) -> Boxes:
    """Boxes that span successive data points: the horizontal and vertical pieces of a line."""
    ends = axes.transData.transform(np.column_stack([x, y]))
    half = _scale(axes) * _THICK / 2
    return np.hstack([np.minimum(ends[:-1], ends[1:]) - half, np.maximum(ends[:-1], ends[1:]) + half])


def place_labels(axes: Axes, labels: Sequence[Label], drawn: Boxes) -> int:
    """Write each label at the nearest free place beside its point; labels without one are left out.

    Args:
        axes: the axes of the points, with a fixed layout.
        labels: in order of priority.
        drawn: boxes that labels must not cover.

    Returns:
        The number of labels left out.
    """
    written = np.empty((0, 4))
    left_out = 0
    for label in labels:
        annotation = _write(axes, label)
        box = Text.get_window_extent(annotation)  # that of an annotation holds its line, too
        place = _free_place(axes, label, np.array([box.width, box.height]) / 2, drawn, written)
        if place is None:
            annotation.remove()
            left_out += 1
            continue
        annotation.set_position(tuple(place.offset / _scale(axes)))
        if annotation.arrow_patch is not None:
            annotation.arrow_patch.set_visible(len(place.line) > 0)
        written = np.vstack([written, place.box[None], place.line])
    return left_out


@dataclass(frozen=True, eq=False)
class _Place:
    """A place for a label, in pixels."""

    offset: npt.NDArray[np.float64]
    """Offset of the label's centre from the point."""
    box: npt.NDArray[np.float64]
    line: Boxes
    """Boxes of the line to the point; empty without a line."""


def _free_place(axes: Axes, label: Label, half: npt.NDArray[np.float64], drawn: Boxes, written: Boxes) -> _Place | None:
    """The free place nearest to a point for a label of half width and height `half` `[2]`."""
    point, scale = axes.transData.transform((label.x, label.y)), _scale(axes)
    inside = np.array(axes.get_window_extent().extents)
    turns = np.arange(_ANGLES) * 360.0 / _ANGLES
    turns = np.deg2rad(label.towards_deg + turns[np.argsort(np.minimum(turns, 360.0 - turns), kind="stable")])
    ways = np.tile(np.column_stack([np.cos(turns), np.sin(turns)]), (len(_DISTANCES), 1))
    distances = np.repeat(_DISTANCES, _ANGLES)
    offsets = ways * (distances * scale + np.abs(ways) @ half)[:, None]
    reach = half + _GAP * scale
    boxes = np.hstack([point + offsets - reach, point + offsets + reach])
    within = (boxes[:, :2] >= inside[:2]).all(axis=1) & (boxes[:, 2:] <= inside[2:]).all(axis=1)
    for place in np.flatnonzero(within & ~_touch(boxes, np.vstack([drawn, written]))).tolist():
        along = np.arange(_STEP, distances[place], _STEP)[:, None] * scale * ways[place]
        line = np.hstack([point + along - scale / 2, point + along + scale / 2])
        if distances[place] < _JOINED_FROM:
            line = line[:0]
        if not _touch(line, written).any() and not _touch(line[_STEPS_OUT:], drawn).any():
            return _Place(offsets[place], boxes[place], line)
    return None


def _touch(some: Boxes, others: Boxes) -> npt.NDArray[np.bool_]:
    """`[some]`: which boxes overlap any of `others`."""
    mine, theirs = some[:, None], others[None]
    apart = (
        (mine[..., 0] >= theirs[..., 2])
        | (mine[..., 2] <= theirs[..., 0])
        | (mine[..., 1] >= theirs[..., 3])
        | (mine[..., 3] <= theirs[..., 1])
    )
    return np.asarray(~apart.all(axis=1), np.bool_)


def _write(axes: Axes, label: Label) -> Annotation:
    style: dict[str, Any] = {"fontsize": 7.5, **label.style}
    return axes.annotate(
        label.text,
        (label.x, label.y),
        xytext=(0, 0),
        textcoords="offset points",
        ha="center",
        va="center",
        arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": "0.45", "shrinkA": 0, "shrinkB": 3},
        path_effects=[withStroke(linewidth=2.0, foreground="white")],
        zorder=8,
        **style,
    )


def _scale(axes: Axes) -> float:
    """Pixels per point."""
    return axes.figure.dpi / 72.0
