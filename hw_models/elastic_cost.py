"""Costs of what is kept of an elastic workload, thousands of configurations at a time."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import numpy as np

from hw_models.compile import WIDTH_INDEX, CostTable, all_layer_tables, compile_target, frame_bytes_of
from hw_models.cost import CHUNK, Costs, Counts, LayerSums, assembled, evaluate_runnable, gathered, layer_metrics
from hw_models.elastic_shapes import BoolArray, ElasticShapes, Kept
from hw_models.target import Target
from hw_models.workload import IntArray, Workload

_DESIGNS = 64
"""Structures whose FPGA designs a process keeps."""


@dataclass(frozen=True, eq=False)
class ElasticTable:
    """Costs of every layer of an elastic workload on a target, in every shape and at every bit-width.

    Attributes:
        shapes: that layers and sites can have.
        table: of the whole network, but with a row for each shape of each layer in place of a layer.
        frame_bytes: `[rows, widths]` bytes of a frame of an activation, for the rows of `shapes.channels`.
    """

    shapes: ElasticShapes
    table: CostTable
    frame_bytes: IntArray

    @property
    def workload(self) -> Workload:
        """The whole network."""
        return self.table.workload


def compile_elastic(target: Target, shapes: ElasticShapes) -> ElasticTable:
    """Compile the tables of a target for the shapes of an elastic workload.

    Raises:
        TargetError: the target cannot run a layer at any width.
    """
    workload = shapes.workload
    tables, whole = all_layer_tables(target, workload, list(shapes.forms)), compile_target(target, workload)
    nothing = np.zeros((len(whole.cycles), 1, *whole.cycles.shape[2:]))
    return ElasticTable(
        shapes=shapes,
        table=replace(
            whole,
            cycles=np.concatenate([nothing, *(each.cycles[:, None] for each in tables)], axis=1),
            energy_pj=np.concatenate([nothing, *(each.energy_pj[:, None] for each in tables)], axis=1),
            weight_bytes=np.stack([np.zeros_like(tables[0].weight_bytes), *(each.weight_bytes for each in tables)]),
        ),
        frame_bytes=np.array([frame_bytes_of(target, count) for count in shapes.channels], np.int64),
    )


def evaluate_elastic(table: ElasticTable, bits: IntArray, structures: IntArray) -> tuple[BoolArray, Costs]:
    """Which configurations the target can run, `[configurations]`, and the costs of these in the same order.

    Args:
        table: of the target.
        bits: widths `[configurations, sites]` of the whole network; those of what is left out do not matter.
        structures: positions of values `[configurations, options]` (`ElasticWorkload.structures`).

    Raises:
        TargetError: a wrong shape or width.
    """
    table.shapes.check(bits, structures)
    if table.table.dataflow is not None and len(bits):
        return _by_structure(table, bits, structures)
    used = np.unique(bits)
    metrics = layer_metrics(table.table, tuple(used.tolist()))
    position = np.searchsorted(used, np.arange(used[-1] + 1 if used.size else 0)).astype(np.intp)
    sums = np.empty((len(bits), metrics.shape[2]))
    peak = np.empty(len(bits), np.int64)
    counts = np.empty((3, len(bits)), np.int64)
    for start in range(0, len(bits), CHUNK):
        at = slice(start, start + CHUNK)
        kept = Kept(table.shapes, bits[at], structures[at])
        sums[at] = gathered(table.table, metrics, kept.rows, position[kept.bits])
        peak[at] = _peak_bytes(table, kept)
        counts[:, at] = kept.counts()
    all_sums = LayerSums.split(table.table, sums)
    can = all_sums.runnable
    return can, assembled(table.table, Counts(*counts[:, can]), all_sums.rows(can), peak[can])


def _peak_bytes(table: ElasticTable, kept: Kept) -> IntArray:
    """Largest number of bytes alive at once, `[configurations]`."""
    workload, alignment = table.workload, table.table.target.storage.alignment_bytes
    frame = table.frame_bytes[table.shapes.sites.of(kept.structures), WIDTH_INDEX[kept.activation_bits]]
    frames = np.array([workload.site_positions[site] for site in workload.activation_sites])[:, None]
    held = np.zeros((len(frame) + 1, frame.shape[1]), np.int64)  # the last row is the empty slot
    held[:-1] = aligned_all(frames * frame, alignment) * kept.there
    alive = sum((held[slot] for slot in table.table.live.T), np.zeros(kept.rows.shape, np.int64))
    peak: IntArray = (alive * (kept.rows > 0)).max(axis=0)
    return peak + aligned_all(_state_frames(kept) * frame, alignment).sum(axis=0) if workload.streaming else peak


def _state_frames(kept: Kept) -> IntArray:
    """Frames `[activation sites, configurations]` kept between two frames of a streaming inference; see
    `Workload.state_frames`.
    """
    workload = kept.shapes.workload
    passes: dict[int, list[tuple[int, BoolArray]]] = {place: [] for place, _, _ in kept.passes}
    for place, source, where in kept.passes:
        passes[place].append((source, where))
    delays = np.zeros(kept.there.shape, np.int64)
    held = np.zeros_like(delays)
    lags = []
    for number, layer in enumerate(workload.layers):
        place, read = kept.place(layer.output_site), [kept.place(site) for site in layer.input_sites]
        centred = 0 if workload.causal else (layer.kernel_size - 1) * layer.dilation // 2
        latest = delays[read].max(axis=0)
        lags.append((latest, latest + (centred if layer.ahead is None else layer.ahead)))
        runs = kept.rows[number] > 0
        delays[place] = np.maximum(delays[place], np.where(runs, lags[-1][1], 0))
        for source, where in passes.get(place, ()):
            delays[place] = np.where(where, delays[source], delays[place])
    for number, layer in enumerate(workload.layers):
        runs, (latest, lag) = kept.rows[number] > 0, lags[number]
        for site in layer.input_sites:
            place = kept.place(site)
            reach = (layer.kernel_size - 1) * layer.dilation + latest - delays[place]
            held[place] = np.maximum(held[place], np.where(runs, reach, 0))
        if not layer.in_place:
            place = kept.place(layer.output_site)
            held[place] = np.maximum(held[place], np.where(runs, delays[place] - lag, 0))
    for place, source, where in reversed(kept.passes):
        held[source] = np.where(where, np.maximum(held[source], held[place]), held[source])
        held[place] = np.where(where, 0, held[place])
    return held


def aligned_all(sizes: IntArray, alignment: int) -> IntArray:
    """`aligned` for an array."""
    found: IntArray = -(-sizes // alignment) * alignment
    return found


def _by_structure(table: ElasticTable, bits: IntArray, structures: IntArray) -> tuple[BoolArray, Costs]:
    """Costs on an FPGA, whose foldings depend on the whole network: one structure after the other."""
    different, which = np.unique(structures, axis=0, return_inverse=True)
    can = np.zeros(len(bits), np.bool_)
    order: list[IntArray] = []
    found: list[Costs] = []
    for number, positions in enumerate(different):
        rows = np.flatnonzero(which.reshape(-1) == number)
        narrow = _narrowed_table(table, tuple(positions.tolist()))
        columns = [table.workload.column[site] for site in narrow.workload.sites]
        runs, costs = evaluate_runnable(narrow, bits[rows][:, columns])
        can[rows] = runs
        order.append(rows[runs])
        found.append(costs)
    return can, _merged(found, np.argsort(np.concatenate(order)))


@lru_cache(maxsize=_DESIGNS)
def _narrowed_table(table: ElasticTable, positions: tuple[int, ...]) -> CostTable:
    structure = {option.name: option.values[at] for option, at in zip(table.shapes.elastic.options, positions, strict=True)}
    return compile_target(table.table.target, table.shapes.elastic.narrowed(structure))


def _merged(found: Sequence[Costs], order: IntArray) -> Costs:
    """Join costs, and put their configurations into another order."""
    joined: dict[str, Any] = {
        field.name: np.concatenate([getattr(each, field.name) for each in found])[order]
        for field in fields(Costs)
        if field.name != "resources"
    }
    names = found[0].resources
    return Costs(**joined, resources={name: np.concatenate([each.resources[name] for each in found])[order] for name in names})
