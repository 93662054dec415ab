"""Compute time of an NPU that works in micro-blocks (Arm Ethos-U), after the Vela compiler's cycle model.

With T frames, C channels, K taps, micro-blocks of f frames by c channels that take 4 cycles, and kernels cut
into pieces of up to 8 taps (`_estimate_conv_cycles` of Vela's `npu_performance.py`):

    depthwise   max(4 ceil(T/f) ceil(C/c) S, C T out_cycles), S = sum over pieces of ceil(piece / 4)
    conv        max(4 ceil(T/f) ceil(Cout/c) min(K ceil(Cin/32), S ceil(Cin/8)), Cout T out_cycles)
    add         C T add_cycles

The two terms of `conv` are Vela's depth-first and part-kernel-first orders, of which the compiler picks one
per layer. With 16-bit activations the input block holds half the channels, a kernel step half the taps, and a
depthwise step takes twice. Block set-up and per-block delays are left out.
"""

from hw_models.cycles import Cycles
from hw_models.shape import Shape
from hw_models.target import MicroBlockCompute
from hw_models.workload import LayerKind

_NATIVE_ACTIVATION_BITS = 8


def micro_block_cycles(rule: MicroBlockCompute, shape: Shape, activation_bits: int) -> Cycles:
    """Cycles of a layer at 8- or 16-bit activations; the weight width changes nothing here."""
    widening = -(-activation_bits // _NATIVE_ACTIVATION_BITS)
    if shape.kind is LayerKind.ADD:
        return Cycles(compute=rule.add_cycles_per_element * shape.outputs, memory=0.0, fixed=0.0)
    blocks = -(-shape.frames // rule.block_frames) * -(-shape.out_channels // rule.block_channels)
    if shape.kind is LayerKind.DEPTHWISE:
        steps = widening * _kernel_steps(shape.taps, rule.kernel_piece, rule.kernel_step)
    else:
        depth_first = shape.taps * -(-shape.in_channels * widening // rule.block_input_channels)
        taps_per_step = rule.kernel_step // widening
        part_kernel = _kernel_steps(shape.taps, rule.kernel_piece, taps_per_step)
        steps = min(depth_first, part_kernel * -(-shape.in_channels // rule.part_kernel_input_channels))
    output = rule.output_cycles_per_element * shape.outputs
    return Cycles(compute=max(float(rule.block_cycles * blocks * steps), output), memory=0.0, fixed=0.0)


def _kernel_steps(taps: int, piece: int, step: int) -> int:
    whole, rest = divmod(taps, piece)
    return whole * -(-piece // step) + -(-rest // step)
