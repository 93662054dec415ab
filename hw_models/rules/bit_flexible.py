"""Time and energy of a layer on a bit-flexible systolic array (BitFusion, Sharma et al., ISCA 2018).

N rows take inputs and M columns give outputs. A processing element splits into narrower multipliers and does
pf = floor(8 / max(a, 2)) * floor(8 / max(w, 2)) multiplications per cycle for a-bit inputs and w-bit weights. A layer of T
frames, K taps, Ci input and Co output channels is cut into power-of-two tiles of t frames, ci and co channels, with co a multiple
of M:

    compute = sum over tiles of ceil(co / M) * t * K * ceil(ci / (N pf))

Tiles and the order of the three tile loops are those of the least time, then the least energy. The traffic follows the authors'
simulator (github.com/hsharma35/bitfusion, `get_stats_fast`): half of each double buffer is available, a tensor that fits is
fetched once for the loops that do not index it, and outputs move to and from memory as 32-bit words padded to whole columns.
Traffic overlaps with compute except for the first fetch and the last write.

Energy is dynamic only (`Stats.get_energy`): the array per cycle of compute, and every access per bit. All traffic to and from
memory passes the buffers. The array reads an input and a weight for each multiplication, and reads and writes each output once
per tile. The simulator calls this order output-stationary; it is the cheapest of its three if outputs are twice as wide as
operands, as here.

The simulator has only square kernels; here a kernel has K taps along the frames. It has neither depthwise layers nor elementwise
sums, so these are assumptions: a depthwise layer runs channel by channel, in C T K cycles at the power of the whole array, and a
sum runs at a fixed rate. Each of their tensors moves once, and outputs start in the array.
"""

from collections.abc import Mapping
from itertools import permutations, product
from typing import Annotated, Final, Literal

import numpy as np
from pydantic import Field

from hw_models.errors import TargetError
from hw_models.rules.base import ComputeRule
from hw_models.sections import Count, NotNegative, Positive, Section, Source
from hw_models.shape import Shape
from hw_models.work import Work
from hw_models.workload import FloatArray, IntArray, LayerKind

OUTPUT_BITS: Final = 32

_INDEXED_BY: Final = {
    "frames": ("inputs", "outputs"),
    "in_channels": ("inputs", "weights"),
    "out_channels": ("weights", "outputs"),
}


_TENSORS: Final = ("weights", "inputs", "outputs")

