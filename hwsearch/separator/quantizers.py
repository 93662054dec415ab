"""The grids that numbers are rounded to: signed for weights, unsigned with a zero point for activations.

A weight of n bits is an integer in -(2^(n-1) - 1) .. 2^(n-1) - 1 (the narrow, symmetric range: at 2 bits
ternary) times a scale per tensor or per output channel. An activation of n bits is an integer in 0 .. 2^n - 1
minus a zero point, times one scale; unsigned, because the 8-bit kernels of x86 are fast for unsigned
activations only. Rounding is half to even, of the quotient by the scale, as in ONNX's QuantizeLinear.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hwsearch.experiment import FLOAT_BITS, QuantizationConfig

ZERO_TENSOR_SCALE = 2.0**-10
"""Scale of a tensor that is zero throughout: any would do for it, and this one leaves its layer's bias finely
resolved."""

_FINEST_SCALE = 2.0**-19
"""Lowest scale of a channel against the largest weight of its layer (1/4096 of that weight's 8-bit step).
Folding leaves channels that are almost zero; a scale as small as theirs would overflow the 32-bit bias, whose
step is a multiple of it."""

BIAS_LIMIT = 2.0**30
"""Largest integer of a bias; the other half of a 32-bit accumulator is left to the products."""

_INTEGER_BITS = 8
"""Widest activation that integer kernels read."""

_HIGHEST_FACTOR = 1.3
_COARSE_FACTORS = 120
_FINE_FACTORS = 12
_REFINEMENTS = 4
_MSE_MAX_BITS = 8
"""Above this width clipping gains nothing measurable, and the largest weight sets the scale."""


@dataclass(frozen=True)
class ActivationGrid:
    """Unsigned affine grid: value = (integer - zero_point) * scale, integer in 0 .. 2^bits - 1."""

    bits: int
    scale: float
    zero_point: int

    @property
    def levels(self) -> int:
        """Number of steps from the lowest to the highest value."""
        return int(2**self.bits - 1)

    @property
    def low(self) -> float:
        """Lowest value."""
        return -self.zero_point * self.scale

    @property
    def high(self) -> float:
        """Highest value."""
        return (self.levels - self.zero_point) * self.scale


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A weight tensor on its grid.

    Attributes:
        bits: width.
        integers: [out, in / groups, kernel], int32, within +-weight_limit(bits).
        scale: [out, 1, 1] or [1, 1, 1], float32.
    """

    bits: int
    integers: Tensor
    scale: Tensor

    @property
    def value(self) -> Tensor:
        """The real weights that the integers stand for."""
        return self.integers * self.scale


def weight_limit(bits: int) -> int:
    """Largest integer of an n-bit weight."""
    return int(2 ** (bits - 1) - 1)


def weight_scale(weight: Tensor, bits: int, config: QuantizationConfig) -> Tensor:
    """Scale of a weight tensor.

    `max` maps the largest weight to the largest integer; `mse` clips where the squared error is least.

    Args:
        weight: [out, in / groups, kernel].
        bits: 2 to 16.
        config: per tensor or per channel, `mse` or `max`.

    Returns:
        [out, 1, 1] or [1, 1, 1] float32, positive.
    """
    rows = weight.detach().double().reshape(len(weight) if config.weight_scale == "per_channel" else 1, -1)
    limit = weight_limit(bits)
    largest = rows.abs().amax(dim=1)
    floor = float(rows.abs().max()) * _FINEST_SCALE or ZERO_TENSOR_SCALE
    scale = (largest / limit).clamp_min(floor)
    if config.weight_scale_method == "mse" and bits <= _MSE_MAX_BITS:
        scale = mse_scale(rows, scale, limit).clamp_min(floor)
    return scale.float()[:, None, None]


def mse_scale(rows: Tensor, largest: Tensor, limit: int) -> Tensor:
    """Scale of least squared error per row.

    A sweep of scales, coarse, then fine around the best. Each scale tried assigns an integer to every weight,
    and the best scale for that assignment has a closed form (the least-squares fit), so the sweep need not
    hit the optimum, only the assignment that belongs to it. A few alternations of rounding and fitting end it
    (Lloyd, IEEE Trans. Inf. Theory 28(2), 1982); they never raise the error.

    Args:
        rows: [rows, values].
        largest: [rows] scales at which nothing is clipped, positive.
        limit: largest integer.
    """
    # Few levels want much clipping: three levels have their optimum near 0.4 of the largest of many normal
    # weights, and heavier tails lower; 255 levels want almost none. Few weights may fit a scale above the
    # largest.
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
    """Whether the bias of a layer with quantized weights is rounded where the layer reads an activation of so many bits.

    Products of more bits have no sum in 32: such a layer is computed in floating point, and its bias stays as it is.
    """
    return bits <= _INTEGER_BITS


def bias_integers(bias: Tensor, scale: Tensor) -> Tensor:
    """Round a bias [out] to integers of `scale` [out] or [1], input times weight scale; as float32."""
    return (bias / scale).round().clamp(-BIAS_LIMIT, BIAS_LIMIT)


def fake_quantize(x: Tensor, grid: ActivationGrid) -> Tensor:
    """Round an activation to its grid; returns a new tensor of real values.

    In-place steps after the first: on a CPU seven times faster than torch's own fused fake quantization,
    whose product with the reciprocal scale would also differ from ONNX's quotient.
    """
    y = x / grid.scale
    return y.round_().clamp_(-grid.zero_point, grid.levels - grid.zero_point).mul_(grid.scale)


def is_float(bits: int) -> bool:
    """Whether a width stands for 'left in floating point'."""
    return bits == FLOAT_BITS


def _fit(rows: Tensor, energy: Tensor, scale: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """The best scale for the integers that `scale` rounds rows of an energy to, and the squared error of the two."""
    integers = (rows / scale[:, None]).round_().clamp_(-limit, limit)
    product = (rows * integers).sum(dim=1)
    squares = integers.square_().sum(dim=1)
    fitted = torch.where(squares > 0, product / squares.clamp_min(1.0), scale)
    return fitted, energy - product * torch.where(squares > 0, fitted, 0.0)


def _better(best: Tensor, error: Tensor, candidate: Tensor, candidate_error: Tensor) -> tuple[Tensor, Tensor]:
    """Per row, the scale with the smaller error."""
    wins = candidate_error < error
    return torch.where(wins, candidate, best), torch.where(wins, candidate_error, error)
