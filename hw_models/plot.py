"""Pictures of what an allocation costs: layer by layer, against the roofs, and one more bit at each site."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from hw_models.breakdown import LayerCost, per_layer
from hw_models.compile import CostTable
from hw_models.cost import evaluate, placement_of, runnable
from hw_models.errors import TargetError
from hw_models.sections import Memory
from hw_models.target import Target
from hw_models.workload import WIDTHS, FloatArray, IntArray, LayerKind

_COMPUTE_COLOUR: Final = "#0b5fa5"
_OVERHEAD_COLOUR: Final = "#9aa3ad"
_MEMORY_COLOURS: Final = ("#c2410c", "#3f8f4f", "#a16207", "#7c3aed")
_MARKERS: Final = {LayerKind.CONV: "o", LayerKind.DEPTHWISE: "^"}
_WIDTH_PER_BAR: Final = 0.28
_MIN_WIDTH, _MAX_WIDTH = 7.0, 30.0


def draw_layers(table: CostTable, bits_row: IntArray) -> Figure:
    """Latency, and energy where the target states it: a bar per block, its layers stacked, coloured by what bounds each.

    Args:
        table: a compiled target.
        bits_row: `[sites]`.

    Raises:
        TargetError: a wrong shape or width, or one the target refuses.
    """
    layers = per_layer(table, bits_row)
    metrics = [("latency, ms", [layer.latency_ms for layer in layers])]
    if table.target.energy is not None:
        metrics.append(("energy, µJ", [layer.energy_uj for layer in layers]))
    blocks = list(dict.fromkeys(_block(layer.layer) for layer in layers))
    figure = _figure(len(blocks), 2.6 * len(metrics) + 0.8)
    colours = _colours(layers)
    for axes, (label, values) in zip(np.atleast_1d(figure.subplots(len(metrics), 1, sharex=True)), metrics, strict=True):
        tops = dict.fromkeys(blocks, 0.0)
        for layer, value in zip(layers, values, strict=True):
            block = _block(layer.layer)
            colour = colours[layer.bound]
            axes.bar(blocks.index(block), value, 0.85, tops[block], color=colour, edgecolor="white", linewidth=0.4)
            tops[block] += value
        axes.set_ylabel(label)
        axes.set_title(f"{sum(values):,.4g} {label.split(', ')[1]} in all", fontsize=9, loc="left")
        axes.grid(axis="y", alpha=0.3)
        _name_bars(axes, blocks)
    figure.axes[0].legend(handles=[Patch(color=colour, label=bound) for bound, colour in colours.items()], fontsize=8)
    figure.suptitle(f"{table.target.title}: layers by what bounds them", fontsize=10)
    return figure


def draw_roofline(table: CostTable, bits_row: IntArray) -> Figure:
    """Multiply-accumulates per second of each layer against MACs per byte, under the roofs of arithmetic and of memory.

    One panel for each memory level with a bandwidth: bytes are those moved through it. Where no level has one, because the
    measured rates hold the traffic, one panel without that roof, over all bytes. Layers without arithmetic (`add`) have no place.

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
    figure = _figure(0, 4.2 * len(panels))
    for axes, level in zip(np.atleast_1d(figure.subplots(len(panels), 1)), panels, strict=True):
        moved = [
            layer.weight_bytes * (level in {None, placement.weights})
            + layer.activation_bytes * (level in {None, placement.activations})
            for layer in layers
        ]
        _draw_roofs(axes, table.target, layers, np.array(moved, np.float64), level)
    figure.suptitle(f"{table.target.title}: roofline", fontsize=10)
    return figure


