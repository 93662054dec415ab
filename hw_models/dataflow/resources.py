"""FPGA resources of a layer's circuit: the estimates of FINN's `fpgadataflow` operators, in closed form.

Symbols are FINN's: `pe` output channels and `simd` inputs computed at once; W, A, B bits of weights, inputs and outputs.
Bit-widths may be arrays that broadcast against one another, so one call estimates a layer at every width. The engines follow
FINN-R (Blott et al., TRETS 2018). All nodes agree with finn-plus 1.6.1, and FIFOs with github.com/Xilinx/finn at 39f0c9a:

    conv        FMPadding_rtl and ConvolutionInputGenerator_rtl where taps > 1, MVAU_hls
    depthwise   FMPadding_rtl and ConvolutionInputGenerator_rtl, VVAU_hls
    add         StreamingFIFO_rtl, ElementwiseAdd_hls, Thresholding_rtl

FINN's estimate has no logic for padding and for sums themselves. Outputs are requantized by comparing the sum with 2^B - 1
thresholds. Engines compare with all at once, which makes 8 bits expensive; after an `add`, a binary search does it.
"""

import math
from dataclasses import dataclass
from typing import Final, Literal, Self

import numpy as np

from hw_models.workload import IntArray

WeightMemory = Literal["auto", "lutram", "bram", "uram", "by_depth"]
"""Memory of a layer's weights. `by_depth` means LUTs up to `SHALLOW` words, and block RAM for more. `auto` is what FINN's
estimate counts while synthesis may choose: block RAM, but nothing for up to `SHALLOW` words of a depthwise layer."""

WindowMemory = Literal["lutram", "by_depth"]
"""Memory of a sliding window: LUTs, or LUTs up to `SHALLOW` words and block RAM for more."""

Multipliers = Literal["lut", "dsp"]

SHALLOW: Final = 128  # words that FINN keeps in LUTs if it may choose
MAX_SHIFT_REGISTER: Final = 256  # words of a FIFO made of LUTs, `max_qsrl_depth`

_FIXED_LUT = 300  # control of an engine or of a sliding window
_ROUTING = 1.1
_MAX_WIDTH = 16

_MEMORIES: Final = (
    ("uram", 72, 4096),
    ("uram", 36, 8192),
    ("uram", 18, 16384),
    ("uram", 9, 32768),
    ("bram18", 36, 512),
    ("bram18", 18, 1024),
    ("bram18", 9, 2048),
    ("lut", 1, 64),
)
"""Shapes of a memory, bits by words, in the order in which FINN prefers them."""


@dataclass(frozen=True)
class Resources:
    """Numbers of lookup tables, 18-kbit block RAMs, UltraRAMs and DSP slices, all of one shape."""

    lut: IntArray
    bram18: IntArray
    uram: IntArray
    dsp: IntArray

    @classmethod
    def of(cls, lut: IntArray | int = 0, bram18: IntArray | int = 0, uram: IntArray | int = 0, dsp: IntArray | int = 0) -> Self:
        """Broadcast numbers to one shape."""
        return cls(*(np.asarray(count, np.int64) for count in np.broadcast_arrays(lut, bram18, uram, dsp)))

    def __add__(self, other: "Resources") -> "Resources":
        """Resources of both together."""
        return Resources(self.lut + other.lut, self.bram18 + other.bram18, self.uram + other.uram, self.dsp + other.dsp)


@dataclass(frozen=True)
class Widths:
    """Bits of a layer's weights, inputs and outputs; for an `add` the weights do not matter.

    Attributes:
        accumulator_bits: most bits of an accumulator.
        symmetric_weights: whether no weight exceeds 2^(W - 1) - 1, as a symmetric quantizer makes them, and accumulators are
            only as wide as such weights need.
    """

    weight: IntArray
    activation: IntArray
    output: IntArray
    activation_signed: bool
    accumulator_bits: int = 32
    symmetric_weights: bool = False

    @classmethod
    def of(cls, weight: int, activation: int, output: int, *, signed: bool = True, accumulator_bits: int = 32) -> Self:
        """A single combination of widths."""
        return cls(np.array(weight), np.array(activation), np.array(output), signed, accumulator_bits)


