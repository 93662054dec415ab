"""Time of a layer on a bit-flexible systolic array (BitFusion, Sharma et al., ISCA 2018).

N rows take inputs, M columns give outputs, and a processing element splits into narrower multipliers, so that
each does pf = floor(8 / max(a, 2)) * floor(8 / max(w, 2)) multiplications a cycle for a-bit inputs and w-bit
weights. A layer of T frames, K taps, Ci to Co channels is cut into power-of-two tiles (t frames, ci and co
channels, co a multiple of M):

    compute = sum over tiles of ceil(co / M) * t * K * ceil(ci / (N pf))

Tiles and the order of the three tile loops are searched for the least time, with the traffic rules of the
authors' simulator (github.com/hsharma35/bitfusion, `get_stats_fast`): half of each double buffer is at hand,
a tensor that still fits is fetched once for the loops that do not index it, and outputs go to and from memory
as 32-bit words padded to whole columns. Traffic beyond the first fetch and the last write overlaps with
compute.

The simulator knows square kernels only; here a kernel has K taps along the frames. It knows neither depthwise
layers nor elementwise sums: a depthwise layer runs channel by channel (one input, one output, so C T K
cycles) and a sum runs at a fixed rate, each moving its tensors once. Both are assumptions.
"""

from itertools import permutations, product
from typing import Final

import numpy as np

from hw_models.cycles import Cycles
from hw_models.errors import TargetError
from hw_models.shape import Shape
from hw_models.target import BitFlexibleCompute
from hw_models.workload import IntArray, LayerKind

OUTPUT_BITS: Final = 32

_INDEXED_BY: Final = {
    "frames": ("inputs", "outputs"),
    "in_channels": ("inputs", "weights"),
    "out_channels": ("weights", "outputs"),
}


def bit_flexible_cycles(rule: BitFlexibleCompute, shape: Shape, activation_bits: int, weight_bits: int) -> Cycles:
    """Cycles of a layer at executed widths (`weight_bits` is not looked at for an `add`).

    Raises:
        TargetError: not even the smallest tile fits into the buffers.
    """
    if shape.kind is LayerKind.CONV:
        return _dense_cycles(rule, shape, activation_bits, weight_bits)
    traffic_bits = shape.inputs * activation_bits + shape.outputs * OUTPUT_BITS
    if shape.kind is LayerKind.DEPTHWISE:
        traffic_bits += shape.taps * shape.out_channels * weight_bits
        compute = float(shape.macs)
    else:
        compute = shape.outputs / rule.add_elements_per_cycle
    return Cycles(compute=compute, memory=traffic_bits / rule.memory_bits_per_cycle, fixed=0.0)


def performance_factor(rule: BitFlexibleCompute, activation_bits: int, weight_bits: int) -> int:
    """Multiplications per processing element and cycle."""
    least = rule.least_bits
    return (rule.native_bits // max(activation_bits, least)) * (rule.native_bits // max(weight_bits, least))


def _dense_cycles(rule: BitFlexibleCompute, shape: Shape, activation_bits: int, weight_bits: int) -> Cycles:
    rows = rule.rows * performance_factor(rule, activation_bits, weight_bits)
    columns = rule.columns
    t, ci, co = _tiles(shape, columns)
    loops = {
        "frames": -(-shape.frames // t),
        "in_channels": -(-shape.in_channels // ci),
        "out_channels": -(-shape.out_channels // co),
    }
    compute = t * shape.taps * -(-co // columns) * -(-ci // rows) * np.prod(list(loops.values()), axis=0)
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

    candidates: list[Cycles] = []
    for order in permutations(loops):
        traffic, resident = _traffic(order, loops, tile_bits, room_bits)
        first = sum(resident.values())
        last = resident["outputs"]
        moved = sum(traffic.values()) + traffic["outputs"]
        fixed = -(-first // rule.memory_bits_per_cycle) + -(-last // rule.memory_bits_per_cycle)
        memory = -(-(moved - first - last) // rule.memory_bits_per_cycle)
        total = np.where(fits, np.maximum(compute, memory) + fixed, np.iinfo(np.int64).max)
        i = int(total.argmin())
        candidates.append(Cycles(compute=float(compute[i]), memory=float(memory[i]), fixed=float(fixed[i])))
    return min(candidates, key=lambda cycles: cycles.total)


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
    """Bits of each tensor moved over all tiles, and resident at once, `[tilings]`.

    `order` names the loops over tiles, outermost first.
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
