"""The picture of a search: quality against size."""

import textwrap
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hw_models.labels import Label, around, between, fix_layout, place_labels
from hwsearch.errors import UserError
from hwsearch.extensions import QUALITY_METRICS
from hwsearch.files.writing import atomic_write, check_writable
from hwsearch.results.candidates import CandidateTable
from hwsearch.results.query import Order, query
from hwsearch.search.objectives import DROP_CI95, QUALITY, SIZE, UTTERANCES
from hwsearch.separator.allocation import is_weight

SUFFIXES = (".png", ".svg", ".pdf")
BYTES_PER_KB = 1000.0
TITLE_LETTERS = 100
"""Longest line of the title."""

CANDIDATE_COLOUR = "#8a939d"
FRONT_COLOUR = "#0b5fa5"
UNIFORM_COLOUR = "#c2410c"
UNTRAINED_FRONT_COLOUR, UNTRAINED_UNIFORM_COLOUR = "#7fb2dc", "#eda67e"
REFERENCE_COLOUR = "#404040"
CHOSEN_COLOUR = "#f0b400"

FRONT_POINTS, UNIFORM_POINTS, CHOSEN_POINTS = 2.5, 5.5, 7.0
"""Half the width of each mark."""

ABOVE_LEFT_DEG, BELOW_RIGHT_DEG = 135.0, 315.0
"""Above and left of a front nothing is drawn."""


def check_plot(path: Path) -> None:
    """Refuse a file that no picture can be written to, before the work.

    Raises:
        UserError: another suffix, or no place to write.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: cannot draw a '{path.suffix}' file; wanted one of {', '.join(SUFFIXES)}")
    check_writable(path)


def plot_front(
    table: CandidateTable, path: Path, title: str, chosen: int | None, untrained: CandidateTable | None = None
) -> None:
    """Write `draw_front` to a file, in the format of its suffix.

    Raises:
        UserError: another suffix, no place to write, or no candidate to draw.
    """
    check_plot(path)
    atomic_write(path, partial(draw_front(table, title, chosen, untrained).savefig, dpi=160))


def draw_front(table: CandidateTable, title: str, chosen: int | None, untrained: CandidateTable | None = None) -> Figure:
    """Draw quality (SI-SNR improvement, dB) against a cost: every candidate, the front by number, the uniform allocations.

    The cost is the model size in kB, or the first objective that is a cost if size is no objective.

    The vertical axis covers the front, the uniform allocations, the chosen candidate and the full-precision network. The legend
    says how many candidates lie below it.

    Args:
        table: the candidates.
        title: the title.
        chosen: number of the candidate to mark, if the table holds it.
        untrained: scores of candidates without training. Their front and uniform allocations are drawn paler.

    Raises:
        UserError: no candidate to draw.
    """
    if len(table) == 0:
        raise UserError("no candidate to draw; wanted at least one")
    figure = Figure(figsize=(9.0, 6.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    order = Order(_cost(table), descending=False)
    front = query(table, order=order)
    uniform = table.take(table.uniform)
    marked = table.take(table.candidate == chosen)
    drawn = untrained is not None and len(untrained) > 0
    before = [query(untrained, order=order), untrained.take(untrained.uniform)] if untrained is not None and drawn else []
    bottom = _limit_quality(axes, table, [front, uniform, marked, *before])
    below = int((table.columns[QUALITY] < bottom).sum())
    name = _counted(len(table)) + (f" ({below} below the axis)" if below else "")
    axes.scatter(*_place(table), s=14, color=CANDIDATE_COLOUR, alpha=0.45, linewidths=0, zorder=2, label=name)
    if untrained is not None and before:
        _draw_untrained(axes, before, len(untrained))
    _draw_front_line(axes, front)
    _draw_marks(axes, uniform, marked)
    if QUALITY in table.reference:
        name = f"full precision, {table.reference[QUALITY]:.2f} dB"
        axes.axhline(table.reference[QUALITY], color=REFERENCE_COLOUR, linestyle=(0, (5, 4)), linewidth=1.0, zorder=1, label=name)
    full_title = f"{title}, scored at '{table.fidelity.value}'"
    axes.set_title(textwrap.fill(full_title, TITLE_LETTERS), loc="left", fontsize=11, fontweight="bold", parse_math=False)
    axes.set_xlabel(_cost_name(table))
    axes.set_ylabel(f"SI-SNR improvement (dB){_how_measured(table)}")
    axes.grid(visible=True, color="#e5e7eb", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.margins(x=0.06)
    axes.spines[["top", "right"]].set_visible(False)
    legend = figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    if left_out := _number(figure, axes, (front, uniform, marked), before):
        (name_of_front,) = (text for text in legend.get_texts() if text.get_text() == _front_name(front))
        name_of_front.set_text(f"{_front_name(front)} ({left_out} without room for a number)")
    return figure


def _limit_quality(axes: Axes, table: CandidateTable, shown: Sequence[CandidateTable]) -> float:
    """Set the vertical limits around the parts shown, with room above for numbers, and return the lower one."""
    quality = np.concatenate([part.columns[QUALITY] for part in shown])
    reference = table.reference.get(QUALITY, np.nan)
    low, high = float(np.nanmin(quality)), float(np.nanmax([*quality, reference]))
    margin = max(0.08 * (high - low), 0.1)
    axes.set_ylim(low - margin, high + 1.5 * margin)
    return low - margin


def _place(table: CandidateTable) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return costs, sizes in kB, and qualities in dB, [N] each."""
    column = _cost(table)
    return table.columns[column] / (BYTES_PER_KB if column == SIZE else 1.0), table.columns[QUALITY]


