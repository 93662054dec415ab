"""Plots of an allocation's costs: by layer, as a roofline, and of one more bit at each site."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator, StrMethodFormatter

from hw_models.breakdown import LayerCost, per_layer
from hw_models.compile import CostTable
from hw_models.cost import evaluate, placement_of, runnable
from hw_models.errors import TargetError
from hw_models.figures import significant
from hw_models.sections import Memory
from hw_models.target import Target
from hw_models.workload import WIDTHS, FloatArray, IntArray, LayerKind

_WIDTH_PER_BAR: Final = 0.28
_MIN_WIDTH, _MAX_WIDTH = 8.0, 30.0
_MARK_AREA: Final = 49.0
"""Area of a layer's mark in the roofline, in square points."""
_LABEL_HEIGHT: Final = 0.055
"""Smallest distance between two labels of roofs, as a share of a panel."""


@dataclass(frozen=True)
class _Style:
    """Style of the layers with one bound: colours that colour-blind people distinguish, and markers that work without colour."""

    colour: str
    hatch: str
    marker: str


_STYLES: Final = {
    "compute": _Style("#0b5fa5", "", "o"),
    "overhead": _Style("#7d8791", "...", "X"),
    "buffers": _Style("#d98200", "//", "P"),
    "slack": _Style("#7d8791", "\\\\", "v"),
}
_MEMORY_STYLES: Final = (_Style("#c2410c", "xx", "s"), _Style("#2f8f6f", "--", "D"), _Style("#7c3aed", "++", "h"))

_UNITS: Final = {"ms": "ms", "uj": "µJ", "bytes": "bytes"}


