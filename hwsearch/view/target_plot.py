"""One candidate on all targets, as a picture."""

import textwrap
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import StrMethodFormatter

from hw_models.figures import significant
from hwsearch.errors import UserError
from hwsearch.files.writing import atomic_write
from hwsearch.view.front_plot import check_plot
from hwsearch.view.targets import share_percent
from hwsearch.workflow.targets import AllTargets, OnTarget

REAL_TIME_MS: Final = 1000.0
TITLE_LETTERS: Final = 100
FITS_COLOUR, NO_FIT_COLOUR, LINE_COLOUR = "#0b5fa5", "#c2410c", "#404040"
MARKERS: Final = {"measurements": "o", "simulator": "D", "nothing": "x"}
NAMES: Final = {
    "measurements": "at least half checked on a chip",
    "simulator": "at least half checked by a simulator",
    "nothing": "less than half checked",
}
TEXTS: Final = (("sure, %", 1.07), ("mJ", 1.17), ("kB", 1.27), ("live, x", 1.38))
"""Headings of the numbers on the right, and where they end, as shares of the width of the axes."""


def plot_targets(found: AllTargets, path: Path) -> None:
    """Write `draw_targets` to a file, in the format of its suffix.

    Raises:
        UserError: another suffix, no place to write, or no target that runs the candidate.
    """
    check_plot(path)
    atomic_write(path, partial(draw_targets(found).savefig, dpi=160, bbox_inches="tight", format=path.suffix[1:].lower()))


def draw_targets(found: AllTargets) -> Figure:
    """Draw the latency of a candidate on every target that runs it, the fastest on top, with bars to the largest error.

    Marks say what the latency was checked by, and colours whether the candidate fits. A line stands at real time.

    Raises:
        UserError: no target runs the candidate.
    """
    rows = [row for row in found.rows if row.latency_ms is not None]
    if not rows:
        raise UserError(f"no target runs candidate {found.candidate}; wanted at least one to draw")
    figure = Figure(figsize=(10.0, 1.8 + 0.29 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for place, row in enumerate(rows):
        _draw_row(axes, place, row)
    for heading, at in TEXTS:
        _write(axes, heading, at, -1.0)
    axes.axvline(REAL_TIME_MS, color=LINE_COLOUR, linestyle=(0, (5, 4)), linewidth=1.0, zorder=1)
    axes.set(xscale="log", xlabel="latency for a second of sound (ms)", ylim=(len(rows) - 0.4, -0.6))
    axes.set_yticks(range(len(rows)), [row.target for row in rows], fontsize=9)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
    axes.grid(visible=True, axis="x", color="#e5e7eb", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    title = f"{found.run}, candidate {found.candidate}, a file of {found.size_bytes / 1000:,.0f} kB, on {len(rows)} targets"
    figure.suptitle(textwrap.fill(title, TITLE_LETTERS), fontsize=11, fontweight="bold", parse_math=False)
    figure.legend(handles=_legend(rows), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _draw_row(axes: Axes, place: int, row: OnTarget) -> None:
    """Draw the mark and the bar of one target, and its numbers on the right."""
    latency, colour = row.latency_ms or np.nan, FITS_COLOUR if row.fits else NO_FIT_COLOUR
    if row.latency_low_ms is not None:
        # Without an upper end, the bar stays on its side.
        ends = [[latency - row.latency_low_ms], [(row.latency_high_ms or latency) - latency]]
        axes.errorbar([latency], [place], xerr=np.maximum(ends, 0.0), fmt="none", ecolor=colour, elinewidth=1.2, capsize=3)
    known = _known_from(row)
    hollow = "white" if known == "simulator" else colour
    axes.plot([latency], [place], MARKERS[known], color=colour, markerfacecolor=hollow, markersize=6.5, zorder=4)
    memory = (row.weight_bytes or 0) + (row.peak_activation_bytes or 0)
    live, energy = row.streaming_real_time_factor, row.energy_uj
    numbers = (
        share_percent(row.checked_share or 0.0),
        "-" if energy is None else significant(energy / 1000, 3),
        f"{-(-memory // 1000):,}",
        "-" if live is None else significant(live, 2),
    )
    for number, (_, at) in zip(numbers, TEXTS, strict=True):
        _write(axes, number, at, place)


def _known_from(row: OnTarget) -> str:
    """What the mark stands for: the reference of the latency, or `nothing` if too little was compared with it for an interval."""
    return "nothing" if row.latency_low_ms is None else row.checked_against


def _write(axes: Axes, text: str, across: float, place: float) -> None:
    """Write a number or heading to the right of the axes; `across` is where it ends."""
    axes.text(across, place, text, transform=axes.get_yaxis_transform(), ha="right", va="center", fontsize=8.5)


def _legend(rows: list[OnTarget]) -> list[Line2D]:
    seen = {_known_from(row) for row in rows}
    marks = [
        Line2D(
            [],
            [],
            linestyle="none",
            marker=MARKERS[against],
            color=LINE_COLOUR,
            markerfacecolor="white" if against == "simulator" else LINE_COLOUR,
            label=name,
        )
        for against, name in NAMES.items()
        if against in seen
    ]
    colours = [
        Line2D([], [], color=colour, linewidth=4, label=name)
        for colour, name, wanted in ((FITS_COLOUR, "fits", True), (NO_FIT_COLOUR, "does not fit", False))
        if any(row.fits is wanted for row in rows)
    ]
    bar = Line2D([], [], color=LINE_COLOUR, linewidth=1.2, marker="|", label="largest error of what was checked")
    line = Line2D([], [], color=LINE_COLOUR, linestyle=(0, (5, 4)), linewidth=1.0, label="real time")
    return [*marks, *colours, bar, line]
