"""How far each layer's circuit is unfolded (FINN's PE and SIMD), and the cycles that follow.

A layer runs once per frame whatever its bit-widths, so foldings depend on shapes alone. They are chosen as FINN's `SetFolding`
chooses them, from divisors and the least that keeps the cycles of an inference in bounds:

    conv        SIMD over divisors of the inputs, then PE over divisors of the outputs
    depthwise   PE over divisors of the channels, then SIMD over divisors of the taps
    add         PE over divisors of the channels

with these differences. `SetFolding` wants fewer cycles than its target, here they are at most the target. And it stops raising
SIMD where a word of weights exceeds `mvau_wwidth_max` bits; that would tie the folding to bit-widths, so there is no such stop,
as FINN advises for fast designs. Two limits of the HLS tool hold: streams of activations are at most 8191 bits wide, and an
engine reads its inputs in at most 1024 steps.
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
        pe: output channels at once.
        simd: inputs of each at once; 1 for an `add`.
        window_simd: channels that the sliding window passes on at once; 0 where there is none.
        parallel_window: all taps of those at once.
    """

    pe: int
    simd: int
    window_simd: int
    parallel_window: bool


def choose_folding(layer: Layer, frames: int, target_cycles: int) -> Folding:
    """The least folding whose engine takes at most `target_cycles` per inference over `frames` frames, else the greatest.

    All taps are read at once only where that is faster: such a window takes a cycle for each padded frame, and a kernel may reach
    over more frames than there are.
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
    """Cycles per inference of a layer's nodes in the order of the stream: sliding window and engine, or sum and thresholds."""
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
    """Most cycles from the first input to the last output: the nodes of the longest path one after another, without overlap.

    This is FINN's `critical_path_cycles`; nodes overlap in truth, and the padding of frames runs beside them.
    """
    done = dict.fromkeys(workload.activation_sites, 0)
    for layer, folding in zip(workload.layers, foldings, strict=True):
        start = max(done[site] for site in layer.input_sites)
        done[layer.output_site] = start + sum(node_cycles(layer, workload.frames, folding))
    return max(done.values())


def residual_frames(workload: Workload) -> tuple[int, ...]:
    """Frames that each layer's FIFO holds: for an `add`, by how much one branch lags behind the other; else 0.

    A sliding window lags by the frames its kernel spans, an engine by the frame it collects. With causal padding the window lags
    less: this is the most it can be.
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
