"""Compute time from the throughput of each kernel class: the flat part of a roofline (Williams et al., CACM 2009).

A kernel works in tiles of frames, taps, input and output channels. With every dimension rounded up to whole tiles, M products and
N outputs take

    M / macs_per_cycle + N * cycles_per_output

where the second term is the fixed cost of an output: requantization, packing, storing. The target's memory levels charge the
sloped part of the roofline, bytes over bandwidth, and its overheads charge the launch of a kernel. One of these bounds a
depthwise layer or a sum, which has little arithmetic.
"""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from hw_models.rules.base import ComputeRule
from hw_models.sections import Bits, Count, KernelClass, NotNegative, Positive, Precisions, Section, Source
from hw_models.shape import Shape
from hw_models.work import Work
from hw_models.workload import LayerKind

KernelPair = Annotated[tuple[Bits, Annotated[int, Field(ge=0, le=32)]], Field(strict=False)]


class Throughput(Section):
    """Throughput of one kernel class at the given pairs of (activation, weight) bits; the weight bits of an `add` are 0."""

    kernel: KernelClass
    pairs: Annotated[tuple[KernelPair, ...], Field(strict=False, min_length=1)]
    macs_per_cycle: Positive | None = None
    cycles_per_output: NotNegative = 0.0
    tile_frames: Count = 1
    tile_taps: Count = 1
    tile_in_channels: Count = 1
    tile_out_channels: Count = 1
    source: Source

    @model_validator(mode="after")
    def _takes_time(self) -> Self:
        if (self.macs_per_cycle is None) != (self.kernel == "add"):
            raise ValueError(f"macs_per_cycle: found {self.macs_per_cycle} for kernel '{self.kernel}'; wanted with all but 'add'")
        if self.kernel == "add" and not self.cycles_per_output:
            raise ValueError("cycles_per_output: found 0 for kernel 'add'; wanted more")
        return self

    def cycles(self, shape: Shape) -> float:
        """Cycles of a layer of this kernel class."""
        frames = _whole_tiles(shape.worked_frames if shape.kind is LayerKind.ADD else shape.frames, self.tile_frames)
        outputs = frames * shape.groups * _whole_tiles(shape.out_channels // shape.groups, self.tile_out_channels)
        cycles = outputs * self.cycles_per_output
        if self.macs_per_cycle is not None:
            dense = shape.kind is LayerKind.CONV
            inputs = _whole_tiles(shape.in_channels // shape.groups, self.tile_in_channels) if dense else 1
            taps = _whole_tiles(shape.taps, self.tile_taps)
            cycles += outputs * inputs * taps / self.macs_per_cycle
        return cycles


class RooflineCompute(ComputeRule):
    """Compute time from the throughput of each kernel class (see `roofline`)."""

    general: ClassVar = True

    rule: Literal["roofline"]
    throughput: Annotated[tuple[Throughput, ...], Field(strict=False, min_length=1)]

    def work(self, shape: Shape, activation_bits: int, weight_bits: int) -> Work:
        """Cycles of arithmetic; the target charges memory and launch."""
        pair = (activation_bits, 0 if shape.kind is LayerKind.ADD else weight_bits)
        kernel = next(entry for entry in self.throughput if entry.kernel == shape.kind.value and pair in entry.pairs)
        return Work(compute=kernel.cycles(shape))

    def peak_macs_per_cycle(self, activation_bits: int, weight_bits: int) -> float:
        """Peak rate of the fastest kernel class at these widths."""
        pair = (activation_bits, weight_bits)
        return max(entry.macs_per_cycle for entry in self.throughput if pair in entry.pairs and entry.macs_per_cycle is not None)

    def check(self, precisions: Precisions) -> None:
        """Raise `ValueError` unless there is one throughput for every kernel class at every pair, and no other."""
        found = [(entry.kernel, *pair) for entry in self.throughput for pair in entry.pairs]
        wanted: set[tuple[KernelClass, int, int]] = {("add", a, 0) for a in precisions.activation_bits}
        for kernel in ("conv", "depthwise"):
            wanted |= {(kernel, a, w) for a, w in precisions.pairs}
        for kernel, a, w in sorted(wanted.union(found)):
            count, expected = found.count((kernel, a, w)), int((kernel, a, w) in wanted)
            if count != expected:
                raise ValueError(f"compute.throughput: found {count} for kernel '{kernel}', pair [{a}, {w}]; wanted {expected}")


def _whole_tiles(size: int, tile: int) -> int:
    return -(-size // tile) * tile
