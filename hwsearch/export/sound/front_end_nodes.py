"""The spectral front end as nodes of an ONNX graph: from sound to features, and from a mask to sound.

It computes what `hwsearch.separator.features` and `hwsearch.separator.stft` compute. Inside, frames come before bins. The
matrices of the Fourier transform are not stored: ONNX Runtime computes them once, when it loads the file.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike
from onnx import TensorProto

from hwsearch.data.arrays import SPEED_OF_SOUND
from hwsearch.export.onnx_writer import OnnxWriter
from hwsearch.separator.form import (
    LPS_FLOOR,
    SMALLEST_LEVEL,
    SMALLEST_MAGNITUDE,
    SMALLEST_POWER,
    WIENER_RANGE,
    SpectralForm,
    hann,
    inverse_coherence,
)

EVERYTHING = np.iinfo(np.int64).max
"""The end of a slice that has no end."""

Complex = tuple[str, str]
"""Names of the real and the imaginary part of a tensor."""


@dataclass(frozen=True)
class Analysed:
    """Names of the tensors that the analysis makes.

    Attributes:
        features: [1, features, frames], the input of the network.
        reference: spectrum of microphone 0, [1, frames, bins] each.
        start: the mask that the network's mask is added to, [1, frames, bins]; none for zero.
    """

    features: str
    reference: Complex
    start: str | None


class FrontEndNodes:
    """Writes the nodes of a front end into a graph.

    Attributes:
        hop: samples from one frame to the next.
        hops: hops in a frame.
    """

    def __init__(self, writer: OnnxWriter, form: SpectralForm) -> None:
        self._write = writer.node
        self._store = writer.constant
        self._form = form
        self._length = form.config.n_fft
        self._bins = form.bins
        self.hop = form.config.hop_length
        self.hops = self._length // self.hop
        self._window = hann(self._length)

    def spectra(self, mixture: str) -> Complex:
        """Transform sound [mics, (frames + hops - 1) * hop] into spectra [mics, frames, bins]."""
        blocks = self._write("Reshape", [mixture, self.integers(self._form.array.microphones, -1, self.hop)])
        # The r-th hop of every frame, for each r.
        ends = [*range(1 - self.hops, 0), EVERYTHING]
        frames = self._write("Concat", [self.part(blocks, r, end, axis=1) for r, end in enumerate(ends)], axis=2)
        # Cosines and the window are even about the middle of a frame, and sines are odd. So the samples before and behind it are
        # added and subtracted first: half the products are left. The window is zero at the first sample, which has no mirror.
        middle = self._length // 2
        before = self.part(frames, 1, middle + 1, axis=2)
        ends = [self.integers(value) for value in (self._length - 1, middle - 1, 2, -1)]
        behind = self._write("Slice", [frames, *ends])
        window = self._window[1 : middle + 1, None].copy()
        window[-1] /= 2  # the middle itself is there twice
        basis = self._write("Mul", [self.part(self._waves, 1, middle + 1, axis=0), self.floats(window)])
        cosine, sine = self.part(basis, 0, self._bins, axis=1), self.part(basis, self._bins, EVERYTHING, axis=1)
        even, odd = self._write("Add", [before, behind]), self._write("Sub", [before, behind])
        return self._write("MatMul", [even, cosine]), self._write("MatMul", [odd, sine])

    def power(self, spectra: Complex) -> str:
        """Compute the mean power of each frame of microphone 0, [1, frames]."""
        return self._write("ReduceMean", [self._squared(self._first(spectra))], axes=[2], keepdims=0)

    def analyse(self, spectra: Complex, direction: str, level: str) -> Analysed:
        """Compute the features.

        Args:
            spectra: [mics, frames, bins] each.
            direction: of the target in degrees, [1].
            level: of microphone 0, [1] for all frames or [frames].
        """
        config = self._form.config
        levels = self._write("Max", [self._write("Reshape", [level, self.integers(1, -1, 1)]), self.floats(SMALLEST_LEVEL)])
        magnitude = self._write("Sqrt", [self._squared(spectra)])
        relative = self._write("Div", [self.part(magnitude, 0, 1, axis=0), levels])
        phase = self._steering_phase(direction)
        wave = self._write("Cos", [phase]), self._write("Sin", [phase])
        size = self._write("Add", [magnitude, self.floats(SMALLEST_MAGNITUDE)])
        phasor = _both(spectra, lambda part: self._write("Div", [part, size]))
        steered = self._times_conjugate(phasor, wave)
        planes = [self._write("Log", [self._write("Add", [relative, self.floats(LPS_FLOOR)])]), self._angle_feature(steered)]
        start = None
        if config.beam:
            start, wiener = self._beam_features(spectra, wave)
            planes += [start, wiener]
        if config.ipd != "none":
            planes += self._differences(steered if config.ipd == "steered" else phasor)
        turned = self._write("Transpose", [self._write("Concat", planes, axis=0)], perm=[0, 2, 1])
        features = self._write("Reshape", [turned, self.integers(1, self._form.inputs, -1)])
        return Analysed(features, self._first(spectra), start)

    def synthesise(self, analysed: Analysed, mask: str) -> tuple[str, str]:
        """Apply a mask [1, 2 * bins, frames] and transform back.

        Returns:
            The sum of the windowed frames, [frames + hops - 1, hop], and that of the squared windows, its divisor.
        """
        parts = self._write("Reshape", [mask, self.integers(2, self._bins, -1)])
        parts = self._write("Transpose", [parts], perm=[0, 2, 1])
        real, imaginary = (self.part(parts, part, part + 1, axis=0) for part in (0, 1))
        if analysed.start is not None:
            real = self._write("Add", [real, analysed.start])
        estimate = self._write("Concat", list(self._times(analysed.reference, (real, imaginary))), axis=2)
        # Every bin but the first and the last stands for two.
        twice = np.full(self._bins, 2.0)
        twice[[0, -1]] = 1.0
        scale = self.floats(self._window[:, None] / self._length), self.floats(np.concatenate([twice, twice]))
        basis = self._write("Mul", [self._write("Mul", [self._waves, scale[0]]), scale[1]])
        frames = self._write("MatMul", [estimate, self._write("Transpose", [basis], perm=[1, 0])])
        frames = self._write("Reshape", [frames, self.integers(-1, self.hops, self.hop)])
        squares = np.square(self._window).reshape(1, self.hops, self.hop)
        windows = self._write("Expand", [self.floats(squares), self._write("Shape", [frames])])
        return self._overlapped(frames), self._overlapped(windows)

    def running_level(self, power: str, state: str, decay: float) -> tuple[str, str]:
        """Compute the level of each frame from the frames until then; see `features.running_level`.

        Args:
            power: [1, frames].
            state: sums of powers and of weights before the first frame, [1, 2].
            decay: from frame to frame.

        Returns:
            The levels [frames, 1], and the state behind the last frame.
        """
        ones = self._write("Expand", [self.floats(1), self._write("Shape", [power])])
        count = self._write("CumSum", [ones, self._store(np.array(1))])
        turned = self._write("Transpose", [count], perm=[1, 0])
        age, zero, rate = self._write("Sub", [turned, count]), self.floats(0), self.floats(np.log(decay))
        past = self._write("Exp", [self._write("Mul", [turned, rate])])
        recent = self._write("Exp", [self._write("Mul", [self._write("Max", [age, zero]), rate])])
        recent = self._write("Where", [self._write("Less", [age, zero]), zero, recent])
        summed = self._write("Transpose", [self._write("Concat", [power, ones], axis=0)], perm=[1, 0])
        sums = self._write("Add", [self._write("MatMul", [recent, summed]), self._write("Mul", [past, state])])
        ratio = self._write("Div", [self.part(sums, 0, 1, axis=1), self.part(sums, 1, 2, axis=1)])
        return self._write("Sqrt", [ratio]), self.part(sums, -1, EVERYTHING, axis=0)

    def floats(self, values: ArrayLike) -> str:
        """Store float32 values."""
        return self._store(np.asarray(values, np.float32))

    def integers(self, *values: int) -> str:
        """Store a list of integers, such as a shape."""
        return self._store(np.array(values, np.int64))

    def part(self, x: str, start: int, end: int, axis: int) -> str:
        """Take the entries from `start` to `end` along an axis."""
        return self._write("Slice", [x, self.integers(start), self.integers(end), self.integers(axis)])

    @cached_property
    def _waves(self) -> str:
        """cos(2 pi k n / N), then -sin(2 pi k n / N), [N, 2 * bins].

        They are computed from (k n mod N), which is exact. Sines of half turns are exactly zero, so that the angle of a real
        number is exact.
        """
        n, k = (self._store(np.arange(count).reshape(shape)) for count, shape in ((self._length, (-1, 1)), (self._bins, (1, -1))))
        turns = self._write("Mod", [self._write("Mul", [n, k]), self._store(np.array(self._length))])
        angle = self._write("Cast", [turns], to=TensorProto.FLOAT)
        angle = self._write("Mul", [angle, self.floats(2 * np.pi / self._length)])
        halves = self._write("Mod", [self._write("Add", [turns, turns]), self._store(np.array(self._length))])
        is_between = self._write("Cast", [self._write("Cast", [halves], to=TensorProto.BOOL)], to=TensorProto.FLOAT)
        sine = self._write("Mul", [self._write("Sin", [angle]), is_between])
        return self._write("Concat", [self._write("Cos", [angle]), self._write("Neg", [sine])], axis=1)

    def _steering_phase(self, direction: str) -> str:
        """The phase of a plane wave from a direction at each microphone, [mics, 1, bins]; see `features.steering_phase`."""
        angle = self._write("Mul", [direction, self.floats(np.pi / 180)])
        unit = self._write("Concat", [self._write("Cos", [angle]), self._write("Sin", [angle])], axis=0)
        advance = self._write("MatMul", [self.floats(self._form.array.positions / SPEED_OF_SOUND), unit])
        advance = self._write("Reshape", [advance, self.integers(-1, 1, 1)])
        frequency = np.linspace(0, self._form.sample_rate / 2, self._bins)
        return self._write("Mul", [advance, self.floats(2 * np.pi * frequency)])

    def _angle_feature(self, steered: Complex) -> str:
        """See `features.angle_feature`."""
        microphones = self._form.array.microphones
        total = _both(steered, self._sum)
        numerator = self._write("Sub", [self._squared(total), self.floats(microphones)])
        return self._write("Div", [numerator, self.floats(microphones * (microphones - 1))])

    def _beam_features(self, spectra: Complex, wave: Complex) -> tuple[str, str]:
        """See `features.beam_features`; `wave` is the steering wave [mics, 1, bins]."""
        inverse = inverse_coherence(self._form.array, self._bins, self._form.sample_rate)
        # [bins, mics, 2], real and imaginary parts along the last axis.
        steering = self._write("Transpose", [self._write("Concat", list(wave), axis=1)], perm=[2, 0, 1])
        filtered = self._write("MatMul", [self.floats(inverse), steering])
        gain = self._sum(self._write("Mul", [steering, filtered]), 1, 2)
        weights = self._write("Transpose", [self._write("Div", [filtered, gain])], perm=[1, 2, 0])
        weight = self.part(weights, 0, 1, axis=1), self.part(weights, 1, 2, axis=1)
        beam = _both(self._times_conjugate(spectra, weight), self._sum)
        beam = self._times(beam, self._first(wave))
        first = self._first(spectra)
        pairs = tuple(zip(first, beam, strict=True))
        rest = self._write("Sub", list(pairs[0])), self._write("Sub", list(pairs[1]))
        power, smallest = self._squared(beam), self.floats(SMALLEST_POWER)
        whole = self._write("Add", [self._write("Add", [power, self._squared(rest)]), smallest])
        share = self._write("Div", [power, whole])
        common = self._write("Add", [self._write("Mul", list(pairs[0])), self._write("Mul", list(pairs[1]))])
        wiener = self._write("Div", [common, self._write("Add", [self._squared(first), smallest])])
        return share, self._write("Clip", [wiener, *(self.floats(end) for end in WIENER_RANGE)])

    def _differences(self, phasor: Complex) -> list[str]:
        """The phase differences of all pairs: their cosines and sines, or the angles."""
        firsts, seconds = (self.integers(*ends) for ends in zip(*self._form.array.pairs, strict=True))
        first, second = (self._gathered(phasor, microphones) for microphones in (firsts, seconds))
        cosine, sine = self._times_conjugate(first, second)
        return [self._angle(cosine, sine)] if self._form.config.ipd == "angle" else [cosine, sine]

    def _gathered(self, parts: Complex, microphones: str) -> Complex:
        return _both(parts, lambda part: self._write("Gather", [part, microphones], axis=0))

    def _angle(self, real: str, imaginary: str) -> str:
        """The angle of complex numbers, -pi to pi: ONNX has no arctangent of two arguments."""
        zero, half = self.floats(0), self.floats(np.pi / 2)
        right = self._write("Atan", [self._write("Div", [imaginary, real])])
        # The reciprocal tells -0 from 0, and so -pi from pi.
        below = self._write("Less", [self._write("Reciprocal", [imaginary]), zero])
        turned = self._write("Where", [below, self.floats(-np.pi), self.floats(np.pi)])
        left = self._write("Add", [right, turned])
        upright = self._write("Mul", [self._write("Sign", [imaginary]), half])
        sideways = self._write("Where", [self._write("Less", [real, zero]), left, right])
        return self._write("Where", [self._write("Equal", [real, zero]), upright, sideways])

    def _overlapped(self, frames: str) -> str:
        """Add frames [frames, hops, hop], each a hop later than the one before: [frames + hops - 1, hop]."""
        total = ""
        for r in range(self.hops):
            hop = self._write("Gather", [frames, self._store(np.array(r))], axis=1)
            placed = self._write("Pad", [hop, self.integers(r, 0, self.hops - 1 - r, 0)])
            total = self._write("Add", [total, placed]) if total else placed
        return total

    def _first(self, parts: Complex) -> Complex:
        return _both(parts, lambda part: self.part(part, 0, 1, axis=0))

    def _sum(self, x: str, *axes: int) -> str:
        """Sum over axes, or over the microphones."""
        return self._write("ReduceSum", [x, self.integers(*(axes or (0,)))], keepdims=1)

    def _squared(self, parts: Complex) -> str:
        return self._write("Add", [self._write("Mul", [part, part]) for part in parts])

    def _times(self, x: Complex, y: Complex) -> Complex:
        (a, b), (c, d) = x, y
        products = [self._write("Mul", [one, other]) for one, other in ((a, c), (b, d), (a, d), (b, c))]
        return self._write("Sub", products[:2]), self._write("Add", products[2:])

    def _times_conjugate(self, x: Complex, y: Complex) -> Complex:
        """Multiply x by the conjugate of y."""
        (a, b), (c, d) = x, y
        products = [self._write("Mul", [one, other]) for one, other in ((a, c), (b, d), (b, c), (a, d))]
        return self._write("Add", products[:2]), self._write("Sub", products[2:])


def _both(parts: Complex, change: Callable[[str], str]) -> Complex:
    real, imaginary = parts
    return change(real), change(imaginary)
