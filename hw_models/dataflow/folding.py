"""The folding of each layer's circuit (FINN's PE and SIMD), and the resulting cycles.

A layer runs once per frame at all bit-widths, so foldings depend only on shapes. They are chosen as by FINN's `SetFolding`: of
the divisors, the least that keeps the cycles of an inference within a target:

    conv        SIMD over divisors of the inputs, then PE over divisors of the outputs
    depthwise   PE over divisors of the channels, then SIMD over divisors of the taps
    add         PE over divisors of the channels

There are two differences. `SetFolding` wants fewer cycles than its target; here they are at most the target. `SetFolding` also
limits SIMD so that a word of weights has at most `mvau_wwidth_max` bits. Here there is no such limit, because the folding would
depend on bit-widths; FINN recommends the same for fast designs. Two limits of the HLS tool apply: streams of activations are at
most 8191 bits wide, and an engine reads its inputs in at most 1024 steps.
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
    """

    pe: int
    simd: int
    window_simd: int
    parallel_window: bool


def choose_folding(layer: Layer, frames: int, target_cycles: int) -> Folding:
    """The least folding whose engine takes at most `target_cycles` per inference over `frames` frames, or the greatest.

    All taps are read at once only if that is faster: such a window takes a cycle for each padded frame, and the kernel may span
    more frames than there are.
    """
    parallel_pays = layer.dilation < frames
    match layer.kind:
        case LayerKind.CONV:
            steps = layer.macs(frames)
            divisors = [d for d in _divisors(layer.fan_in) if d * _MAX_STEPS >= layer.fan_in]
            simd = _least(divisors, steps, target_cycles)
            pe = _least(_divisors(layer.out_channels), steps // simd, target_cycles)
            if layer.kernel_size == 1:
                return Folding(pe, simd, 0, parallel_window=False)
            words = frames * layer.kernel_size * layer.in_channels
            window = _least(_divisors(layer.in_channels), words, target_cycles - 2)
            slow = words // window + 2 > target_cycles
            return Folding(pe, simd, window, parallel_window=parallel_pays and slow and window == layer.in_channels)
        case LayerKind.DEPTHWISE:
            steps = layer.macs(frames)
            pe = _least(_divisors(layer.out_channels), steps, target_cycles)
            taps = [d for d in _divisors(layer.kernel_size) if d * pe <= _MAX_LANES]
            simd = _least(taps, steps // pe, target_cycles) if parallel_pays and pe == layer.out_channels else 1
            window = pe if layer.kernel_size > 1 else 0
            return Folding(pe, simd, window, parallel_window=simd > 1)
    adders = _least(_divisors(layer.out_channels), frames * layer.out_channels, target_cycles)
    return Folding(adders, 1, 0, parallel_window=False)


def node_cycles(layer: Layer, frames: int, folding: Folding) -> tuple[int, ...]:
    """Cycles per inference of a layer's nodes, in order: sliding window and engine, or sum and thresholds."""
    if layer.kind is LayerKind.ADD:
        words = frames * layer.out_channels // folding.pe
        return words, words
    engine = layer.macs(frames) // (folding.pe * folding.simd)
    if not folding.window_simd:
        return (engine,)
    return _window_cycles(layer, frames, folding), engine


def initiation_interval(workload: Workload, foldings: tuple[Folding, ...]) -> int:
    """Cycles from one inference to the next: those of the slowest node."""
    pairs = zip(workload.layers, foldings, strict=True)
    return max(max(node_cycles(layer, workload.frames, folding)) for layer, folding in pairs)


def latency_cycles(workload: Workload, foldings: tuple[Folding, ...]) -> int:
    """Upper bound of the cycles from the first input to the last output: the sum over the nodes of the longest path.

    This is FINN's `critical_path_cycles`. In reality nodes overlap, and so does the padding of frames.
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


def _window_cycles(layer: Layer, frames: int, folding: Folding) -> int:
    words_per_frame = layer.in_channels // folding.window_simd
    if folding.parallel_window:
        padded = frames + (layer.kernel_size - 1) * layer.dilation
        return padded * words_per_frame + 2
    cycles = frames * layer.kernel_size * words_per_frame + 2
    return cycles - (layer.kernel_size - 1) if layer.kind is LayerKind.DEPTHWISE else cycles


def _least(divisors: list[int], steps: int, target_cycles: int) -> int:
    return next((d for d in divisors if steps // d <= target_cycles), divisors[-1])


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, min(number, _MAX_LANES) + 1) if number % d == 0]
