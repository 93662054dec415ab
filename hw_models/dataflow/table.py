"""Compiles a dataflow target and a workload, so that the design of an allocation is a gather and a sum.

Foldings depend only on shapes. They form a ladder of initiation intervals, in equal ratios from the least folding to the
greatest. The table holds each layer's resources on every rung at every width. An allocation takes the slowest rung that keeps up
with the frame rate, or without a frame rate the fastest that fits on the device.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from hw_models.dataflow.folding import (
    MAX_BITS,
    Folding,
    choose_folding,
    initiation_interval,
    latency_cycles,
    node_cycles,
    residual_frames,
)
from hw_models.dataflow.resources import (
    Resources,
    Widths,
    accumulator_bits,
    matrix_engine,
    search_thresholds,
    sliding_window,
    stream_fifo,
    vector_engine,
)
from hw_models.errors import TargetError
from hw_models.rules.dataflow import DataflowCompute
from hw_models.target import Target
from hw_models.workload import FloatArray, IntArray, Layer, LayerKind, Workload, check_bits

RESOURCES: Final = ("lut", "bram18", "uram", "dsp")
"""Names of the resources of a device."""

_RUNGS_PER_DECADE = 8
_CHUNK = 256  # allocations whose sums stay in the cache
_AXIS = np.arange(1, MAX_BITS + 1)


@dataclass(frozen=True, eq=False)
class DataflowTable:
    """A ladder of foldings of a workload, and the resources of each layer on each rung.

    Attributes:
        target: the device.
        workload: the network.
        foldings: foldings of all layers for every rung, from the slowest.
        intervals: `[rungs]` cycles from one inference to the next.
        latencies: `[rungs]` upper bound of the cycles of one inference.
        cycles: `[rungs, layers]` cycles of each layer's slowest node.
        counted: positions in `RESOURCES` of those that anything takes; most designs leave some untouched.
        resources: `[shapes, W, A, O, rungs, counted]`. W, A and O are weight, input and output width minus one. Values are
            capped, far above any device, so that no sum overflows.
        shapes: `[layers]` row of `resources` of each layer; layers of the same shape share a row.
        frame_rate_rung: the slowest rung that keeps up with the target's `frames_per_second`, or the number of rungs if none
            does; None without a frame rate.
        inputs: `[layers, 2]` columns of `bits` that a layer reads; a single one is repeated.
        weights: `[layers]` column of `bits` of a layer's weights, or of its first input if it has no weights.
        outputs: `[layers]` column of `bits` that a layer writes.
    """

    target: Target
    workload: Workload
    foldings: tuple[tuple[Folding, ...], ...]
    intervals: IntArray
    latencies: IntArray
    cycles: IntArray
    counted: IntArray
    resources: npt.NDArray[np.int32]
    shapes: IntArray
    frame_rate_rung: int | None
    inputs: IntArray
    weights: IntArray
    outputs: IntArray


@dataclass(frozen=True, eq=False)
class DataflowCosts:
    """Designs of allocations, each `[allocations]`.

    Attributes:
        rung: rung of the ladder: the first if nothing fits, the last if nothing keeps up with the frame rate.
        interval_cycles: cycles from one inference to the next.
        latency_cycles: upper bound of the cycles of one inference.
        lut: lookup tables.
        bram18: block RAMs of 18 kbit.
        uram: UltraRAMs.
        dsp: DSP slices.
        occupancy: the largest share of a usable resource of the device that is taken.
        fits: whether all resources are within the usable part of the device, and the frame rate, if any, is met.
    """

    rung: IntArray
    interval_cycles: IntArray
    latency_cycles: IntArray
    lut: IntArray
    bram18: IntArray
    uram: IntArray
    dsp: IntArray
    occupancy: FloatArray
    fits: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class LayerDesign:
    """One layer of one allocation on its rung."""

    layer: str
    folding: Folding
    cycles: int
    lut: int
    bram18: int
    uram: int
    dsp: int


def compile_dataflow(target: Target, workload: Workload) -> DataflowTable:
    """Compile the ladder of a dataflow target for a workload.

    Raises:
        TargetError: the target has another compute rule, or no circuits for a layer.
    """
    rule = target.compute
    if not isinstance(rule, DataflowCompute):
        raise TargetError(f"target '{target.name}': compute rule '{rule.rule}'; wanted 'dataflow'")
    _refuse_unknown(target, workload)
    wanted = None if rule.frames_per_second is None else int(target.clock.clock_hz / rule.frames_per_second * workload.frames)
    foldings = _ladder(workload, wanted)
    intervals = np.array([initiation_interval(workload, rung) for rung in foldings], np.int64)
    rows: dict[tuple[object, ...], int] = {}
    blocks: list[IntArray] = []
    shapes: list[int] = []
    for i, (layer, waiting) in enumerate(zip(workload.layers, residual_frames(workload), strict=True)):
        key = (layer.kind, layer.in_channels, layer.out_channels, layer.kernel_size, layer.dilation, waiting)
        if key not in rows:
            rows[key] = len(blocks)
            blocks.append(np.stack([_resources(target, rule, layer, rung[i], waiting) for rung in foldings], axis=-2))
        shapes.append(rows[key])
    most = np.iinfo(np.int32).max // len(workload.layers)
    resources = np.minimum(np.stack(blocks), most).astype(np.int32)
    counted = np.flatnonzero(resources.any(axis=tuple(range(resources.ndim - 1))))
    column = workload.column
    frames = workload.frames
    layers = workload.layers
    return DataflowTable(
        target=target,
        workload=workload,
        foldings=foldings,
        intervals=intervals,
        latencies=np.array([latency_cycles(workload, rung) for rung in foldings], np.int64),
        cycles=np.array(
            [[max(node_cycles(x, frames, f)) for x, f in zip(layers, rung, strict=True)] for rung in foldings], np.int64
        ),
        counted=counted,
        resources=np.ascontiguousarray(resources[..., counted]),
        shapes=np.array(shapes, np.int64),
        frame_rate_rung=None if wanted is None else int((intervals > wanted).sum()),
        inputs=np.array([[column[x.input_sites[0]], column[x.input_sites[-1]]] for x in layers], np.int64),
        weights=np.array([column[x.weight_site or x.input_sites[0]] for x in layers], np.int64),
        outputs=np.array([column[x.output_site] for x in layers], np.int64),
    )


def _refuse_unknown(target: Target, workload: Workload) -> None:
    """Raise `TargetError` for layers without a modelled circuit."""
    known = (LayerKind.CONV, LayerKind.DEPTHWISE, LayerKind.ADD)
    for layer in workload.layers:
        if layer.kind in known and layer.keeps_frames and layer.whole:
            continue
        wrong = "" if layer.whole else " that reads or writes part of a tensor"
        wrong = wrong if layer.keeps_frames else " that does not keep the frames"
        wanted = f"{', '.join(known)}, of whole tensors, as many frames out as in"
        raise TargetError(f"layer '{layer.name}': a {layer.kind}{wrong}; target '{target.name}' has circuits for {wanted}")


def evaluate_dataflow(table: DataflowTable, bits: IntArray) -> DataflowCosts:
    """Designs for allocations `[allocations, sites]`.

    Raises:
        TargetError: a wrong shape or width, or a width above `MAX_BITS`.
    """
    _check(table, bits)
    rungs = len(table.intervals)
    at_rate = table.frame_rate_rung
    kept = slice(None) if at_rate is None else slice(min(at_rate, rungs - 1), min(at_rate, rungs - 1) + 1)
    cells = table.resources[..., kept, :].reshape(len(table.resources), MAX_BITS**3, -1)
    budget = np.array(_rule(table).budget)
    rung = np.empty(len(bits), np.int64)
    taken = np.zeros((len(bits), len(RESOURCES)), np.int64)
    fits = np.empty(len(bits), np.bool_)
    for start in range(0, len(bits), _CHUNK):
        rows = slice(start, start + _CHUNK)
        sums = _sums(table, cells, bits[rows]).reshape(len(bits[rows]), -1, len(table.counted))
        fitting: npt.NDArray[np.bool_] = np.all(sums <= budget[table.counted], axis=-1)
        fits[rows] = fitting.any(axis=-1)
        fastest = fitting.shape[1] - 1 - fitting[:, ::-1].argmax(axis=-1)
        chosen = np.where(fits[rows], fastest, 0)
        taken[rows, table.counted] = np.take_along_axis(sums, chosen[:, None, None], axis=1)[:, 0]
        rung[rows] = chosen if at_rate is None else kept.start
    if at_rate == rungs:
        fits[:] = False
    lut, bram18, uram, dsp = taken.T
    # A resource that the device lacks is full as soon as anything takes it.
    occupancy = (taken / np.maximum(budget, 1e-9)).max(axis=1)
    return DataflowCosts(rung, table.intervals[rung], table.latencies[rung], lut, bram18, uram, dsp, occupancy, fits)


def design(table: DataflowTable, bits_row: IntArray) -> tuple[LayerDesign, ...]:
    """Design of each layer of one allocation `[sites]` on the rung that `evaluate_dataflow` chooses, in execution order.

    Raises:
        TargetError: a wrong shape or width, or a width above `MAX_BITS`.
    """
    rung = int(evaluate_dataflow(table, bits_row[None]).rung[0])
    designs: list[LayerDesign] = []
    for i, layer in enumerate(table.workload.layers):
        weight, activation, output = _cells(table, i, bits_row[None])
        taken = np.zeros(len(RESOURCES), np.int64)
        taken[table.counted] = table.resources[table.shapes[i], weight[0], activation[0], output[0], rung]
        cycles = int(table.cycles[rung, i])
        designs.append(LayerDesign(layer.name, table.foldings[rung][i], cycles, *taken.tolist()))
    return tuple(designs)


def _ladder(workload: Workload, wanted: int | None) -> tuple[tuple[Folding, ...], ...]:
    """Distinct foldings from the least to the greatest, including those for `wanted` cycles."""
    slowest = initiation_interval(workload, _foldings(workload, np.iinfo(np.int64).max))
    fastest = initiation_interval(workload, _foldings(workload, 0))
    steps = int(_RUNGS_PER_DECADE * np.log10(slowest / fastest)) + 1
    targets = {int(slowest * 10 ** (-step / _RUNGS_PER_DECADE)) for step in range(steps)} | {slowest, fastest}
    if wanted is not None:
        targets.add(wanted)
    found = [_foldings(workload, target) for target in sorted(targets, reverse=True)]
    # Padding takes no resources: of rungs that differ in nothing else the fastest will do, unless FINN's for a rate is wanted.
    rungs = {rung if wanted is not None else _unpadded(rung): rung for rung in found}
    return tuple(sorted(rungs.values(), key=lambda rung: -initiation_interval(workload, rung)))


def _unpadded(rung: tuple[Folding, ...]) -> tuple[Folding, ...]:
    return tuple(replace(folding, padding_simd=0) for folding in rung)


def _foldings(workload: Workload, target_cycles: int) -> tuple[Folding, ...]:
    return tuple(choose_folding(layer, workload.frames, target_cycles) for layer in workload.layers)


def _resources(target: Target, rule: DataflowCompute, layer: Layer, folding: Folding, waiting: int) -> IntArray:
    """Resources `[W, A, O, 4]` of one layer."""
    precisions = target.precisions
    widths = Widths(
        weight=_AXIS[:, None, None],
        activation=_AXIS[None, :, None],
        output=_AXIS[None, None, :],
        activation_signed=precisions.activation_signed,
        accumulator_bits=precisions.accumulator_bits,
        symmetric_weights=rule.accumulators == "by_weight",
    )
    total = _sum(rule, layer, folding, widths, waiting) if layer.kind is LayerKind.ADD else _engine(rule, layer, folding, widths)
    if folding.window_simd:
        total += sliding_window(
            layer.in_channels,
            layer.kernel_size,
            layer.dilation,
            folding.window_simd,
            widths.activation,
            parallel=folding.parallel_window,
            memory=rule.window_memory,
        )
    counts = (total.lut, total.bram18, total.uram, total.dsp)
    return np.stack([np.broadcast_to(count, (MAX_BITS,) * 3) for count in counts], axis=-1)


def _sum(rule: DataflowCompute, layer: Layer, folding: Folding, widths: Widths, waiting: int) -> Resources:
    pe = folding.pe
    total = search_thresholds(layer.out_channels, pe, widths.activation + 1, widths.output, uram=rule.uram > 0)
    if waiting and rule.residual_fifos == "counted":
        total += stream_fifo(waiting * layer.out_channels // pe, pe * widths.activation)
    return total


def _engine(rule: DataflowCompute, layer: Layer, folding: Folding, widths: Widths) -> Resources:
    """An engine and, if they are a circuit of their own, its thresholds."""
    built = (folding.pe, folding.simd, widths, rule.multipliers, rule.weight_memory)
    if layer.kind is LayerKind.DEPTHWISE:
        engine = vector_engine(layer.out_channels, layer.fan_in, *built, thresholds=rule.thresholds != "standalone")
    else:
        engine = matrix_engine(layer.fan_in, layer.out_channels, *built, thresholds=rule.thresholds == "engine")
    if rule.thresholds != "standalone":
        return engine
    accumulator = accumulator_bits(layer.fan_in, widths)
    return engine + search_thresholds(layer.out_channels, folding.pe, accumulator, widths.output, uram=rule.uram > 0)


def _sums(table: DataflowTable, cells: npt.NDArray[np.int32], bits: IntArray) -> npt.NDArray[np.int32]:
    """Sums over layers `[allocations, rungs * counted]` of `cells` `[shapes, W * A * O, rungs * counted]`."""
    total = np.zeros((len(bits), cells.shape[2]), np.int32)
    gathered = np.empty_like(total)
    for i, shape in enumerate(table.shapes):
        weight, activation, output = _cells(table, i, bits)
        index = (weight * MAX_BITS + activation) * MAX_BITS + output
        np.take(cells[shape], index, axis=0, out=gathered, mode="clip")  # "raise" would buffer the output
        total += gathered
    return total


def _cells(table: DataflowTable, layer: int, bits: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """Positions on the axes W, A and O of a layer, `[allocations]` each; a sum reads both operands at the wider width."""
    first, second = table.inputs[layer]
    activation = np.maximum(bits[:, first], bits[:, second])
    return bits[:, table.weights[layer]] - 1, activation - 1, bits[:, table.outputs[layer]] - 1


def _check(table: DataflowTable, bits: IntArray) -> None:
    check_bits(table.workload, bits)
    if (bits > MAX_BITS).any():
        row, column = np.argwhere(bits > MAX_BITS)[0]
        found = f"site '{table.workload.sites[column]}': found {bits[row, column]} bits"
        raise TargetError(f"{found}; target '{table.target.name}' runs 1 to {MAX_BITS}")


def _rule(table: DataflowTable) -> DataflowCompute:
    rule = table.target.compute
    assert isinstance(rule, DataflowCompute)  # noqa: S101 (checked when the table was compiled)
    return rule