def _cost(table: CandidateTable) -> str:
    """Return the column of the horizontal axis."""
    costs = [objective.column for objective in table.objectives if objective.column not in QUALITY_METRICS]
    return SIZE if SIZE in costs or not costs else costs[0]


def _cost_name(table: CandidateTable) -> str:
    """Name the horizontal axis, such as `latency (ms) on ethos-u55-128`."""
    column = _cost(table)
    if column == SIZE:
        return "model size (kB)"
    metric, _, target = column.removesuffix("]").partition("[")
    name, _, unit = metric.rpartition("_")
    return f"{name or metric} ({unit}) on {target}" if name and target else column


def _draw_front_line(axes: Axes, front: CandidateTable) -> None:
    size, quality = _place(front)
    _draw_step(axes, front, color=FRONT_COLOUR, zorder=4, label=_front_name(front))
    if DROP_CI95 in front.columns:
        bars = front.columns[DROP_CI95]
        axes.errorbar(size, quality, yerr=bars, fmt="none", ecolor=FRONT_COLOUR, elinewidth=0.8, capsize=2, alpha=0.4, zorder=3)


def _draw_step(axes: Axes, front: CandidateTable, **style: Any) -> None:
    """Draw a front as a step: at each size, the best candidate that is no larger."""
    line = "-" if _is_step(front) else "none"
    size = 2 * FRONT_POINTS
    axes.plot(*_place(front), drawstyle="steps-post", linestyle=line, linewidth=1.4, marker="o", markersize=size, **style)


def _draw_untrained(axes: Axes, parts: Sequence[CandidateTable], compared: int) -> None:
    """Draw the front and the uniform allocations without training, of so many candidates."""
    front, uniform = parts
    name = f"without training: front of {compared} of these"
    _draw_step(axes, front, color=UNTRAINED_FRONT_COLOUR, markerfacecolor="white", zorder=2.5, label=name)
    if len(uniform):
        axes.scatter(
            *_place(uniform),
            s=2 * UNIFORM_POINTS**2,
            marker="D",
            facecolors="white",
            edgecolors=UNTRAINED_UNIFORM_COLOUR,
            linewidths=1.0,
            zorder=2.6,
            label="without training: uniform",
        )


