"""The folding of each layer's circuit (FINN's PE and SIMD), and the resulting cycles.

A layer runs once per frame at all bit-widths, so foldings depend only on shapes. They are chosen as by the `SetFolding` of
finn-plus 1.6.1: of the divisors, the least that keeps the cycles of an inference within a target:

    conv        SIMD over divisors of the inputs, then PE over divisors of the outputs
    depthwise   PE over divisors of the channels, then SIMD over divisors of the taps; PE again if the window is too slow
    add         PE over divisors of the channels

There is one difference. `SetFolding` raises PE instead of SIMD once a word of weights has more than `mvau_wwidth_max` (36) bits.
Here there is no such limit, because the folding would depend on bit-widths; FINN recommends the same for fast designs. Two limits
of the HLS tool apply: streams of activations are at most 8191 bits wide, and an engine reads its inputs in at most 1024 steps.
"""

from dataclasses import dataclass
from typing import Final

from hw_models.workload import Layer, LayerKind, Workload

MAX_BITS: Final = 8
"""Widest tensor: an engine compares each sum with 2^bits - 1 thresholds at once."""

_MAX_LANES = 8191 // MAX_BITS
_MAX_STEPS = 1024


@dataclass(frozen=True)
class Folding:
    """Parallelism of one layer.

    Attributes:
        pe: number of output channels computed at once.
        simd: number of inputs of each computed at once; 1 for an `add`.
        window_simd: number of channels that the sliding window passes on at once; 0 without a window.
        parallel_window: whether the window passes on all taps of these channels at once.
        padding_simd: number of channels that are padded at once; 0 without padding.
    """

    pe: int
    simd: int
    window_simd: int
    parallel_window: bool
    padding_simd: int = 0


def choose_folding(layer: Layer, frames: int, target_cycles: int) -> Folding:
    """The least folding whose engine takes at most `target_cycles` per inference over `frames` frames, or the greatest.

    All taps are read at once only if that is faster: such a window takes a cycle for each padded frame, and the kernel may span
    more frames than there are.
    """
    match layer.kind:
        case LayerKind.CONV:
            return _dense(layer, frames, target_cycles)
        case LayerKind.DEPTHWISE:
            return _depthwise(layer, frames, target_cycles)
    adders = _least(_divisors(layer.out_channels), frames * layer.out_channels, target_cycles)
    return Folding(adders, 1, 0, parallel_window=False)


def node_cycles(layer: Layer, frames: int, folding: Folding) -> tuple[int, ...]:
    """Cycles per inference of a layer's nodes, in order: padding, sliding window and engine, or sum and thresholds."""
    if layer.kind is LayerKind.ADD:
        words = frames * layer.out_channels // folding.pe
        return words, words
    engine = layer.macs(frames) // (folding.pe * folding.simd)
    if not folding.window_simd:
        return (engine,)
    window = _window_cycles(layer, frames, folding.window_simd, parallel=folding.parallel_window)
    if not folding.padding_simd:
        return window, engine
    return _padded(layer, frames) * layer.in_channels // folding.padding_simd, window, engine


def initiation_interval(workload: Workload, foldings: tuple[Folding, ...]) -> int:
    """Cycles from one inference to the next: those of the slowest node."""
    pairs = zip(workload.layers, foldings, strict=True)
    return max(max(node_cycles(layer, workload.frames, folding)) for layer, folding in pairs)


def latency_cycles(workload: Workload, foldings: tuple[Folding, ...]) -> int:
    """Upper bound of the cycles from the first input to the last output: the sum over the nodes of the longest path.

    This is FINN's `critical_path_cycles` without the copies of streams that two layers read. In reality nodes overlap.
    """
    done = dict.fromkeys(workload.activation_sites, 0)
    for layer, folding in zip(workload.layers, foldings, strict=True):
        start = max(done[site] for site in layer.input_sites)
        done[layer.output_site] = start + sum(node_cycles(layer, workload.frames, folding))
    return max(done.values())


def residual_frames(workload: Workload) -> tuple[int, ...]:
    """Frames that each layer's FIFO holds: for an `add`, the lag of one branch behind the other; 0 for other layers.

    A sliding window lags by the frames that its kernel spans, an engine by the frame that it collects. This is an upper bound:
    with causal padding the window lags less.
    """
    lag = dict.fromkeys(workload.activation_sites, 0)
    waiting: list[int] = []
    for layer in workload.layers:
        arrivals = [lag[site] for site in layer.input_sites]
        waiting.append(max(arrivals) - min(arrivals))
        own = 0 if layer.kind is LayerKind.ADD else (layer.kernel_size - 1) * layer.dilation + 1
        lag[layer.output_site] = max(arrivals) + own
    return tuple(waiting)


def _dense(layer: Layer, frames: int, target_cycles: int) -> Folding:
    steps = layer.macs(frames)
    divisors = [d for d in _divisors(layer.fan_in) if d * _MAX_STEPS >= layer.fan_in]
    simd = _least(divisors, steps, target_cycles)
    pe = _least(_divisors(layer.out_channels), steps // simd, target_cycles)
    if layer.kernel_size == 1:
        return Folding(pe, simd, 0, parallel_window=False)
    words = frames * layer.kernel_size * layer.in_channels
    window = _least(_divisors(layer.in_channels), words, target_cycles - 2)
    slow = words // window + 2 > target_cycles
    parallel = layer.dilation < frames and slow and window == layer.in_channels
    return Folding(pe, simd, window, parallel, _padding_simd(layer, frames, target_cycles))


def _depthwise(layer: Layer, frames: int, target_cycles: int) -> Folding:
    steps, channels = layer.macs(frames), _divisors(layer.out_channels)
    pe = _least(channels, steps, target_cycles)
    taps = [d for d in _divisors(layer.kernel_size) if d * pe <= _MAX_LANES]
    simd = _least(taps, steps // pe, target_cycles) if layer.dilation < frames and pe == layer.out_channels else 1
    if layer.kernel_size == 1:
        return Folding(pe, simd, 0, parallel_window=simd > 1)
    if simd == 1:
        fast = (d for d in channels if d >= pe and _window_cycles(layer, frames, d, parallel=False) <= target_cycles)
        pe = next(fast, channels[-1])
    return Folding(pe, simd, pe, simd > 1, _padding_simd(layer, frames, target_cycles))


def _padding_simd(layer: Layer, frames: int, target_cycles: int) -> int:
    """Channels to pad at once; 0 for a single frame, whose past waits in the window."""
    if frames == 1:
        return 0
    return _least(_divisors(layer.in_channels), _padded(layer, frames) * layer.in_channels, target_cycles)


def _padded(layer: Layer, frames: int) -> int:
    """Frames that a window reads; only itself of a single frame, whose past waits in the window."""
    return frames + (layer.kernel_size - 1) * layer.dilation if frames > 1 else 1


def _window_cycles(layer: Layer, frames: int, simd: int, *, parallel: bool) -> int:
    """Cycles of a sliding window. That of a depthwise layer repeats its last taps before it reads the next inference."""
    words_per_frame = layer.in_channels // simd
    if parallel:
        return _padded(layer, frames) * words_per_frame + 2
    cycles = frames * layer.kernel_size * words_per_frame
    if layer.kind is LayerKind.DEPTHWISE:
        cycles = max(cycles + (words_per_frame - 1) * layer.kernel_size, _padded(layer, frames) * words_per_frame)
    return cycles + 2


def _least(divisors: list[int], steps: int, target_cycles: int) -> int:
    return next((d for d in divisors if steps // d <= target_cycles), divisors[-1])


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, min(number, _MAX_LANES) + 1) if number % d == 0]
