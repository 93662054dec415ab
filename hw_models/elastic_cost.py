"""Costs of what is kept of an elastic workload, thousands of configurations at a time.

Every layer has a row in the tables for each shape that it can have; row 0 stands for a layer that is gone. A tensor that passes a
sum takes the place of the sum's result, with its own bit-width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from hw_models.compile import WIDTH_INDEX, CostTable, all_layer_tables, compile_target, frame_bytes_of
from hw_models.cost import CHUNK, Costs, Counts, LayerSums, assembled, evaluate_runnable, gathered, layer_metrics
from hw_models.elastic import ElasticWorkload, Option
from hw_models.errors import TargetError
from hw_models.packed import FILE_HEADER_BYTES, FLOAT_BYTES, INPUT_CHANNEL_BYTES, RECORD_BYTES, stream_bytes
from hw_models.target import Target
from hw_models.workload import IntArray, Layer, LayerKind, Workload, check_bits

BoolArray = npt.NDArray[np.bool_]

_Form = TypeVar("_Form")

_DESIGNS = 64
"""Structures whose FPGA designs a process keeps."""


@dataclass(frozen=True, eq=False)
class _Chosen:
    """What an option decides for each layer or site.

    Attributes:
        option: `[layers or sites]` column of the option, or of a constant behind the last option.
        value: `[layers or sites, values]` by position of the option's value.
    """

    option: IntArray
    value: IntArray

    def of(self, structures: IntArray) -> IntArray:
        """Values `[layers or sites, structures]`, given positions of values `[options + 1, structures]`."""
        found: IntArray = self.value[np.arange(len(self.value))[:, None], structures[self.option]]
        return found


@dataclass(frozen=True, eq=False)
class ElasticTable:
    """Costs of every layer of an elastic workload on a target, in every shape and at every bit-width.

    Attributes:
        elastic: the network and its options.
        table: of the whole network, but with a row for each shape of each layer in place of a layer.
        layers: the rows of the layers.
        there: 0 where a layer is gone, else 1.
        counts: `[rows, 4]` weights, scales, other constants and multiply-accumulates.
        sites: the rows of the activation sites in `frame_bytes`.
        frame_bytes: `[rows, widths]` bytes of a frame of an activation.
    """

    elastic: ElasticWorkload
    table: CostTable
    layers: _Chosen
    there: _Chosen
    counts: IntArray
    sites: _Chosen
    frame_bytes: IntArray

    @property
    def workload(self) -> Workload:
        """The whole network."""
        return self.table.workload


def compile_elastic(target: Target, elastic: ElasticWorkload) -> ElasticTable:
    """Compile the tables of a target for an elastic workload.

    Raises:
        TargetError: the target cannot run a layer at any width.
    """
    workload = elastic.workload
    layers = [_forms(elastic, layer.name, layer, lambda option: option.layers) for layer in workload.layers]
    sites = [_forms(elastic, site, count, lambda option: option.channels) for site, count in workload.site_channels.items()]
    flat = [layer for _, forms in layers for layer in forms]
    tables, whole = all_layer_tables(target, workload, flat), compile_target(target, workload)
    nothing = np.zeros((len(whole.cycles), 1, *whole.cycles.shape[2:]))
    counts = [[0, 0, 0, 0], *(_counts(workload, layer) for layer in flat)]
    return ElasticTable(
        elastic=elastic,
        table=replace(
            whole,
            cycles=np.concatenate([nothing, *(each.cycles[:, None] for each in tables)], axis=1),
            energy_pj=np.concatenate([nothing, *(each.energy_pj[:, None] for each in tables)], axis=1),
            weight_bytes=np.stack([np.zeros_like(tables[0].weight_bytes), *(each.weight_bytes for each in tables)]),
        ),
        layers=_numbered(elastic, layers, first=1),
        there=_there(elastic),
        counts=np.array(counts, np.int64),
        sites=_numbered(elastic, sites, first=0),
        frame_bytes=np.array([frame_bytes_of(target, count) for _, counts in sites for count in counts], np.int64),
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
    check_bits(table.workload, bits)
    wanted = (len(bits), len(table.elastic.options))
    if structures.shape != wanted:
        raise TargetError(f"structures of shape {structures.shape}; wanted {wanted}")
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
        kept = _Kept(table, bits[at], structures[at])
        sums[at] = gathered(table.table, metrics, kept.rows, position[kept.bits])
        peak[at] = kept.peak_bytes()
        counts[:, at] = kept.counts()
    all_sums = LayerSums.split(table.table, sums)
    can = all_sums.runnable
    return can, assembled(table.table, Counts(*counts[:, can]), all_sums.rows(can), peak[can])


class _Kept:
    """What is kept of the network in some configurations.

    Attributes:
        rows: `[layers, configurations]` the row of each layer; 0 if it is gone.
        bits: `[sites, configurations]` widths; a sum that is passed by has that of what passes it.
    """

    def __init__(self, table: ElasticTable, bits: IntArray, structures: IntArray) -> None:
        self._table, workload = table, table.workload
        self._first = len(workload.sites) - len(workload.activation_sites)
        self._structures = np.concatenate([structures.T, np.zeros((1, len(bits)), np.int64)])
        self.bits = bits.T.copy()
        self.rows = table.layers.of(self._structures) * table.there.of(self._structures)
        self._there = np.ones((len(workload.activation_sites), len(bits)), np.bool_)
        self._passes: list[tuple[int, int, BoolArray]] = []
        """Sums that are passed by: the site of the sum, that of what passes it, and in which configurations."""
        for number, layer in enumerate(workload.layers):
            if not layer.in_place:
                self._take(number, layer)

    def counts(self) -> tuple[IntArray, IntArray, IntArray]:
        """Bytes of the packed file, multiply-accumulates, and bit operations, `[configurations]` each."""
        workload = self._table.workload
        weighted = [number for number, layer in enumerate(workload.layers) if layer.weight_site is not None]
        weights, scales, constants, macs = self._table.counts[self.rows].transpose(2, 0, 1)
        widths = self.bits[: len(weighted)]
        written = [numbers[0] for numbers in workload.writers.values()]
        inputs = len(workload.activation_sites) - len(written)
        records = (self.rows[weighted] > 0).sum(axis=0) + (self.rows[written] > 0).sum(axis=0) + inputs
        fixed = FILE_HEADER_BYTES + INPUT_CHANNEL_BYTES * workload.input_channels
        streams = stream_bytes(weights[weighted], scales[weighted], widths).sum(axis=0)
        packed = streams + RECORD_BYTES * records + FLOAT_BYTES * constants.sum(axis=0) + fixed
        read = self.bits[[workload.column[workload.layers[number].input_sites[0]] for number in weighted]]
        return packed, macs.sum(axis=0), (macs[weighted] * widths * read).sum(axis=0)

    def peak_bytes(self) -> IntArray:
        """Largest number of bytes alive at once, `[configurations]`."""
        table, workload = self._table, self._table.workload
        alignment = table.table.target.storage.alignment_bytes
        frame = table.frame_bytes[table.sites.of(self._structures), WIDTH_INDEX[self.bits[self._first :]]]
        frames = np.array([workload.site_positions[site] for site in workload.activation_sites])[:, None]
        held = np.zeros((len(frame) + 1, frame.shape[1]), np.int64)  # the last row is the empty slot
        held[:-1] = aligned_all(frames * frame, alignment) * self._there
        alive = sum((held[slot] for slot in table.table.live.T), np.zeros(self.rows.shape, np.int64))
        peak: IntArray = (alive * (self.rows > 0)).max(axis=0)
        return peak + aligned_all(self._state_frames() * frame, alignment).sum(axis=0) if workload.streaming else peak

    def _take(self, number: int, layer: Layer) -> None:
        """See which tensors are there behind a layer."""
        place = self._place(layer.output_site)
        if layer.kind is not LayerKind.ADD:
            self._there[place] = self.rows[number] > 0
            return
        first, second = (self._place(site) for site in layer.input_sites)
        a, b = self._there[first], self._there[second]
        if a.all() and b.all():
            self._there[place] = self.rows[number] > 0
            return
        both = a & b
        own = self.bits[self._first + place]
        passing = np.where(a, self.bits[self._first + first], self.bits[self._first + second])
        self.bits[self._first + place] = np.where(both, own, passing)
        self._passes += [(place, first, a & ~b), (place, second, b & ~a)]
        self._there[place] = a | b
        self.rows[number] = np.where(both, self.rows[number], 0)

    def _state_frames(self) -> IntArray:
        """Frames `[activation sites, configurations]` kept between two frames of a streaming inference; see
        `Workload.state_frames`.
        """
        workload = self._table.workload
        passes: dict[int, list[tuple[int, BoolArray]]] = {place: [] for place, _, _ in self._passes}
        for place, source, where in self._passes:
            passes[place].append((source, where))
        delays = np.zeros(self._there.shape, np.int64)
        kept = np.zeros_like(delays)
        lags = []
        for number, layer in enumerate(workload.layers):
            place, read = self._place(layer.output_site), [self._place(site) for site in layer.input_sites]
            centred = 0 if workload.causal else (layer.kernel_size - 1) * layer.dilation // 2
            latest = delays[read].max(axis=0)
            lags.append((latest, latest + (centred if layer.ahead is None else layer.ahead)))
            runs = self.rows[number] > 0
            delays[place] = np.maximum(delays[place], np.where(runs, lags[-1][1], 0))
            for source, where in passes.get(place, ()):
                delays[place] = np.where(where, delays[source], delays[place])
        for number, layer in enumerate(workload.layers):
            runs, (latest, lag) = self.rows[number] > 0, lags[number]
            for site in layer.input_sites:
                place = self._place(site)
                reach = (layer.kernel_size - 1) * layer.dilation + latest - delays[place]
                kept[place] = np.maximum(kept[place], np.where(runs, reach, 0))
            if not layer.in_place:
                place = self._place(layer.output_site)
                kept[place] = np.maximum(kept[place], np.where(runs, delays[place] - lag, 0))
        for place, source, where in reversed(self._passes):
            kept[source] = np.where(where, np.maximum(kept[source], kept[place]), kept[source])
            kept[place] = np.where(where, 0, kept[place])
        return kept

    def _place(self, site: str) -> int:
        return self._table.workload.column[site] - self._first


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
    structure = {option.name: option.values[at] for option, at in zip(table.elastic.options, positions, strict=True)}
    return compile_target(table.table.target, table.elastic.narrowed(structure))


def _merged(found: Sequence[Costs], order: IntArray) -> Costs:
    """Join costs, and put their configurations into another order."""
    joined: dict[str, Any] = {
        field.name: np.concatenate([getattr(each, field.name) for each in found])[order]
        for field in fields(Costs)
        if field.name != "resources"
    }
    names = found[0].resources
    return Costs(**joined, resources={name: np.concatenate([each.resources[name] for each in found])[order] for name in names})


def _forms(
    elastic: ElasticWorkload, name: str, whole: _Form, changed: Callable[[Option], Mapping[int, Mapping[str, _Form | None]]]
) -> tuple[int, list[_Form]]:
    """The column of the option that narrows a layer or site, and what that is at each of its values."""
    for column, option in enumerate(elastic.options):
        if not option.removes and any(name in layers for layers in changed(option).values()):
            return column, [changed(option).get(value, {}).get(name) or whole for value in option.values]
    return len(elastic.options), [whole]


def _numbered(elastic: ElasticWorkload, forms: Sequence[tuple[int, Sequence[object]]], first: int) -> _Chosen:
    """Number all forms of layers or sites, from `first` on."""
    value = np.zeros((len(forms), _most_values(elastic)), np.int64)
    for row, (_, own) in zip(value, forms, strict=True):
        row[:] = first
        row[: len(own)] = np.arange(first, first + len(own))
        first += len(own)
    return _Chosen(np.array([column for column, _ in forms], np.int64), value)


def _there(elastic: ElasticWorkload) -> _Chosen:
    """Which layers are there."""
    place = {layer.name: number for number, layer in enumerate(elastic.workload.layers)}
    option = np.full(len(place), len(elastic.options), np.int64)
    value = np.ones((len(place), _most_values(elastic)), np.int64)
    for column, each in enumerate(elastic.options):
        for position, layers in enumerate(each.layers.get(value, {}) for value in each.values):
            for name in layers if each.removes else ():
                option[place[name]] = column
                value[place[name], position] = 0
    return _Chosen(option, value)


def _most_values(elastic: ElasticWorkload) -> int:
    return max((len(option.values) for option in elastic.options), default=1)


def _counts(workload: Workload, layer: Layer) -> list[int]:
    """Weights, scales, other constants and multiply-accumulates of a layer."""
    sharing = layer.groups if layer.kind is LayerKind.TRANSPOSED else 1
    scales = layer.out_channels // sharing if workload.per_channel_scales else 1
    weighted = layer.weight_site is not None
    constants = layer.out_channels * layer.bias + layer.constants
    return [layer.weight_count, scales if weighted else 0, constants, layer.macs(workload.frames)]
