"""What allocations cost on a compiled target, thousands at a time."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from hw_models.compile import WIDTH_INDEX, CostTable
from hw_models.cycles import Bound
from hw_models.errors import TargetError
from hw_models.layer_cost import Executed, execute, layer_cycles
from hw_models.packed import packed_size_bytes
from hw_models.shape import executed_shape
from hw_models.workload import WIDTHS, FloatArray, IntArray, LayerKind, check_bits

_CHUNK: Final = 8192  # allocations whose indices stay in the cache


@dataclass(frozen=True, eq=False)
class Costs:
    """Costs of allocations, each `[allocations]`.

    Attributes:
        size_bytes: the packed file that ships (`packed.packed_size_bytes`), the same on every target.
        weight_bytes: weights, biases and constants as the target stores them.
        peak_activation_bytes: most bytes of tensors alive at once over the whole utterance, at the width the
            target holds.
        latency_ms: time of one inference.
        macs: multiply-accumulates of the network, free of what dilation modes add.
    """

    size_bytes: IntArray
    weight_bytes: IntArray
    peak_activation_bytes: IntArray
    latency_ms: FloatArray
    macs: IntArray


@dataclass(frozen=True)
class LayerCost:
    """One layer of one allocation; `weight_bits` is None and `executed.weight_bits` 0 for an `add`."""

    layer: str
    kind: LayerKind
    weight_bits: int | None
    activation_bits: int
    output_bits: int
    executed: Executed
    macs: int
    weight_bytes: int
    cycles: float
    latency_ms: float
    bound: Bound


def evaluate(table: CostTable, bits: IntArray) -> Costs:
    """Costs of allocations `[allocations, sites]`.

    Raises:
        TargetError: a wrong shape or width, or a width the target refuses; names the layer.
    """
    check_bits(table.workload, bits)
    count = len(bits)
    weight_bytes = np.empty(count, np.int64)
    peak = np.empty(count, np.int64)
    cycles = np.empty(count)
    for start in range(0, count, _CHUNK):
        rows = slice(start, start + _CHUNK)
        widths = np.ascontiguousarray(WIDTH_INDEX[bits[rows]].T)
        cycles[rows], weight_bytes[rows] = _layer_sums(table, widths)
        peak[rows] = _peak(table, widths)
    if np.isnan(cycles).any():
        raise TargetError(_refusal(table, bits[int(np.isnan(cycles).argmax())]))
    return Costs(
        size_bytes=packed_size_bytes(table.workload, bits),
        weight_bytes=weight_bytes,
        peak_activation_bytes=peak,
        latency_ms=cycles / table.target.clock.clock_hz * 1e3,
        macs=np.full(count, table.workload.macs, np.int64),
    )


def runnable(table: CostTable, bits: IntArray) -> npt.NDArray[np.bool_]:
    """Which allocations `[allocations, sites]` the target can run at all, `[allocations]`.

    Raises:
        TargetError: a wrong shape or width.
    """
    check_bits(table.workload, bits)
    can: npt.NDArray[np.bool_] = ~np.isnan(_layer_sums(table, WIDTH_INDEX[bits].T)[0])
    return can


def per_layer(table: CostTable, bits_row: IntArray) -> tuple[LayerCost, ...]:
    """Each layer of one allocation `[sites]`, in execution order, with what bounds it.

    Raises:
        TargetError: a wrong shape or width, or a width the target refuses; names the layer.
    """
    check_bits(table.workload, bits_row[None])
    costs: list[LayerCost] = []
    for i, layer in enumerate(table.workload.layers):
        activation = int(bits_row[table.inputs[i]].max())
        weight = int(bits_row[table.weights[i]])
        output = int(bits_row[table.outputs[i]])
        executed = execute(table.target.precisions, layer.kind, activation, weight, output)
        if executed is None:
            raise TargetError(_refusal(table, bits_row))
        stored = int(table.weight_bytes[i, WIDTH_INDEX[weight], WIDTH_INDEX[activation]])
        shape = executed_shape(layer, table.workload.frames, table.target.dilation)
        cycles = layer_cycles(table.target, shape, executed, stored)
        costs.append(
            LayerCost(
                layer=layer.name,
                kind=layer.kind,
                weight_bits=None if layer.weight_site is None else weight,
                activation_bits=activation,
                output_bits=output,
                executed=executed,
                macs=layer.macs_per_frame * table.workload.frames,
                weight_bytes=stored,
                cycles=cycles.total,
                latency_ms=cycles.total / table.target.clock.clock_hz * 1e3,
                bound=cycles.bound,
            )
        )
    return tuple(costs)


def _layer_sums(table: CostTable, widths: npt.NDArray[np.int32]) -> tuple[FloatArray, IntArray]:
    """Cycles and stored bytes `[allocations]` of positions on the width axes `[sites, allocations]`.

    Layers are added one after another, so that an allocation costs the same to the last bit in every batch.
    """
    cycles = np.zeros(widths.shape[1])
    weight_bytes = np.zeros(widths.shape[1], np.int64)
    for i, (first, second) in enumerate(table.inputs):
        weight = widths[table.weights[i]]
        stored_at = weight * len(WIDTHS) + np.maximum(widths[first], widths[second])
        weight_bytes += table.weight_bytes[i].ravel()[stored_at]
        cycles += table.cycles[i].ravel()[stored_at * len(WIDTHS) + widths[table.outputs[i]]]
    return cycles, weight_bytes


def _peak(table: CostTable, widths: npt.NDArray[np.int32]) -> IntArray:
    """Most bytes alive at once `[allocations]` of positions on the width axes `[sites, allocations]`."""
    sites = len(table.site_bytes)
    held = np.zeros((sites + 1, widths.shape[1]), np.int64)  # the last row is the empty slot
    for site, sizes in enumerate(table.site_bytes):
        held[site] = sizes[widths[site - sites]]
    peak = np.zeros(widths.shape[1], np.int64)
    for alive in table.live:
        np.maximum(peak, held[alive].sum(axis=0), out=peak)
    return peak


def _refusal(table: CostTable, bits_row: IntArray) -> str:
    precisions = table.target.precisions
    for i, layer in enumerate(table.workload.layers):
        activation, weight = int(bits_row[table.inputs[i]].max()), int(bits_row[table.weights[i]])
        output = int(bits_row[table.outputs[i]])
        if execute(precisions, layer.kind, activation, weight, output) is None:
            weights = "" if layer.weight_site is None else f"{weight}-bit weights, "
            pairs = ", ".join(f"a{a}w{w}" for a, w in precisions.pairs)
            return (
                f"layer '{layer.name}': {weights}{activation}-bit inputs and {output}-bit output; "
                f"target '{table.target.name}' runs {pairs}"
            )
    raise AssertionError("no layer of this allocation is refused")
