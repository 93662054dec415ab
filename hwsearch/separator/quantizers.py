"""The grids of weights, signed, and of activations, unsigned with a zero point.

A weight of n bits is an integer in -(2^(n-1) - 1) .. 2^(n-1) - 1 (narrow range: ternary at 2 bits) times a scale per tensor or
per output channel. These scales are bfloat16 values. An activation of n bits is an integer in 0 .. 2^n - 1 minus a zero point,
times a scale; the 8-bit kernels of x86 are only fast for unsigned activations. The quotient by the scale is rounded half to even,
as in ONNX's QuantizeLinear.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hwsearch.experiment import FLOAT_BITS, QuantizationConfig
from hwsearch.separator.allocation import weight_limit

ZERO_TENSOR_SCALE = 2.0**-10
"""Scale of a tensor of zeros, small enough for a fine bias."""

_FINEST_SCALE = 2.0**-19
"""Lowest scale of a channel relative to the largest weight of the layer (1/4096 of the 8-bit step of that weight). With the
scale of a channel that is almost zero, which folding may leave, the 32-bit bias would overflow."""

_SMALLEST_SCALE = torch.finfo(torch.bfloat16).tiny

BIAS_LIMIT = 2.0**30
"""Largest integer of a bias; the other half of a 32-bit accumulator is for the products."""

MAX_BITS = 8
"""Widest weights and activations that integer kernels take."""

_HIGHEST_FACTOR = 1.3
_COARSE_FACTORS = 120
_FINE_FACTORS = 12
_REFINEMENTS = 4
_MSE_MAX_BITS = 8
"""Widest weights that are clipped; wider ones do not gain measurably."""


@dataclass(frozen=True)
class ActivationGrid:
    """Unsigned affine grid: value = (integer - zero_point) * scale, integer in 0 .. 2^bits - 1."""

    bits: int
    scale: float
    zero_point: int

    @property
    def levels(self) -> int:
        """The number of steps from the lowest to the highest value."""
        return int(2**self.bits - 1)

    @property
    def low(self) -> float:
        """The lowest value."""
        return -self.zero_point * self.scale

    @property
    def high(self) -> float:
        """The highest value."""
        return (self.levels - self.zero_point) * self.scale


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A weight tensor on its grid.

    Attributes:
        integers: [out, in / groups, kernel], int32, within +-weight_limit(bits).
        scale: [out, 1, 1] or [1, 1, 1], float32.
    """

    bits: int
    integers: Tensor
    scale: Tensor

    @cached_property
    def value(self) -> Tensor:
        """The real weights."""
        return self.integers * self.scale


def stored_scale(scale: Tensor) -> Tensor:
    """Round scales of weights [...] to the nearest bfloat16 values, as which files store them. The tensor keeps its type."""
    return scale.clamp_min(_SMALLEST_SCALE).to(torch.bfloat16).to(scale.dtype)


def weight_scale(weight: Tensor, bits: int, config: QuantizationConfig) -> Tensor:
    """Choose the scale of a weight tensor.

    `max` maps the largest weight to the largest integer; `mse` clips where the squared error is least. The scale is then rounded
    to a bfloat16 value: upwards where nothing is to be clipped.

    Args:
        weight: [out, in / groups, kernel].
        bits: 2 to 16.
        config: per tensor or per channel, `mse` or `max`.

    Returns:
        [out, 1, 1] or [1, 1, 1] float32, positive, bfloat16 values.
    """
    rows = weight.detach().double().reshape(len(weight) if config.weight_scale == "per_channel" else 1, -1)
    limit = weight_limit(bits)
    largest = rows.abs().amax(dim=1)
    floor = float(rows.abs().max()) * _FINEST_SCALE or ZERO_TENSOR_SCALE
    scale = (largest / limit).clamp_min(floor)
    if config.weight_scale_method == "mse" and bits <= _MSE_MAX_BITS:
        return stored_scale(mse_scale(rows, scale, limit).clamp_min(floor).float())[:, None, None]
    return _stored_scale_above(scale.float())[:, None, None]