def accumulator_bits(fan_in: int, widths: Widths) -> IntArray:
    """Bits that hold any sum of `fan_in` products, at most the widths' `accumulator_bits`.

    With a = log2(fan_in) + W + A - 1 - signed, the bound is ceil(a + log2(1 + 2^-a) + 1) (Colbert et al., arXiv:2301.13376),
    which is 1 + ceil(log2(2^a + 1)): one more than the bits of the integer fan_in * 2^(W + A - 1 - signed). With
    `symmetric_weights` it is at most one more than the bits of the largest sum.
    """
    shifts = [max(0, total - 1 - widths.activation_signed) for total in range(2 * _MAX_WIDTH + 1)]
    by_sum = np.array([min(1 + (fan_in << shift).bit_length(), widths.accumulator_bits) for shift in shifts], np.int64)
    bits = by_sum[widths.weight + widths.activation]
    if not widths.symmetric_weights:
        return np.asarray(bits)
    most = 1 << (widths.activation - 1) if widths.activation_signed else (1 << widths.activation) - 1
    largest = fan_in * np.maximum((1 << (widths.weight - 1)) - 1, 1) * most
    return np.asarray(np.minimum(bits, 1 + np.frexp(largest)[1]), np.int64)


def matrix_engine(
    inputs: int,
    outputs: int,
    pe: int,
    simd: int,
    widths: Widths,
    multipliers: Multipliers,
    memory: WeightMemory,
    *,
    thresholds: bool = True,
) -> Resources:
    """Resources of a matrix-vector unit of `inputs` by `outputs` weights (FINN's MW and MH), with its `thresholds` in LUTs."""
    depth = inputs * outputs // (pe * simd)
    chosen = "bram" if memory == "auto" else memory
    weights = _weight_memory(depth, pe * simd * widths.weight, chosen, word_bits=(9, 18, 36))
    accumulator = accumulator_bits(inputs, widths)
    steps = (1 << widths.output) - 1 if thresholds else np.int64(0)
    compared = steps * accumulator * -(-(outputs // pe) // 64) + steps * accumulator
    logic = _multiply_add(simd, widths, multipliers) + accumulator + compared
    return Resources.of(
        lut=np.floor(_FIXED_LUT + _ROUTING * (pe * logic) + weights.lut).astype(np.int64),
        bram18=weights.bram18,
        uram=weights.uram,
        dsp=pe * simd * _dsp_per_product(widths) if multipliers == "dsp" else 0,
    )


def vector_engine(
    channels: int,
    taps: int,
    pe: int,
    simd: int,
    widths: Widths,
    multipliers: Multipliers,
    memory: WeightMemory,
    *,
    thresholds: bool = True,
) -> Resources:
    """Resources of a vector-vector unit (depthwise): each channel has `taps` weights. Its `thresholds` are in LUTs.

    FINN counts its DSP slices by `pe` alone, and does not round up the memory of its thresholds.
    """
    depth = channels * taps // (pe * simd)
    weights = _weight_memory(depth, pe * simd * widths.weight, memory, word_bits=(8, 16, 32))
    accumulator = accumulator_bits(taps, widths)
    steps = (1 << widths.output) - 1 if thresholds else np.int64(0)
    compared = steps * accumulator * (channels // pe) / 64 + steps * accumulator
    logic = _multiply_add(simd, widths, multipliers) + accumulator + compared
    return Resources.of(
        lut=np.floor(_FIXED_LUT + _ROUTING * (pe * logic) + weights.lut).astype(np.int64),
        bram18=weights.bram18,
        uram=weights.uram,
        dsp=pe * _dsp_per_product(widths) if multipliers == "dsp" else 0,
    )


def window_depth(channels: int, taps: int, dilation: int, simd: int, *, parallel: bool) -> int:
    """Words of `simd` channels that a sliding window holds: the frames that the dilated kernel spans."""
    span = (taps - 1) * dilation
    return span * (channels // simd) + 2 if parallel else (span + 1) * (channels // simd)


def sliding_window(
    channels: int,
    taps: int,
    dilation: int,
    simd: int,
    activation: IntArray,
    *,
    parallel: bool,
    memory: WindowMemory = "by_depth",
) -> Resources:
    """Resources of the buffer before a kernel of several taps.

    A window whose taps are all read at once (`parallel`) is a chain of registers, which block RAM cannot replace.
    """
    depth = window_depth(channels, taps, dilation, simd, parallel=parallel)
    if memory == "lutram" or parallel or depth <= SHALLOW:
        return Resources.of(lut=_FIXED_LUT + simd * activation * -(-depth // 38))
    rest = depth % 16384
    full, partial = -(-simd * activation // _word_bits(depth)), -(-simd * activation // _word_bits(rest))
    blocks = -(-depth // 16384) * full - ((full - partial) if depth > 16384 else 0)
    return Resources.of(lut=_FIXED_LUT, bram18=blocks)


def stream_fifo(words: int, width: IntArray) -> Resources:
    """Resources of a FIFO of `words` words: shift registers up to `MAX_SHIFT_REGISTER`, or block RAM of a power-of-two depth."""
    if words <= MAX_SHIFT_REGISTER:
        depth = 2 if words <= 2 else max(words, 32)
        return Resources.of(lut=2 * math.ceil(math.log2(depth)) + -(-depth // 32) * -(-width // 2))
    depth = 1 << (words - 1).bit_length()
    return Resources.of(lut=2 * math.ceil(math.log2(depth)), bram18=block_rams(depth, width, word_bits=(9, 18, 36)))


def search_thresholds(channels: int, pe: int, input_bits: IntArray, output: IntArray, *, uram: bool = True) -> Resources:
    """Resources of requantization by binary search: B stages of 2^stage thresholds for each channel.

    For every stage, FINN picks the memory that wastes the fewest bits: often LUTs (64 words of one bit), and a block RAM or an
    UltraRAM that is exactly full. `uram` says whether the device has UltraRAM.
    """
    depth = channels // pe * (1 << np.arange(_MAX_WIDTH, dtype=np.int64))
    width = np.arange(int(np.max(input_bits)) + 1)[:, None]
    known = [memory for memory in _MEMORIES if uram or memory[0] != "uram"]
    blocks = np.stack([-(-width // bits) * -(-depth // words) for _, bits, words in known])
    room = np.array([bits * words for _, bits, words in known])[:, None, None]
    chosen = (blocks * room).argmin(axis=0)  # what is to be stored is the same for all of them
    taken = dict.fromkeys(("lut", "bram18", "uram"), np.zeros_like(blocks[0]))
    for i, (name, _, _) in enumerate(known):
        taken[name] = taken[name] + np.where(chosen == i, blocks[i], 0)
    counts = {name: pe * each.cumsum(axis=1)[input_bits, output - 1] for name, each in taken.items()}
    return Resources.of(**counts)


def block_rams(depth: int, width: IntArray, word_bits: tuple[int, int, int]) -> IntArray:
    """Number of 18-kbit block RAMs for `depth` words of `width` bits.

    `word_bits` are the widths of a word in a block of 2048, 1024 and 512 words.
    """
    narrow, middle, wide = word_bits
    return np.select(
        [width == 1, width == 2, width <= 4, width <= 9, (width <= 18) | (depth > 512)],
        [
            np.full_like(width, -(-depth // 16384)),
            np.full_like(width, -(-depth // 8192)),
            np.full_like(width, -(-depth // 4096)),
            -(-depth // 2048) * -(-width // narrow),
            -(-depth // 1024) * -(-width // middle),
        ],
        -(-depth // 512) * -(-width // wide),
    )


def _weight_memory(depth: int, width: IntArray, memory: WeightMemory, word_bits: tuple[int, int, int]) -> Resources:
    match memory:
        case "lutram":
            return Resources.of(lut=width * -(-depth // 64))
        case "bram":
            return Resources.of(bram18=block_rams(depth, width, word_bits))
        case "uram":
            return Resources.of(uram=-(-width // 72) * -(-depth // 4096))
        case "by_depth":
            return _weight_memory(depth, width, "lutram" if depth <= SHALLOW else "bram", word_bits)
        case "auto":
            return Resources.of(np.zeros_like(width)) if depth <= SHALLOW else _weight_memory(depth, width, "bram", word_bits)


def _multiply_add(simd: int, widths: Widths, multipliers: Multipliers) -> IntArray:
    product = widths.weight + widths.activation
    multiply = simd * (2 * -(-product // 6) - 1) * product if multipliers == "lut" else 0
    return multiply + product * (2 * simd - 1)


def _dsp_per_product(widths: Widths) -> IntArray:
    return -(-(widths.weight + widths.activation) // 48)


def _word_bits(depth: int) -> int:
    """Bits of the widest word of a block RAM of depth `depth`."""
    return next((bits for words, bits in ((512, 36), (1024, 18), (2048, 9), (4096, 4), (8192, 2)) if depth <= words), 1)
