"""Pictures of sensitivities along the network's depth: every site at every width, and the bits that an allocation gives it."""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator

from hwsearch.files.writing import atomic_write
from hwsearch.sensitivity.table import SensitivityTable
from hwsearch.separator.allocation import BitAllocation, is_weight

DECADES = 6
"""Span of the colours. Values further below the largest one have the last colour and matter to no allocation."""

INCHES_PER_SITE = 0.115
INCHES_PER_WIDTH = 0.22
BITS_INCHES = 1.6
FRAME_INCHES = 0.75
"""Title of a panel, and room to the next one."""
MIN_WIDTH_INCHES, MAX_WIDTH_INCHES = 7.0, 40.0
NAMES_INCHES = 1.5
LABEL_SIZE = 6.0
DPI = 140

NOT_ABOVE_ZERO_COLOUR = "#d3d7dd"
KIND_COLOURS = ("#0b5fa5", "#c2410c", "#3f8f4f", "#7c3aed", "#b45309", "#0e7490")
"""Colours of the kinds of layers. A kind is a name that layers of several modules share, such as `expand`."""
OTHER_LAYERS = ("other layers", "#404040")
ACTIVATION = ("activations", "#9aa3ad")
"""Legend and colour."""


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    atomic_write(path, partial(figure.savefig, dpi=DPI))


def draw_tables(tables: Sequence[SensitivityTable], title: str) -> Figure:
    """Draw one panel per table: sites along the network's depth, widths upwards, the value as a colour on its own log scale.

    The tables have the same sites. Values not above zero are grey, widths that a site is not tried at are white.
    """
    sites = tables[0].sites
    heights = [FRAME_INCHES + INCHES_PER_WIDTH * len(table.widths) for table in tables]
    figure = _figure(len(sites), sum(heights), f"{title} (grey: not above zero)")
    axes = figure.subplots(len(tables), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for panel, table in zip(axes, tables, strict=True):
        _draw_table(figure, panel, table)
    _name_sites(axes[-1], sites)
    return figure


def draw_bits(allocations: Mapping[str, BitAllocation], sites: Sequence[str], title: str) -> Figure:
    """Draw one panel per named allocation: a bar of bits for each site, coloured by the kind of layer."""
    figure = _figure(len(sites), (FRAME_INCHES + BITS_INCHES) * len(allocations), title)
    axes = figure.subplots(len(allocations), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    kinds = _kinds(sites)
    for panel, (name, allocation) in zip(axes, allocations.items(), strict=True):
        bits = [allocation.by_site[site] for site in sites]
        panel.bar(range(len(sites)), bits, width=0.8, color=[colour for _, colour in kinds])
        panel.set_title(f"{name}, mean {np.mean(bits):.2f} bits", loc="left", fontsize=9)
        panel.set_ylabel("bits", fontsize=8)
        panel.tick_params(axis="y", labelsize=7)
        panel.yaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(axis="y", color="#e5e7eb", linewidth=0.7)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        _mark_blocks(panel, sites, "#e5e7eb", 0.5)
    axes[0].legend(
        handles=[Patch(color=colour, label=name) for name, colour in dict.fromkeys(kinds)],
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        ncols=5,
        frameon=False,
        fontsize=8,
    )
    _name_sites(axes[-1], sites)
    return figure


def _draw_table(figure: Figure, panel: Axes, table: SensitivityTable) -> None:
    value = np.asarray(table.value).T
    above = np.ma.masked_where(~(value > 0.0), value)
    top = float(above.max()) if above.count() else 1.0
    bottom = max(float(above.min()), top / 10**DECADES) if above.count() else top
    not_above = np.ma.masked_where(~(value <= 0.0), np.zeros_like(value))
    panel.imshow(not_above, cmap=ListedColormap([NOT_ABOVE_ZERO_COLOUR]), aspect="auto", origin="lower")
    norm = LogNorm(min(bottom, top * 0.5), top, clip=True)
    drawn = panel.imshow(above, cmap="viridis", norm=norm, aspect="auto", interpolation="nearest", origin="lower")
    panel.set_yticks(range(len(table.widths)), [str(bits) for bits in table.widths], fontsize=7)
    panel.set_ylabel("bits", fontsize=8)
    panel.set_title(
        f"{table.method}   ({table.unit}, {table.mixtures} mixture{'s' if table.mixtures > 1 else ''})", loc="left", fontsize=9
    )
    panel.spines[:].set_visible(False)
    _mark_blocks(panel, table.sites, "white", 3.0)
    bar = figure.colorbar(drawn, ax=panel, pad=0.005, fraction=0.03, aspect=8)
    bar.ax.yaxis.set_major_locator(LogLocator(numticks=4))
    bar.ax.tick_params(labelsize=7)
    bar.ax.minorticks_off()


def _figure(sites: int, height: float, title: str) -> Figure:
    width = min(max(INCHES_PER_SITE * sites + 1.6, MIN_WIDTH_INCHES), MAX_WIDTH_INCHES)
    figure = Figure(figsize=(width, height + NAMES_INCHES), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    return figure


def _name_sites(panel: Axes, sites: Sequence[str]) -> None:
    panel.set_xticks(range(len(sites)), short_names(sites), rotation=90, fontsize=LABEL_SIZE)
    panel.tick_params(axis="x", pad=2)
    panel.set_xlim(-0.5, len(sites) - 0.5)


def _mark_blocks(panel: Axes, sites: Sequence[str], colour: str, height: float) -> None:
    """A line wherever another block begins, a heavier one between weights and activations."""
    panel.tick_params(axis="x", length=0)
    for position in range(1, len(sites)):
        before, here = sites[position - 1], sites[position]
        if is_weight(before) is not is_weight(here):
            panel.axvline(position - 0.5, color="#404040", linewidth=1.4, zorder=3)
        elif _block(before) != _block(here):
            panel.axvline(position - 0.5, color=colour, linewidth=0.8, zorder=height)


def _block(site: str) -> str:
    """The module that holds a site's layer; the site itself where that is the network."""
    layer = site.removesuffix(".weight").removesuffix(".output")
    return layer.rpartition(".")[0] or site


def short_names(sites: Sequence[str]) -> list[str]:
    """Shorten the names of sites: `3 conv` for a layer's weights, `3 conv out` for the tensor behind it.

    What stands before the number of a module is left out where it is the same before all of them.
    """
    lists = {found.group() for site in sites if (found := re.match(r"\D*\.(?=\d+\.)", site))}
    common = lists.pop() if len(lists) == 1 else ""
    names = (site.removesuffix(".weight").removeprefix(common).replace(".output", " out") for site in sites)
    return [name.replace(".", " ") for name in names]


def _kinds(sites: Sequence[str]) -> list[tuple[str, str]]:
    """Legend and colour of each site. Weights go by the layer's own name in its module."""
    modules = {site: site.removesuffix(".weight").rpartition(".") for site in sites if is_weight(site)}
    names = {site: name for site, (module, _, name) in modules.items() if module}
    kinds = {name: (name, colour) for name, colour in zip(dict.fromkeys(names.values()), KIND_COLOURS, strict=False)}
    return [kinds.get(names.get(site, ""), OTHER_LAYERS) if is_weight(site) else ACTIVATION for site in sites]