def _stored_scale_above(scale: Tensor) -> Tensor:
    """Round scales up to bfloat16 values: if the lower half of a positive float32 is not zero, the upper half gains one."""
    whole = (scale.clamp_min(_SMALLEST_SCALE).view(torch.int32) + 0xFFFF) & ~0xFFFF
    return whole.view(torch.float32)


def mse_scale(rows: Tensor, largest: Tensor, limit: int) -> Tensor:
    """Find the scale of least squared error per row.

    A coarse sweep of scales is followed by a fine one around the best. Each scale assigns an integer to every weight. The best
    scale for that assignment is a least-squares fit. A few alternations of rounding and fitting follow, which never raise the
    error (Lloyd, IEEE Trans. Inf. Theory 28(2), 1982).

    Args:
        rows: [rows, values].
        largest: [rows] scales at which nothing is clipped, positive.
        limit: largest integer.
    """
    # Few levels need much clipping: with three levels the optimum is near 0.4 of the largest of many normal weights, and lower
    # for heavier tails. 255 levels need almost none. Few weights may fit a scale above the largest.
    lowest = 0.02 if limit < 8 else 0.2
    step = (_HIGHEST_FACTOR - lowest) / _COARSE_FACTORS
    energy = rows.square().sum(dim=1)
    best, error = _fit(rows, energy, largest, limit)
    for index in range(_COARSE_FACTORS + 1):
        best, error = _better(best, error, *_fit(rows, energy, largest * (lowest + index * step), limit))
    centre = best
    for index in range(-_FINE_FACTORS, _FINE_FACTORS + 1):
        near = (centre + index * step / _FINE_FACTORS * largest).clamp_min(lowest / 2 * largest)
        best, error = _better(best, error, *_fit(rows, energy, near, limit))
    for _ in range(_REFINEMENTS):
        best, error = _better(best, error, *_fit(rows, energy, best, limit))
    return best


def quantize_weight(weight: Tensor, scale: Tensor, bits: int) -> QuantizedWeight:
    """Round a weight tensor to the grid of `scale`."""
    limit = weight_limit(bits)
    integers = (weight.detach() / scale).round().clamp(-limit, limit).to(torch.int32)
    return QuantizedWeight(bits, integers, scale.detach())


def rounds_bias(bits: int) -> bool:
    """Whether a layer with quantized weights that reads an activation of some bits has a rounded bias.

    Sums of wider products do not fit into 32 bits: such a layer is computed in floating point.
    """
    return bits <= MAX_BITS


def bias_integers(bias: Tensor, scale: Tensor) -> Tensor:
    """Round a bias [out] to float32 integers of `scale` [out] or [1], which is input scale times weight scale."""
    return (bias / scale).round().clamp(-BIAS_LIMIT, BIAS_LIMIT)


def fake_quantize(x: Tensor, grid: ActivationGrid) -> Tensor:
    """Round an activation to its grid; return a new tensor of real values.

    In-place steps are seven times faster on a CPU than torch's fused fake quantization, which also multiplies by the reciprocal
    scale, unlike ONNX.
    """
    y = x / grid.scale
    return y.round_().clamp_(-grid.zero_point, grid.levels - grid.zero_point).mul_(grid.scale)


def is_float(bits: int) -> bool:
    """Whether a width stands for floating point."""
    return bits == FLOAT_BITS


def _fit(rows: Tensor, energy: Tensor, scale: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """Return the best scale for the integers to which `scale` rounds rows, and the squared error."""
    integers = (rows / scale[:, None]).round_().clamp_(-limit, limit)
    product = (rows * integers).sum(dim=1)
    squares = integers.square_().sum(dim=1)
    fitted = torch.where(squares > 0, product / squares.clamp_min(1.0), scale)
    return fitted, energy - product * torch.where(squares > 0, fitted, 0.0)


def _better(best: Tensor, error: Tensor, candidate: Tensor, candidate_error: Tensor) -> tuple[Tensor, Tensor]:
    """Keep the scale with the smaller error per row."""
    wins = candidate_error < error
    return torch.where(wins, candidate, best), torch.where(wins, candidate_error, error)
