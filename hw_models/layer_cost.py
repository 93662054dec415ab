"""Costs of one layer on a target: executed widths, stored bytes, cycles, energy."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from hw_models.placement import Placement
from hw_models.sections import Memory, Precisions
from hw_models.shape import Shape
from hw_models.target import Target
from hw_models.work import Work
from hw_models.workload import FLOAT_BITS, WEIGHTED, Layer, LayerKind


@dataclass(frozen=True)
class Executed:
    """The widths that a layer runs in; `weight_bits` is 0 without weights."""

    activation_bits: int
    weight_bits: int
    output_bits: int


def executed_pair(precisions: Precisions, activation_bits: int, weight_bits: int) -> tuple[int, int] | None:
    """The (activation, weight) pair that a chosen pair runs as, or None if the target refuses it."""
    if (activation_bits, weight_bits) in precisions.pairs:
        return activation_bits, weight_bits
    if precisions.unsupported == "refuse":
        return None
    wider = [(a, w) for a, w in precisions.pairs if a >= activation_bits and w >= weight_bits]
    return min(wider, key=lambda pair: (pair[1], pair[0]), default=None)


def executed_activation(precisions: Precisions, bits: int) -> int | None:
    """The width in which an activation of a chosen width is held, or None if the target refuses it."""
    if bits in precisions.activation_bits:
        return bits
    if precisions.unsupported == "refuse":
        return None
    return min((a for a in precisions.activation_bits if a >= bits), default=None)


def execute(precisions: Precisions, kind: LayerKind, activation_bits: int, weight_bits: int, output_bits: int) -> Executed | None:
    """The widths that a layer runs in, or None if the target refuses one of them."""
    output = executed_activation(precisions, output_bits)
    if output is None:
        return None
    if kind not in WEIGHTED:
        activation = executed_activation(precisions, activation_bits)
        return None if activation is None else Executed(activation, 0, precisions.output_bits or output)
    pair = executed_pair(precisions, activation_bits, weight_bits)
    return None if pair is None else Executed(*pair, precisions.output_bits or output)


def stored_weight_bytes(target: Target, layer: Layer, shape: Shape, weight_bits: int, executed: Executed) -> int:
    """Stored bytes of a layer's weights, biases and requantization constants; 0 without weights."""
    if layer.weight_site is None:
        return 0
    storage = target.storage
    in_float = executed.weight_bits == FLOAT_BITS
    if storage.codec == "encoded":
        held = FLOAT_BITS if in_float else weight_bits
        per_weight = next(size for bits, size in storage.encoded_bytes_per_weight if bits >= held)
        zeros = shape.inserted_zeros * storage.inserted_zero_bytes
        stream = math.ceil(layer.weight_count * per_weight + zeros)
    else:
        stream = -(-(layer.weight_count + shape.inserted_zeros) * executed.weight_bits // 8)
    per_channel = storage.channel_bytes_float if in_float else storage.channel_bytes_integer
    constants = math.ceil(layer.out_channels * per_channel)
    return aligned(stream, storage.alignment_bytes) + aligned(constants, storage.alignment_bytes)


@dataclass(frozen=True)
class LayerTime:
    """Cycles of one layer, with its weights and activations in given memory levels.

    Attributes:
        parts: cycles of arithmetic (`compute`), of each memory level by its name, of traffic that the compute rule models
            (`buffers`), and of `overhead`. All but `overhead` overlap unless the target says otherwise.
        total: cycles from start to end.
    """

    parts: Mapping[str, float]
    total: float

    @property
    def bound(self) -> str:
        """Name of the largest part."""
        return max(self.parts, key=lambda part: self.parts[part])


def layer_time(
    target: Target, shape: Shape, executed: Executed, work: Work, weight_bytes: int, placement: Placement
) -> LayerTime:
    """Cycles of a layer: compute by the target's rule, and memory by the bytes that each level moves, every tensor once."""
    parts = {"compute": work.compute}
    if buffers := work.memory + work.memory_per_weight_byte * weight_bytes:
        parts["buffers"] = buffers
    for level in dict.fromkeys((placement.weights, placement.activations)):
        if level.bytes_per_cycle is not None:
            parts[level.name] = _moved(target, shape, executed, weight_bytes, placement, level) / level.bytes_per_cycle
    busy = max(parts.values()) if target.overheads.transfers_overlap else sum(parts.values())
    parts = {part: cycles * target.overheads.scale for part, cycles in parts.items()}
    parts["overhead"] = target.overheads.scale * work.fixed + target.overheads.layer_cycles
    return LayerTime(parts, target.overheads.scale * busy + parts["overhead"])


def layer_energy_pj(
    target: Target, shape: Shape, executed: Executed, work: Work, weight_bytes: int, placement: Placement, cycles: float
) -> float:
    """Energy of a layer: power while it runs, multiply-accumulates, traffic, and the energy that the compute rule models.

    NaN if the target states none.
    """
    if target.energy is None:
        return math.nan
    pair = (executed.activation_bits, executed.weight_bits)
    per_mac = {(mac.activation_bits, mac.weight_bits): mac.pj_per_mac for mac in target.energy.macs}.get(pair, 0.0)
    levels = dict.fromkeys((placement.weights, placement.activations))
    traffic = sum(8 * _moved(target, shape, executed, weight_bytes, placement, level) * level.pj_per_bit for level in levels)
    return running_pj(target, cycles) + per_mac * shape.macs + traffic + work.energy_pj


def running_pj(target: Target, cycles: float) -> float:
    """Energy that the running chip takes in `cycles`."""
    milliwatts = 0.0 if target.energy is None else target.energy.active_mw
    return milliwatts * 1e9 * cycles / target.clock.clock_hz


def _moved(target: Target, shape: Shape, executed: Executed, weight_bytes: int, placement: Placement, level: Memory) -> float:
    """Bytes that a layer moves through a level."""
    moved = float(weight_bytes) if placement.weights == level else 0.0
    if placement.activations == level:
        moved += activation_bits_moved(target.precisions, shape, executed) / 8
    return moved


def activation_bits_moved(precisions: Precisions, shape: Shape, executed: Executed) -> int:
    """Return the bits of all activations that a layer reads and writes."""
    read, written = precisions.held_bits(executed.activation_bits), precisions.held_bits(executed.output_bits)
    return shape.inputs * read + shape.outputs * written


def aligned(size: int, alignment: int) -> int:
    """`size` rounded up to a multiple of `alignment`."""
    return -(-size // alignment) * alignment