def draw_layers(table: CostTable, bits_row: IntArray) -> Figure:
    """Draw latency, and energy if known, as a bar per block of stacked layers, coloured by their bounds.

    Args:
        table: a compiled target.
        bits_row: `[sites]`.

    Raises:
        TargetError: a wrong shape or width, or one the target refuses.
    """
    layers = per_layer(table, bits_row)
    costs = evaluate(table, bits_row[None])
    at_once = "" if table.dataflow is None else "; the layers work at once"
    metrics = [("latency_ms", [layer.latency_ms for layer in layers], f"{significant(costs.latency_ms[0])} ms in all{at_once}")]
    energies = [layer.energy_uj for layer in layers]
    if not np.isnan(energies).any():
        metrics.append(("energy_uj", energies, f"{significant(costs.energy_uj[0])} µJ in all"))
    blocks = list(dict.fromkeys(_block(layer.layer) for layer in layers))
    figure = _figure(len(blocks), 2.6 * len(metrics) + 1.2)
    styles = _styles(layers)
    for axes, (metric, values, total) in zip(np.atleast_1d(figure.subplots(len(metrics), 1, sharex=True)), metrics, strict=True):
        tops = dict.fromkeys(blocks, 0.0)
        for layer, value in zip(layers, values, strict=True):
            block, style = _block(layer.layer), styles[layer.bound]
            place = {"bottom": tops[block], "color": style.colour, "hatch": style.hatch}
            axes.bar(blocks.index(block), value, 0.85, edgecolor="white", linewidth=0.4, **place)
            tops[block] += value
        axes.set_title(total, fontsize=9, loc="left")
        _write_axes(axes, _with_unit(metric), blocks)
    handles = [
        Patch(facecolor=style.colour, hatch=style.hatch, edgecolor="white", label=_bound_by(bound))
        for bound, style in styles.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    figure.suptitle(f"{table.target.title}: layers by what bounds them", fontsize=10)
    return figure


def draw_roofline(table: CostTable, bits_row: IntArray) -> Figure:
    """Draw MACs per second of each layer against MACs per byte, under the roofs of arithmetic and of memory.

    There is a panel for each memory level with a bandwidth, with the bytes moved through it. If measured rates include the
    traffic, no level has a bandwidth, and a single panel has no memory roof and counts all bytes. Layers without arithmetic
    (`add`) are left out.

    Args:
        table: a compiled target.
        bits_row: `[sites]`.

    Raises:
        TargetError: a wrong shape or width, or one the target refuses.
    """
    layers = [layer for layer in per_layer(table, bits_row) if layer.macs and layer.cycles]
    placement = placement_of(table, bits_row)
    levels = [level for level in dict.fromkeys((placement.weights, placement.activations)) if level.bytes_per_cycle is not None]
    panels: list[Memory | None] = [*levels] or [None]
    figure = _figure(0, 4.2 * len(panels) + 0.6)
    for axes, level in zip(np.atleast_1d(figure.subplots(len(panels), 1)), panels, strict=True):
        moved = [
            layer.weight_bytes * (level in {None, placement.weights})
            + layer.activation_bytes * (level in {None, placement.activations})
            for layer in layers
        ]
        _draw_roofs(axes, table.target, layers, np.array(moved, np.float64), level)
    figure.legend(
        handles=_roofline_handles(layers, memory=bool(levels)), loc="outside lower center", ncols=3, frameon=False, fontsize=9
    )
    figure.suptitle(f"{table.target.title}: roofline", fontsize=10)
    return figure


def _draw_roofs(axes: Axes, target: Target, layers: Sequence[LayerCost], moved: FloatArray, level: Memory | None) -> None:
    """Draw one panel: a point for each layer that moves the bytes `moved` `[layers]`, and the roofs."""
    hz = target.clock.clock_hz
    intensity = np.array([layer.macs for layer in layers]) / np.maximum(moved, 1.0)
    reached = np.array([layer.macs / layer.cycles * hz for layer in layers])
    for bound, style in _styles(layers).items():
        for kind in LayerKind:
            chosen = np.array([layer.bound == bound and layer.kind is kind for layer in layers])
            if chosen.any():
                face = style.colour if kind is LayerKind.CONV else "white"
                look: dict[str, Any] = {"marker": style.marker, "facecolors": face, "edgecolors": style.colour}
                axes.scatter(intensity[chosen], reached[chosen], s=_MARK_AREA, zorder=3, **look)
    roofs = _roofs(target, layers)
    for roof in roofs:
        axes.axhline(roof, color="0.4", linewidth=0.9, linestyle="--", zorder=2)
    span = np.array([intensity.min() / 3, intensity.max() * 3])
    if level is not None and level.bytes_per_cycle is not None:
        axes.plot(span, span * level.bytes_per_cycle * hz, color="0.2", linewidth=1, zorder=2)
    where = "" if level is None else f" through {level.name}"
    axes.set(xscale="log", yscale="log", xlabel=f"MACs per byte moved{where}", ylabel="MACs per second")
    axes.set(xlim=(span[0], span[-1]), ylim=(reached.min() / 3, max(*roofs, *reached) * 5))
    for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        _tick(axis, *limits)
    axes.grid(alpha=0.3, which="both", linewidth=0.4)
    _label_roofs(axes, roofs)


def _label_roofs(axes: Axes, roofs: Mapping[float, Sequence[tuple[int, int]]]) -> None:
    """Write the widths of each arithmetic roof in the right margin; a thin line leads to a label that was moved."""
    low, high = np.log(axes.get_ylim())
    height = -np.inf
    for roof, widths in roofs.items():
        height = max((np.log(roof) - low) / (high - low), height + _LABEL_HEIGHT)
        axes.annotate(
            _in_words(widths),
            (1.0, roof),
            xycoords=axes.get_yaxis_transform(),
            xytext=(1.03, height),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            arrowprops={"arrowstyle": "-", "linewidth": 0.6, "color": "0.4", "shrinkA": 0, "shrinkB": 0, "relpos": (0.0, 0.5)},
            annotation_clip=False,
        )


def _roofs(target: Target, layers: Sequence[LayerCost]) -> dict[float, list[tuple[int, int]]]:
    """Peak MACs per second, from the slowest, and the activation and weight widths that reach each."""
    found: dict[float, list[tuple[int, int]]] = {}
    for activation, weight in sorted({(layer.executed.activation_bits, layer.executed.weight_bits) for layer in layers}):
        roof = target.compute.peak_macs_per_cycle(activation, weight) * target.clock.clock_hz
        found.setdefault(roof, []).append((activation, weight))
    return dict(sorted(found.items()))


def _in_words(widths: Sequence[tuple[int, int]]) -> str:
    """Widths in words: `w2 w4 a8` for weights of 2 and of 4 bits with activations of 8."""
    activations = dict.fromkeys(activation for activation, _ in widths)
    return ", ".join(
        " ".join([*(f"w{weight}" for other, weight in widths if other == activation), f"a{activation}"])
        for activation in activations
    )


def _roofline_handles(layers: Sequence[LayerCost], *, memory: bool) -> list[Line2D]:
    """Legend entries of a roofline."""
    marks = [
        Line2D([], [], linestyle="none", marker=style.marker, color=style.colour, label=_bound_by(bound))
        for bound, style in _styles(layers).items()
    ]
    kinds = [
        Line2D([], [], linestyle="none", marker="o", color="0.4", markerfacecolor=face, label=name)
        for kind, face, name in (
            (LayerKind.CONV, "0.4", "filled: convolution"),
            (LayerKind.DEPTHWISE, "white", "hollow: depthwise"),
        )
        if any(layer.kind is kind for layer in layers)
    ]
    lines = [Line2D([], [], color="0.4", linewidth=0.9, linestyle="--", label="roof of arithmetic")]
    if memory:
        lines.append(Line2D([], [], color="0.2", linewidth=1, label="roof of the memory"))
    return [*marks, *kinds, *lines]


def _tick(axis: Axis, low: float, high: float) -> None:
    """Set a few round ticks on a log axis."""
    axis.set_major_locator(LogLocator(subs=(1.0,) if high > 100 * low else (1.0, 2.0, 5.0), numticks=12))
    axis.set_major_formatter(EngFormatter(sep="\N{NO-BREAK SPACE}"))
    axis.set_minor_locator(NullLocator())


def one_more_bit(table: CostTable, bits_row: IntArray, metric: str) -> FloatArray:
    """Increase of a metric, `[weight sites]`, by the next wider width of each weight site that the target runs; NaN without one.

    Args:
        table: a compiled target.
        bits_row: `[sites]`.
        metric: one of `table.metrics`.

    Raises:
        TargetError: a wrong shape or width, or one the target refuses; no such metric.
    """
    if metric not in table.metrics:
        raise TargetError(f"no metric '{metric}' on target '{table.target.name}'; wanted one of {', '.join(table.metrics)}")
    sites = len(table.workload.weight_sites)
    rows = np.repeat(bits_row[None], sites + 1, axis=0)
    for site in range(sites):
        wider = [bits for bits in WIDTHS if bits > bits_row[site]]
        rows[site, site] = wider[0] if wider else bits_row[site]
    can = runnable(table, rows) & np.append(rows[:-1].diagonal() > bits_row[:sites], True)
    values = np.full(sites + 1, np.nan)
    values[can] = evaluate(table, rows[can]).column(metric)
    added: FloatArray = values[:-1] - values[-1]
    return added


def draw_one_more_bit(table: CostTable, bits_row: IntArray) -> Figure:
    """Draw the increase of each metric of the target by one more bit at each weight site, in order of depth.

    Raises:
        TargetError: a wrong shape or width, or one the target refuses.
    """
    metrics = [metric for metric in table.metrics if metric not in {"peak_activation_bytes", "occupancy"}]
    sites = [site.removesuffix(".weight") for site in table.workload.weight_sites]
    figure = _figure(len(sites), 1.8 * len(metrics) + 1.5)
    panels = np.atleast_1d(figure.subplots(len(metrics), 1))
    for axes, metric in zip(panels, metrics, strict=True):
        added = one_more_bit(table, bits_row, metric)
        widest = np.flatnonzero(np.isnan(added))
        axes.bar(range(len(sites)), added, 0.8, color=_STYLES["compute"].colour)
        if len(widest):
            axes.plot(widest, np.zeros(len(widest)), "x", color="0.45", markersize=4, clip_on=False)
        _write_axes(axes, f"+ {_with_unit(metric)}", sites if axes is panels[-1] else [""] * len(sites))
        if not np.nan_to_num(added).any():
            axes.set(ylim=(0, 1), yticks=[0])
            nothing = "no site can be wider" if len(widest) == len(sites) else "one more bit adds nothing"
            axes.text(0.5, 0.5, nothing, transform=axes.transAxes, ha="center", va="center", fontsize=9, color="0.3")
    if len(widest):
        cross = Line2D([], [], linestyle="none", marker="x", color="0.45", label="no wider width that the target runs")
        figure.legend(handles=[cross], loc="outside lower center", frameon=False, fontsize=9)
    figure.suptitle(f"{table.target.title}: one more weight bit", fontsize=10)
    return figure


def _figure(bars: int, height: float) -> Figure:
    figure = Figure(figsize=(float(np.clip(_WIDTH_PER_BAR * bars, _MIN_WIDTH, _MAX_WIDTH)), height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _block(layer: str) -> str:
    """Block of a layer: `blocks.3` for `blocks.3.expand`, or the layer itself."""
    return layer.rpartition(".")[0] or layer


def _styles(layers: Sequence[LayerCost]) -> dict[str, _Style]:
    """Style of each bound that occurs, the most frequent first."""
    bounds = [bound for bound, _ in Counter(layer.bound for layer in layers).most_common()]
    memories = sorted(bound for bound in bounds if bound not in _STYLES)
    styles = _STYLES | {bound: _MEMORY_STYLES[i % len(_MEMORY_STYLES)] for i, bound in enumerate(memories)}
    return {bound: styles[bound] for bound in bounds}


def _bound_by(bound: str) -> str:
    return "slack: waits for the slowest layer" if bound == "slack" else f"bound by {bound}"


def _with_unit(metric: str) -> str:
    """Metric with its unit: `latency (ms)` for `latency_ms`."""
    name, _, unit = metric.rpartition("_")
    return f"{name} ({_UNITS[unit]})" if unit in _UNITS else metric.upper()


def _write_axes(axes: Axes, label: str, names: Sequence[str]) -> None:
    """Label the axes of a panel of bars."""
    axes.set_ylabel(label, fontsize=9)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.set_xlim(-0.6, len(names) - 0.4)
