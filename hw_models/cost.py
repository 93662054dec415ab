"""Costs of allocations on a compiled target, thousands at a time."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from hw_models.bops import bit_operations
from hw_models.compile import WIDTH_INDEX, CostTable
from hw_models.dataflow.table import RESOURCES, DataflowCosts, evaluate_dataflow
from hw_models.errors import TargetError
from hw_models.layer_cost import execute, running_pj
from hw_models.packed import packed_size_bytes
from hw_models.placement import Placement, occupancies, place, placements
from hw_models.workload import FloatArray, IntArray, check_bits

CHUNK: Final = 256  # allocations whose indices and sums stay in the cache


@dataclass(frozen=True, eq=False)
class Costs:
    """Costs of allocations, each `[allocations]`.

    Attributes:
        packed_bytes: the packed weight file (`packed.packed_size_bytes`), the same on every target.
        weight_bytes: weights, biases and constants as the target stores them.
        peak_activation_bytes: largest size of the tensors alive at once in one inference, at the width in which the target holds
            them, with the state of a streaming inference.
        macs: multiply-accumulates of the network, without those that dilation modes add.
        bit_operations: MACs times weight bits times input bits (BOPs, as QONNX counts) at the chosen widths.
        latency_ms: time of one inference, from its first input to its last output.
        interval_ms: time from one inference to the next: the latency, or less if inferences overlap, as on an FPGA.
        energy_uj: energy of one inference, in streaming until the next frame; NaN if the target states none.
        real_time_factor: interval over the duration of an inference's input.
        occupancy: the largest share taken of a memory level's bytes, or of an FPGA's usable logic.
        fits: whether `occupancy` is at most 1.
        resources: on an FPGA, `lut`, `bram18`, `uram` and `dsp`.
    """

    packed_bytes: IntArray
    weight_bytes: IntArray
    peak_activation_bytes: IntArray
    macs: IntArray
    bit_operations: IntArray
    latency_ms: FloatArray
    interval_ms: FloatArray
    energy_uj: FloatArray
    real_time_factor: FloatArray
    occupancy: FloatArray
    fits: npt.NDArray[np.bool_]
    resources: Mapping[str, IntArray] = field(default_factory=dict)

    def column(self, metric: str) -> FloatArray:
        """A metric `[allocations]` by its name in `CostTable.metrics`."""
        values: FloatArray = np.asarray(self.resources.get(metric, getattr(self, metric, None)), np.float64)
        return values


def evaluate(table: CostTable, bits: IntArray) -> Costs:
    """Costs of allocations `[allocations, sites]`.

    Raises:
        TargetError: a wrong shape or width, or a width the target refuses; names the layer.
    """
    check_bits(table.workload, bits)
    sums = LayerSums.of(table, bits)
    if (refused := ~sums.runnable).any():
        raise TargetError(refusal(table, bits[int(refused.argmax())]))
    return _costs(table, bits, sums)


def evaluate_runnable(table: CostTable, bits: IntArray) -> tuple[npt.NDArray[np.bool_], Costs]:
    """Which allocations `[allocations, sites]` the target can run, `[allocations]`, and the costs of these in the same order.

    Raises:
        TargetError: a wrong shape or width.
    """
    check_bits(table.workload, bits)
    sums = LayerSums.of(table, bits)
    can = sums.runnable
    return can, _costs(table, bits[can], sums.rows(can))


def _costs(table: CostTable, bits: IntArray, sums: "LayerSums") -> Costs:
    """Costs of allocations that the target runs, from the sums over their layers."""
    counts = Counts(
        packed_size_bytes(table.workload, bits),
        np.full(len(bits), table.workload.macs, np.int64),
        bit_operations(table.workload, bits),
    )
    designs = None if table.dataflow is None else evaluate_dataflow(table.dataflow, bits)
    return assembled(table, counts, sums, peak_bytes(table, bits), designs)


def assembled(
    table: CostTable, counts: "Counts", sums: "LayerSums", peak: IntArray, designs: DataflowCosts | None = None
) -> Costs:
    """Costs of allocations from what adds up over their layers, their peak memory and, on an FPGA, their designs."""
    occupancy = occupancies(table.target, sums.weight_bytes, peak)
    at, row = place(occupancy, sums.cycles), np.arange(len(peak))
    taken = occupancy[row, at]
    overhead = inference_overhead(table)
    cycles = sums.cycles[row, at] + overhead
    interval = cycles
    resources: dict[str, IntArray] = {}
    energy_pj: FloatArray = sums.energy_pj[row, at] + running_pj(table.target, overhead)
    if designs is not None:
        cycles, interval = (count.astype(np.float64) + overhead for count in (designs.latency_cycles, designs.interval_cycles))
        energy_pj = energy_pj + running_pj(table.target, 1.0) * designs.interval_cycles
        taken = np.maximum(taken, np.where(designs.fits | (designs.occupancy > 1), designs.occupancy, np.inf))
        resources = {name: getattr(designs, name) for name in RESOURCES}
    milliseconds = 1e3 / table.target.clock.clock_hz
    if table.workload.streaming and table.target.energy is not None:
        waiting_ms = np.maximum(1e3 * table.workload.seconds - interval * milliseconds, 0.0)
        energy_pj = energy_pj + 1e6 * table.target.energy.idle_mw * waiting_ms
    return Costs(
        packed_bytes=counts.packed_bytes,
        weight_bytes=sums.weight_bytes,
        peak_activation_bytes=peak,
        macs=counts.macs,
        bit_operations=counts.bit_operations,
        latency_ms=cycles * milliseconds,
        interval_ms=interval * milliseconds,
        energy_uj=energy_pj / 1e6,
        real_time_factor=interval * milliseconds / (1e3 * table.workload.seconds),
        occupancy=taken,
        fits=taken <= 1,
        resources=resources,
    )


def inference_overhead(table: CostTable) -> float:
    """Return the cycles of an inference that belong to no layer."""
    overheads = table.target.overheads
    return overheads.inference_cycles + overheads.cycles_per_input * table.workload.input_elements


def runnable(table: CostTable, bits: IntArray) -> npt.NDArray[np.bool_]:
    """Which allocations `[allocations, sites]` the target can run, `[allocations]`.

    Raises:
        TargetError: a wrong shape or width.
    """
    check_bits(table.workload, bits)
    return LayerSums.of(table, bits).runnable


def placement_of(table: CostTable, bits_row: IntArray) -> Placement:
    """The memory levels that hold the weights and the activations of one allocation `[sites]`.

    Raises:
        TargetError: a wrong shape or width.
    """
    bits = bits_row[None]
    check_bits(table.workload, bits)
    sums = LayerSums.of(table, bits)
    at = place(occupancies(table.target, sums.weight_bytes, peak_bytes(table, bits)), sums.cycles)
    return placements(table.target)[int(at[0])]


@dataclass(frozen=True, eq=False)
class Counts:
    """Counts that are the same on every target, each `[allocations]`; see `Costs`."""

    packed_bytes: IntArray
    macs: IntArray
    bit_operations: IntArray


@dataclass(frozen=True, eq=False)
class LayerSums:
    """Sums over the layers; `weight_bytes` are `[allocations]`, the others `[allocations, placements]`."""

    weight_bytes: IntArray
    cycles: FloatArray
    energy_pj: FloatArray

    @classmethod
    def of(cls, table: CostTable, bits: IntArray) -> "LayerSums":
        """Gather from the tables and add.

        The metrics of a layer at the same widths are adjacent, and only the widths that occur are kept, so that they stay in the
        cache. Layers are added one after another, so the costs of an allocation are the same to the last bit in every batch.
        """
        used = np.unique(bits)
        metrics = layer_metrics(table, tuple(used.tolist()))
        position = np.searchsorted(used, np.arange(used[-1] + 1 if used.size else 0)).astype(np.intp)
        rows = np.arange(len(metrics))[:, None]
        sums = np.empty((len(bits), metrics.shape[2]))
        for start in range(0, len(bits), CHUNK):
            sums[start : start + CHUNK] = gathered(table, metrics, rows, position[bits[start : start + CHUNK].T])
        return cls.split(table, sums)

    @classmethod
    def split(cls, table: CostTable, sums: FloatArray) -> "LayerSums":
        """Take the sums `[allocations, 1 + 2 placements]` of `gathered` apart."""
        count = len(table.cycles)
        return cls(
            weight_bytes=sums[:, 0].astype(np.int64),
            cycles=sums[:, 1 : 1 + count],
            energy_pj=sums[:, 1 + count :],
        )

    @property
    def runnable(self) -> npt.NDArray[np.bool_]:
        """Which allocations the target runs: the sum is NaN if it refuses a layer."""
        can: npt.NDArray[np.bool_] = ~np.isnan(self.cycles[:, 0])
        return can

    def rows(self, chosen: npt.NDArray[np.bool_]) -> "LayerSums":
        """The sums of some allocations."""
        return LayerSums(self.weight_bytes[chosen], self.cycles[chosen], self.energy_pj[chosen])


def gathered(table: CostTable, metrics: FloatArray, rows: IntArray, at: npt.NDArray[np.intp]) -> FloatArray:
    """Sums of metrics over the layers, `[allocations, metrics]`.

    Args:
        table: tells the tensors of each layer.
        metrics: as from `layer_metrics`.
        rows: `[layers, allocations]`, or `[layers, 1]`, the row of `metrics` that a layer has.
        at: `[sites, allocations]` positions of widths among those of `metrics`.
    """
    size = round(metrics.shape[1] ** (1 / 3))
    activations = np.maximum(at[table.inputs[:, 0]], at[table.inputs[:, 1]])
    for further in table.inputs.T[2:]:
        activations = np.maximum(activations, at[further])
    index = rows * metrics.shape[1] + (at[table.weights] * size + activations) * size + at[table.outputs]
    # A sum over the outermost axis adds row to row, in order.
    flat = metrics.reshape(-1, metrics.shape[2])
    total: FloatArray = flat.take(index, axis=0).reshape(len(index), -1).sum(axis=0)
    return total.reshape(-1, metrics.shape[2])


@lru_cache(maxsize=4)  # single allocations mostly have the same widths
def layer_metrics(table: CostTable, used: tuple[int, ...]) -> FloatArray:
    """Metrics `[layers, widths^3, 1 + 2 placements]` of every layer at every combination of the widths `used`."""
    at = WIDTH_INDEX[np.array(used, np.int64)]
    layers, size = len(table.weight_bytes), len(used)
    stored = table.weight_bytes[:, at[:, None], at].astype(np.float64)
    grid = np.ix_(np.arange(len(table.cycles)), np.arange(layers), at, at, at)
    metrics = [np.broadcast_to(stored[..., None], (layers, size, size, size))]
    metrics += [*table.cycles[grid], *table.energy_pj[grid]]
    return np.ascontiguousarray(np.stack(metrics, axis=-1).reshape(layers, size**3, len(metrics)))


def peak_bytes(table: CostTable, bits: IntArray) -> IntArray:
    """Largest number of bytes alive at once, `[allocations]`."""
    sites, widths = table.site_bytes.shape
    first = (np.arange(sites) * widths)[:, None]
    peak = np.zeros(len(bits), np.int64)
    for start in range(0, len(bits), CHUNK):
        at = first + WIDTH_INDEX[bits[start : start + CHUNK, -sites:].T]
        held = np.zeros((sites + 1, at.shape[1]), np.int64)  # the last row is the empty slot
        held[:-1] = table.site_bytes.take(at)
        alive = sum((held[slot] for slot in table.live.T), np.zeros((len(table.live), at.shape[1]), np.int64))
        peak[start : start + CHUNK] = alive.max(axis=0) + table.state_bytes.take(at).sum(axis=0)
    return peak


def layer_widths(table: CostTable, bits_row: IntArray, layer: int) -> tuple[int, int, int]:
    """Input, weight and output bits of a layer."""
    return (
        int(bits_row[table.inputs[layer]].max()),
        int(bits_row[table.weights[layer]]),
        int(bits_row[table.outputs[layer]]),
    )


def refusal(table: CostTable, bits_row: IntArray) -> str:
    """Message on the first layer of an allocation `[sites]` that the target refuses."""
    precisions = table.target.precisions
    for i, layer in enumerate(table.workload.layers):
        activation, weight, output = layer_widths(table, bits_row, i)
        if execute(precisions, layer.kind, activation, weight, output) is None:
            weights = "" if layer.weight_site is None else f"{weight}-bit weights, "
            return (
                f"layer '{layer.name}': {weights}{activation}-bit inputs and {output}-bit output; "
                f"target '{table.target.name}' runs {precisions.in_words}"
            )
    raise AssertionError("no layer of this allocation is refused")