def _draw_marks(axes: Axes, uniform: CandidateTable, chosen: CandidateTable) -> None:
    if len(uniform):
        axes.scatter(
            *_place(uniform),
            s=2 * UNIFORM_POINTS**2,  # a diamond is a square of this area, on its corner
            marker="D",
            facecolors="white",
            edgecolors=UNIFORM_COLOUR,
            linewidths=1.4,
            zorder=5,
            label="uniform",
        )
    if len(chosen):
        axes.plot(
            *_place(chosen),
            linestyle="none",
            marker="*",
            markersize=2 * CHOSEN_POINTS,
            markerfacecolor=CHOSEN_COLOUR,
            markeredgecolor="black",
            zorder=6,
            label=f"chosen: candidate {chosen.candidate[0]}",
        )


def _number(
    figure: Figure,
    axes: Axes,
    named: tuple[CandidateTable, CandidateTable, CandidateTable],
    others: Sequence[CandidateTable],
) -> int:
    """Label the front with numbers and uniform candidates with widths. Return how many labels have no room.

    Args:
        figure: the picture.
        axes: its axes.
        named: the front, the uniform candidates and the chosen one.
        others: other candidates that are drawn.
    """
    front, uniform, chosen = named
    fix_layout(figure)
    drawn = [
        around(axes, *_place(part), radius)
        for part, radius in (
            (front, FRONT_POINTS),
            (uniform, UNIFORM_POINTS),
            (chosen, CHOSEN_POINTS),
            *((other, UNIFORM_POINTS) for other in others),
        )
    ]
    if _is_step(front):
        size, quality = _place(front)
        drawn.append(between(axes, np.repeat(size, 2)[1:], np.repeat(quality, 2)[:-1]))
    rest = front.take(~np.isin(front.candidate, chosen.candidate))
    labels = [
        *_labels(chosen, chosen.candidate, ABOVE_LEFT_DEG, color=FRONT_COLOUR, fontweight="bold"),
        *_labels(uniform, _uniform_labels(uniform), BELOW_RIGHT_DEG, color=UNIFORM_COLOUR),
        *_labels(rest, rest.candidate, ABOVE_LEFT_DEG, color=FRONT_COLOUR),
    ]
    return place_labels(axes, labels, np.vstack(drawn))


def _labels(table: CandidateTable, names: Iterable[object], angle_deg: float, **style: str) -> list[Label]:
    return [Label(str(name), x, y, angle_deg, style) for name, x, y in zip(names, *_place(table), strict=True)]


def _is_step(front: CandidateTable) -> bool:
    """Whether the objectives are quality and the cost drawn alone. Other fronts lie scattered over the picture."""
    return {objective.column for objective in front.objectives} == {QUALITY, _cost(front)}


def _front_name(front: CandidateTable) -> str:
    return f"front, {_counted(len(front))}"


def _counted(number: int) -> str:
    return "1 candidate" if number == 1 else f"{number:,} candidates"


def _uniform_labels(uniform: CandidateTable) -> list[str]:
    """`4 bit` where all have the same activation width, else `W4 A8`."""
    weights = _free_width(uniform, of_weights=True)
    activations = _free_width(uniform, of_weights=False)
    if len(set(activations)) == 1:
        return [f"{bits} bit" for bits in weights]
    return [f"W{w} A{a}" for w, a in zip(weights, activations, strict=True)]


def _free_width(uniform: CandidateTable, *, of_weights: bool) -> list[int]:
    """The one width of the weights (or activations) that no pattern fixes, or of all if every one is fixed."""
    kind = [index for index, site in enumerate(uniform.sites) if is_weight(site) is of_weights]
    free = [index for index in kind if uniform.sites[index] not in uniform.fixed]
    widths: list[int] = uniform.widths[:, (free or kind)[0]].tolist()
    return widths


def _how_measured(table: CandidateTable) -> str:
    """Say on how many utterances the axis is measured, and what the bars are."""
    notes = []
    if UTTERANCES in table.columns:
        counts = np.unique(table.columns[UTTERANCES])
        notes.append(f"{counts[0]:.0f} utterances" if len(counts) == 1 else f"{counts[0]:.0f} or more utterances")
    if DROP_CI95 in table.columns:
        notes.append("bars: 95 % of the paired loss")
    return "\n" + ", ".join(notes) if notes else ""