def _draw_roofs(axes: Axes, target: Target, layers: Sequence[LayerCost], moved: FloatArray, level: Memory | None) -> None:
    """One panel: points of layers that move so many bytes `[layers]`, and the roofs over them."""
    hz = target.clock.clock_hz
    colours = _colours(layers)
    intensity = np.array([layer.macs for layer in layers]) / np.maximum(moved, 1.0)
    reached = np.array([layer.macs / layer.cycles * hz for layer in layers])
    for kind, marker in _MARKERS.items():
        of_kind = np.array([layer.kind is kind for layer in layers])
        shades = [colours[layer.bound] for layer, wanted in zip(layers, of_kind, strict=True) if wanted]
        axes.scatter(intensity[of_kind], reached[of_kind], c=shades, marker=marker, s=26, label=str(kind), alpha=0.8)
    span = np.geomspace(intensity.min() / 3, intensity.max() * 3, 200)
    for activation, weight in sorted({(layer.executed.activation_bits, layer.executed.weight_bits) for layer in layers}):
        roof = target.compute.peak_macs_per_cycle(activation, weight) * hz
        axes.axhline(roof, color="0.4", linewidth=0.9, linestyle="--")
        axes.annotate(f"a{activation}w{weight}", (span[-1], roof), fontsize=7, ha="right", va="bottom")
    if level is not None and level.bytes_per_cycle is not None:
        axes.plot(span, span * level.bytes_per_cycle * hz, color="0.2", linewidth=1, label=f"{level.name} bandwidth")
    where = "" if level is None else f" through {level.name}"
    axes.set(xscale="log", yscale="log", xlabel=f"MACs per byte moved{where}", ylabel="MACs per second")
    axes.set_ylim(reached.min() / 3, None)
    handles, _ = axes.get_legend_handles_labels()
    axes.legend(handles=[*handles, *(Patch(color=colour, label=bound) for bound, colour in colours.items())], fontsize=8)
    axes.grid(alpha=0.3, which="both", linewidth=0.4)


def one_more_bit(table: CostTable, bits_row: IntArray, metric: str) -> FloatArray:
    """What each weight site's next wider width that the target runs adds to a metric, `[weight sites]`; NaN where none is wider.

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
    """One panel per metric of the target: what one more bit at each weight site adds, along the depth.

    Raises:
        TargetError: a wrong shape or width, or one the target refuses.
    """
    metrics = [metric for metric in table.metrics if metric not in {"peak_activation_bytes", "occupancy"}]
    sites = [site.removesuffix(".weight") for site in table.workload.weight_sites]
    figure = _figure(len(sites), 1.8 * len(metrics) + 1.2)
    for axes, metric in zip(np.atleast_1d(figure.subplots(len(metrics), 1, sharex=True)), metrics, strict=True):
        axes.bar(range(len(sites)), one_more_bit(table, bits_row, metric), 0.8, color=_COMPUTE_COLOUR)
        axes.set_ylabel(f"+ {metric}", fontsize=8)
        axes.grid(axis="y", alpha=0.3)
        _name_bars(axes, sites)
    figure.suptitle(f"{table.target.title}: one more weight bit", fontsize=10)
    return figure


def _figure(bars: int, height: float) -> Figure:
    figure = Figure(figsize=(float(np.clip(_WIDTH_PER_BAR * bars, _MIN_WIDTH, _MAX_WIDTH)), height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _block(layer: str) -> str:
    """`blocks.3` of `blocks.3.expand`; a layer of no block is one of its own."""
    return layer.rpartition(".")[0] or layer


def _colours(layers: Sequence[LayerCost]) -> dict[str, str]:
    bounds = sorted({layer.bound for layer in layers})
    memories = [bound for bound in bounds if bound not in {"compute", "overhead"}]
    colours = {"compute": _COMPUTE_COLOUR, "overhead": _OVERHEAD_COLOUR}
    colours |= {bound: _MEMORY_COLOURS[i % len(_MEMORY_COLOURS)] for i, bound in enumerate(memories)}
    return {bound: colours[bound] for bound in bounds}


def _name_bars(axes: Axes, names: Sequence[str]) -> None:
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
    axes.margins(x=0.01)
