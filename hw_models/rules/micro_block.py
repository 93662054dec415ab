"""Compute time of an NPU that works in micro-blocks (Arm Ethos-U), after the cycle model of the Vela compiler.

A layer of T frames [1, 1, T, C] is cut into tiles of w frames by D channels, w = T / n_T with n_T = ceil(T / 64). The compiler's
C++ core (`_performance` and `FindBlockConfig`) picks the tile that fetches least and fits the on-chip buffer. Tiles are computed
in micro-blocks of f frames by c channels that take 4 cycles per step. Kernels are cut into pieces of up to 8 taps, and S is the
sum over the pieces of ceil(piece / 4):

    steps      depthwise S; conv min(K ceil(Cin/32), S ceil(Cin/8))
    multiply   4 ceil(T/f) ceil(Cout/c) steps
    output     Cout T cycles_per_element
    compute    max(multiply, output) + fill;   fill = min(multiply, output) of one tile + its transfers + latency
    memory     (input reads + outputs + n_T stored weights) / bytes per cycle, with ceil(Cout/D) input reads of a conv and one per
               kernel piece of a depthwise layer
    add        compute is C T add_cycles

The two terms of a conv's steps are the depth-first and part-kernel-first orders; the compiler takes the one that uses the
multipliers better. With 16-bit activations the input block holds half the channels, a kernel step half the taps, a tile of a conv
half the channels (40-bit accumulators), and a depthwise step takes twice the time.
"""

from typing import Final, Literal

from hw_models.rules.base import ComputeRule
from hw_models.sections import Count, NotNegative, Positive
from hw_models.shape import Shape
from hw_models.work import Work
from hw_models.workload import LayerKind

_NATIVE_ACTIVATION_BITS: Final = 8


class MicroBlockCompute(ComputeRule):
    """Compute time of an NPU that works in micro-blocks of frames by channels (see `micro_block`).

    Tensors are one pixel high, so a micro-block of 2 x 2 pixels holds only 2 frames (`block_frames`). A conv over an even number
    of frames uses 1 x 4 pixels instead (`conv_block_frames`); a depthwise layer cannot, nor can an odd number of frames.
    """

    rule: Literal["micro_block"]
    block_frames: Count
    conv_block_frames: Count
    block_channels: Count
    block_cycles: Count
    block_input_channels: Count
    part_kernel_input_channels: Count
    kernel_step: Count
    kernel_piece: Count
    tile_frames: Count
    conv_tile_channels: Count
    depthwise_tile_channels: Count
    output_cycles_per_element: Positive
    wide_output_cycles_per_element: Positive
    """The same cycles with 16-bit activations."""
    add_cycles_per_element: Positive
    buffer_bytes_per_cycle: Positive
    buffer_latency_cycles: NotNegative

    def work(self, shape: Shape, activation_bits: int, weight_bits: int) -> Work:
        """Cycles of a layer at 8- or 16-bit activations; weights pass the buffer as they are stored."""
        if shape.kind is LayerKind.ADD:
            return Work(compute=self.add_cycles_per_element * shape.elements)
        widening = -(-activation_bits // _NATIVE_ACTIVATION_BITS)
        per_element = self.output_cycles_per_element if widening == 1 else self.wide_output_cycles_per_element
        tiles = -(-shape.frames // self.tile_frames)
        frames = -(-shape.frames // tiles)
        channels = min(self._tile_channels(shape, widening), shape.out_channels)
        steps = self._steps(shape, widening)

        def multiply(frames: int, channels: int) -> float:
            blocks = -(-frames // self._frames_per_block(shape)) * -(-channels // self.block_channels)
            return float(self.block_cycles * blocks * steps)

        def output(frames: int, channels: int) -> float:
            return per_element * frames * channels

        in_channels = min(shape.in_channels, channels if shape.kind is LayerKind.DEPTHWISE else self.block_input_channels)
        tile_bytes = frames * (in_channels + channels) * activation_bits / 8
        fill = min(multiply(frames, channels), output(frames, channels))
        fill += tile_bytes / self.buffer_bytes_per_cycle + self.buffer_latency_cycles
        reads = -(-shape.out_channels // channels) if shape.kind is LayerKind.CONV else -(-shape.taps // self.kernel_piece)
        moved = (reads * shape.inputs + shape.outputs) * activation_bits / 8
        return Work(
            compute=max(multiply(shape.frames, shape.out_channels), output(shape.frames, shape.out_channels)) + fill,
            memory=moved / self.buffer_bytes_per_cycle,
            memory_per_weight_byte=tiles / self.buffer_bytes_per_cycle,
        )

    def peak_macs_per_cycle(self, activation_bits: int, weight_bits: int) -> float:
        """Number of multipliers of a micro-block on 8-bit activations."""
        per_block = self.conv_block_frames * self.block_channels * self.block_input_channels / self.block_cycles
        return per_block / -(-activation_bits // _NATIVE_ACTIVATION_BITS)

    def _frames_per_block(self, shape: Shape) -> int:
        paired = shape.kind is LayerKind.CONV and shape.frames % 2 == 0
        return self.conv_block_frames if paired else self.block_frames

    def _tile_channels(self, shape: Shape, widening: int) -> int:
        return self.depthwise_tile_channels if shape.kind is LayerKind.DEPTHWISE else self.conv_tile_channels // widening

    def _steps(self, shape: Shape, widening: int) -> int:
        if shape.kind is LayerKind.DEPTHWISE:
            return widening * _kernel_steps(shape.taps, self.kernel_piece, self.kernel_step)
        depth_first = shape.taps * -(-shape.in_channels * widening // self.block_input_channels)
        part_kernel = _kernel_steps(shape.taps, self.kernel_piece, self.kernel_step // widening)
        return min(depth_first, part_kernel * -(-shape.in_channels // self.part_kernel_input_channels))


def _kernel_steps(taps: int, piece: int, step: int) -> int:
    whole, rest = divmod(taps, piece)
    return whole * -(-piece // step) + -(-rest // step)
