"""What one layer costs on a target: the widths that really run, the bytes stored, the cycles."""

import math
from dataclasses import dataclass

from hw_models.bit_flexible import bit_flexible_cycles
from hw_models.cycles import Cycles
from hw_models.micro_block import micro_block_cycles
from hw_models.rates import rate_cycles
from hw_models.shape import Shape
from hw_models.target import BitFlexibleCompute, MicroBlockCompute, Precisions, RateCompute, Target
from hw_models.workload import FLOAT_BITS, Layer, LayerKind


@dataclass(frozen=True)
class Executed:
    """The widths a layer runs in; `weight_bits` is 0 for an `add`."""

    activation_bits: int
    weight_bits: int
    output_bits: int


def executed_pair(precisions: Precisions, activation_bits: int, weight_bits: int) -> tuple[int, int] | None:
    """The (activation, weight) pair that runs for a chosen one, or None where the target refuses it."""
    if (activation_bits, weight_bits) in precisions.pairs:
        return activation_bits, weight_bits
    if precisions.unsupported == "refuse":
        return None
    wider = [(a, w) for a, w in precisions.pairs if a >= activation_bits and w >= weight_bits]
    return min(wider, key=lambda pair: (pair[1], pair[0]), default=None)


def executed_activation(precisions: Precisions, bits: int) -> int | None:
    """The width in which an activation is held for a chosen one, or None where the target refuses it."""
    if bits in precisions.activation_bits:
        return bits
    if precisions.unsupported == "refuse":
        return None
    return min((a for a in precisions.activation_bits if a >= bits), default=None)


def execute(precisions: Precisions, kind: LayerKind, activation_bits: int, weight_bits: int, output_bits: int) -> Executed | None:
    """The widths a layer runs in, or None where the target refuses one of them."""
    output = executed_activation(precisions, output_bits)
    if output is None:
        return None
    if kind is LayerKind.ADD:
        activation = executed_activation(precisions, activation_bits)
        return None if activation is None else Executed(activation, 0, precisions.output_bits or output)
    pair = executed_pair(precisions, activation_bits, weight_bits)
    return None if pair is None else Executed(*pair, precisions.output_bits or output)


def stored_weight_bytes(target: Target, layer: Layer, shape: Shape, weight_bits: int, executed: Executed) -> int:
    """Bytes of a layer's weights, biases and requantization constants as stored; 0 for an `add`."""
    if layer.weight_site is None:
        return 0
    storage = target.storage
    if storage.codec == "encoded":
        per_weight = next(size for bits, size in storage.encoded_bytes_per_weight if bits >= weight_bits)
        zeros = shape.inserted_zeros * storage.inserted_zero_bytes
        stream = math.ceil(layer.weight_count * per_weight + zeros)
    else:
        stream = -(-(layer.weight_count + shape.inserted_zeros) * executed.weight_bits // 8)
    in_float = executed.weight_bits == FLOAT_BITS
    per_channel = storage.channel_bytes_float if in_float else storage.channel_bytes_integer
    constants = math.ceil(layer.out_channels * per_channel)
    return aligned(stream, storage.alignment_bytes) + aligned(constants, storage.alignment_bytes)


def layer_cycles(target: Target, shape: Shape, executed: Executed, weight_bytes: int) -> Cycles:
    """Cycles of a layer: compute by the target's rule, memory by the slowest level, tensors moved once."""
    match target.compute:
        case RateCompute() as rule:
            cycles = rate_cycles(rule, shape, executed.activation_bits, executed.weight_bits)
        case MicroBlockCompute() as rule:
            cycles = micro_block_cycles(rule, shape, executed.activation_bits)
        case BitFlexibleCompute() as rule:
            cycles = bit_flexible_cycles(rule, shape, executed.activation_bits, executed.weight_bits)
    activation_bytes = shape.inputs * executed.activation_bits / 8 + shape.outputs * executed.output_bits / 8
    memory = cycles.memory
    for level in target.memory:
        if level.bytes_per_cycle is not None:
            moved = {"weights": float(weight_bytes), "activations": activation_bytes}
            memory = max(memory, sum(moved[what] for what in level.holds) / level.bytes_per_cycle)
    return Cycles(cycles.compute, memory, cycles.fixed + target.overheads.layer_cycles)


def aligned(size: int, alignment: int) -> int:
    """`size` rounded up to a multiple of `alignment`."""
    return -(-size // alignment) * alignment