# Below these bounds, the simulator may prefer another access order than output-stationary.
_Rows = Annotated[int, Field(ge=2)]
_OperandBits = Annotated[int, Field(ge=1, le=OUTPUT_BITS // 2)]


class BufferEnergy(Section):
    """Energy of an access to one buffer."""

    read_pj_per_bit: NotNegative
    write_pj_per_bit: NotNegative


class ArrayEnergy(Section):
    """Energy of the array per cycle of compute, of its buffers and of the memory behind them."""

    core_pj_per_cycle: NotNegative
    memory_pj_per_bit: NotNegative
    weight_buffer: BufferEnergy
    input_buffer: BufferEnergy
    output_buffer: BufferEnergy
    source: Source


class BitFlexibleCompute(ComputeRule):
    """Compute time and energy of a BitFusion-like array of `rows` inputs by `columns` outputs (see `bit_flexible`)."""

    rule: Literal["bit_flexible_array"]
    rows: _Rows
    columns: Count
    native_bits: _OperandBits
    least_bits: _OperandBits
    weight_buffer_bytes: Count
    input_buffer_bytes: Count
    output_buffer_bytes: Count
    memory_bits_per_cycle: Count
    add_elements_per_cycle: Positive
    energy: ArrayEnergy

    def work(self, shape: Shape, activation_bits: int, weight_bits: int) -> Work:
        """Cycles and energy of a layer at executed widths.

        Raises:
            TargetError: the smallest tile does not fit into the buffers.
        """
        if shape.kind is LayerKind.CONV:
            return _dense_work(self, shape, activation_bits, weight_bits)
        return _elementwise_work(self, shape, activation_bits, weight_bits)

    def peak_macs_per_cycle(self, activation_bits: int, weight_bits: int) -> float:
        """Multiplications of all processing elements, split as far as the widths allow."""
        return float(self.rows * self.columns * performance_factor(self, activation_bits, weight_bits))


def performance_factor(rule: BitFlexibleCompute, activation_bits: int, weight_bits: int) -> int:
    """Multiplications per processing element and cycle."""
    least = rule.least_bits
    return (rule.native_bits // max(activation_bits, least)) * (rule.native_bits // max(weight_bits, least))


def _dense_work(rule: BitFlexibleCompute, shape: Shape, activation_bits: int, weight_bits: int) -> Work:
    rows = rule.rows * performance_factor(rule, activation_bits, weight_bits)
    columns = rule.columns
    t, ci, co = _tiles(shape, columns)
    loops = {
        "frames": -(-shape.frames // t),
        "in_channels": -(-shape.in_channels // ci),
        "out_channels": -(-shape.out_channels // co),
    }
    tiles = np.prod(list(loops.values()), axis=0)
    compute = tiles * t * shape.taps * -(-co // columns) * -(-ci // rows)
    tile_bits = {
        "weights": -(-(shape.taps * ci) // rows) * rows * co * weight_bits,
        "inputs": (t + shape.taps - 1) * ci * activation_bits,
        "outputs": t * -(-co // columns) * columns * OUTPUT_BITS,
    }
    room_bits = {
        "weights": rule.weight_buffer_bytes * 8 // 2,
        "inputs": rule.input_buffer_bytes * 8 // 2,
        "outputs": rule.output_buffer_bytes * 8 // 2,
    }
    fits = np.all([tile_bits[tensor] <= room_bits[tensor] for tensor in tile_bits], axis=0)
    if not fits.any():
        raise TargetError(f"a layer of {shape.taps} taps: found no tile that fits into the buffers; wanted fewer taps")

    array_macs = tiles * t * co * shape.taps * ci
    array_output_bits = tiles * t * co * OUTPUT_BITS
    candidates: list[Work] = []
    for order in permutations(loops):
        traffic, resident = _traffic(order, loops, tile_bits, room_bits)
        first = sum(resident.values())
        last = resident["outputs"]
        moved = sum(traffic.values()) + traffic["outputs"]
        fixed = -(-first // rule.memory_bits_per_cycle) + -(-last // rule.memory_bits_per_cycle)
        memory = -(-(moved - first - last) // rule.memory_bits_per_cycle)
        total = np.where(fits, np.maximum(compute, memory) + fixed, np.iinfo(np.int64).max)
        energy = _energy_pj(
            rule.energy,
            compute,
            moved,
            reads={
                "weights": array_macs * weight_bits,
                "inputs": array_macs * activation_bits,
                "outputs": array_output_bits + traffic["outputs"],
            },
            writes=traffic | {"outputs": array_output_bits + traffic["outputs"]},
        )
        i = int(np.lexsort((energy, total))[0])
        parts = {"compute": compute, "memory": memory, "fixed": fixed, "energy_pj": energy}
        candidates.append(Work(**{part: float(values[i]) for part, values in parts.items()}))
    return min(candidates, key=lambda work: (work.total, work.energy_pj))


def _elementwise_work(rule: BitFlexibleCompute, shape: Shape, activation_bits: int, weight_bits: int) -> Work:
    """Cycles and energy of a depthwise layer or a sum, with every tensor passing its buffer once."""
    depthwise = shape.kind is LayerKind.DEPTHWISE
    compute = float(shape.macs) if depthwise else shape.elements / rule.add_elements_per_cycle
    bits = {
        "weights": shape.taps * shape.out_channels * weight_bits if depthwise else 0,
        "inputs": shape.inputs * activation_bits,
        "outputs": shape.outputs * OUTPUT_BITS,
    }
    moved = sum(bits.values())
    operands = {"weights": shape.macs * weight_bits, "inputs": shape.macs * activation_bits} if depthwise else {}
    energy = _energy_pj(rule.energy, compute, moved, reads=bits | operands, writes=bits)
    return Work(compute=compute, memory=moved / rule.memory_bits_per_cycle, energy_pj=float(energy))


def _energy_pj(
    energy: ArrayEnergy,
    compute: IntArray | float,
    moved: IntArray | int,
    reads: Mapping[str, IntArray | int],
    writes: Mapping[str, IntArray | int],
) -> FloatArray:
    """Energy `[tilings]` of cycles of compute, bits to and from memory, and bits read from and written to each buffer."""
    total = np.asarray(energy.core_pj_per_cycle * compute + energy.memory_pj_per_bit * moved)
    buffers = (energy.weight_buffer, energy.input_buffer, energy.output_buffer)
    for tensor, buffer in zip(_TENSORS, buffers, strict=True):
        total = total + buffer.read_pj_per_bit * reads[tensor] + buffer.write_pj_per_bit * writes[tensor]
    return total


def _tiles(shape: Shape, columns: int) -> tuple[IntArray, IntArray, IntArray]:
    """Every tile `[tilings]` in frames, input and output channels: powers of two, cut at the layer's size."""
    out_groups = -(-shape.out_channels // columns)
    frames = [min(1 << i, shape.frames) for i in range((shape.frames - 1).bit_length() + 1)]
    inputs = [min(1 << i, shape.in_channels) for i in range((shape.in_channels - 1).bit_length() + 1)]
    outputs = [min(columns << i, shape.out_channels) for i in range((out_groups - 1).bit_length() + 1)]
    t, ci, co = np.array(list(product(frames, inputs, outputs)), np.int64).T
    return t, ci, co


def _traffic(
    order: tuple[str, ...],
    loops: dict[str, IntArray],
    tile_bits: dict[str, IntArray],
    room_bits: dict[str, int],
) -> tuple[dict[str, IntArray], dict[str, IntArray]]:
    """Bits of each tensor that are moved over all tiles, and bits that are resident at once, `[tilings]` each.

    `order` names the loops over tiles from the outermost on.
    """
    traffic, resident = dict(tile_bits), dict(tile_bits)
    for tensor, bits in tile_bits.items():
        reusable = np.ones_like(bits, bool)
        for loop in reversed(order):
            indexed = tensor in _INDEXED_BY[loop]
            grown = traffic[tensor] * loops[loop]
            traffic[tensor] = np.where(reusable, grown if indexed else traffic[tensor], grown)
            if indexed:
                reusable = reusable & (traffic[tensor] <= room_bits[tensor])
                resident[tensor] = np.where(reusable, traffic[tensor], resident[tensor])
    return traffic, resident
