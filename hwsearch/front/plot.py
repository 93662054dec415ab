"""The picture of a search: quality against size."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from hwsearch.errors import UserError
from hwsearch.files import atomic_write
from hwsearch.front.candidates import CandidateTable
from hwsearch.front.query import Order, query
from hwsearch.search.objectives import DROP_CI95, QUALITY, SIZE, UTTERANCES
from hwsearch.separator.allocation import is_weight

SUFFIXES = (".png", ".svg", ".pdf")
BYTES_PER_KB = 1000.0

LABEL_DISTANCE = 0.05
"""Uniform candidates of one size that lie closer, as a share of the axis, get one label: the best one's."""

CANDIDATE_COLOUR = "#9aa3ad"
FRONT_COLOUR = "#0b5fa5"
UNIFORM_COLOUR = "#c2410c"
REFERENCE_COLOUR = "#404040"


def plot_front(table: CandidateTable, path: Path, title: str) -> None:
    """Draw quality against size and write it, in the format that the suffix of `path` names.

    Raises:
        UserError: another suffix, or no candidate to draw.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: cannot draw a '{path.suffix}' file; wanted one of {', '.join(SUFFIXES)}")
    figure = draw_front(table, title)
    atomic_write(path, lambda temporary: figure.savefig(temporary, dpi=160))


def draw_front(table: CandidateTable, title: str) -> Figure:
    """Quality (SI-SNR improvement, dB) against size (kB): every candidate, the front, the uniform
    allocations.

    The vertical axis covers the front, the uniform allocations and the full-precision network; how many
    candidates lie below it is said in the legend.

    Raises:
        UserError: no candidate to draw.
    """
    if len(table) == 0:
        raise UserError("the search has scored no candidate yet; wanted at least one to draw")
    figure = Figure(figsize=(8.0, 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    front = query(table, order=Order(SIZE, descending=False))
    uniform = table.take(table.uniform)
    bottom = _limit_quality(axes, table, front, uniform)
    _draw_candidates(axes, table, bottom)
    _draw_front_line(axes, front)
    _draw_uniform(axes, uniform)
    if QUALITY in table.reference:
        axes.axhline(
            table.reference[QUALITY],
            color=REFERENCE_COLOUR,
            linestyle=(0, (5, 4)),
            linewidth=1.0,
            zorder=1,
            label=f"full precision, {table.reference[QUALITY]:.2f} dB",
        )
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel("model size (kB)")
    axes.set_ylabel(f"SI-SNR improvement (dB){_how_measured(table)}")
    axes.grid(visible=True, color="#e5e7eb", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.margins(x=0.06)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=True, framealpha=0.9, edgecolor="none", fontsize=9)
    return figure


def _limit_quality(axes: Axes, table: CandidateTable, front: CandidateTable, uniform: CandidateTable) -> float:
    """Set the vertical limits; returns the lower one."""
    shown = np.concatenate([front.columns[QUALITY], uniform.columns[QUALITY]])
    reference = table.reference.get(QUALITY, np.nan)
    low, high = float(np.nanmin(shown)), float(np.nanmax([*shown, reference]))
    margin = max(0.08 * (high - low), 0.1)
    axes.set_ylim(low - margin, high + margin)
    return low - margin


def _draw_candidates(axes: Axes, table: CandidateTable, bottom: float) -> None:
    below = int((table.columns[QUALITY] < bottom).sum())
    axes.scatter(
        table.columns[SIZE] / BYTES_PER_KB,
        table.columns[QUALITY],
        s=12,
        color=CANDIDATE_COLOUR,
        alpha=0.45,
        linewidths=0,
        zorder=2,
        label=f"{len(table)} candidates" + (f" ({below} below the axis)" if below else ""),
    )


def _draw_front_line(axes: Axes, front: CandidateTable) -> None:
    size, quality = front.columns[SIZE] / BYTES_PER_KB, front.columns[QUALITY]
    # A step: what is available at a size is the best of all that are no larger.
    axes.plot(
        size,
        quality,
        drawstyle="steps-post",
        color=FRONT_COLOUR,
        linewidth=1.6,
        marker="o",
        markersize=4,
        zorder=4,
        label=f"front, {len(front)} candidates",
    )
    if DROP_CI95 in front.columns:
        axes.errorbar(
            size,
            quality,
            yerr=front.columns[DROP_CI95],
            fmt="none",
            ecolor=FRONT_COLOUR,
            elinewidth=0.8,
            capsize=2,
            alpha=0.4,
            zorder=3,
        )


def _draw_uniform(axes: Axes, uniform: CandidateTable) -> None:
    if len(uniform) == 0:
        return
    size, quality = uniform.columns[SIZE] / BYTES_PER_KB, uniform.columns[QUALITY]
    axes.scatter(
        size,
        quality,
        s=48,
        marker="D",
        facecolors="white",
        edgecolors=UNIFORM_COLOUR,
        linewidths=1.4,
        zorder=5,
        label="uniform",
    )
    bottom, top = axes.get_ylim()
    labelled: list[tuple[float, float]] = []
    labels = _uniform_labels(uniform)
    for row in np.argsort(-quality, kind="stable").tolist():
        x, y = float(size[row]), float(quality[row])
        if any(x == other_x and other_y - y < LABEL_DISTANCE * (top - bottom) for other_x, other_y in labelled):
            continue
        labelled.append((x, y))
        axes.annotate(
            labels[row],
            (x, y),
            xytext=(6, -5),
            textcoords="offset points",
            va="top",
            fontsize=8,
            color=UNIFORM_COLOUR,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
            zorder=6,
        )


def _uniform_labels(uniform: CandidateTable) -> list[str]:
    """`4 bit` where all have the same activation width, else `W4 A8`."""
    weights = _free_width(uniform, of_weights=True)
    activations = _free_width(uniform, of_weights=False)
    if len(set(activations)) == 1:
        return [f"{bits} bit" for bits in weights]
    return [f"W{w} A{a}" for w, a in zip(weights, activations, strict=True)]


def _free_width(uniform: CandidateTable, *, of_weights: bool) -> list[int]:
    """The one width of the weights (or activations) that no pattern fixes; of all if every one is fixed."""
    kind = [index for index, site in enumerate(uniform.sites) if is_weight(site) is of_weights]
    free = [index for index in kind if uniform.sites[index] not in uniform.fixed]
    widths: list[int] = uniform.widths[:, (free or kind)[0]].tolist()
    return widths


def _how_measured(table: CandidateTable) -> str:
    """The number of utterances and what the bars are, for the axis."""
    notes = []
    if UTTERANCES in table.columns:
        counts = np.unique(table.columns[UTTERANCES])
        notes.append(f"{counts[0]:.0f} utterances" if len(counts) == 1 else f"{counts[0]:.0f} or more utterances")
    if DROP_CI95 in table.columns:
        notes.append("bars: 95 % of the paired loss")
    return "\n" + ", ".join(notes) if notes else ""
