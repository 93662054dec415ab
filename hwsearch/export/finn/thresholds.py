"""Thresholds that round a sum of integers exactly as a quantizer does.

FINN rounds by comparison: the result is the number of thresholds that the sum reaches. Each threshold is the least whole number
that the quantizer rounds to a level, half to even. It is computed in whole numbers, so no sum is rounded otherwise.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from hwsearch.separator.quantizers import ActivationGrid

Whole = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Integers:
    """A tensor of whole numbers: channel c holds `scale[c] * (number + offset[c])`, bent below zero.

    Attributes:
        name: of the tensor in the file.
        scale: of each channel.
        offset: [channels].
        low, high: least and greatest numbers that each channel can reach, [channels].
        slope: of each channel where the value is negative: 1 without a function behind, 0 behind a ReLU.
    """

    name: str
    scale: tuple[Fraction, ...]
    offset: Whole
    low: Whole
    high: Whole
    slope: tuple[Fraction, ...]

    @property
    def channels(self) -> int:
        """The number of channels."""
        return len(self.scale)

    @property
    def is_bent(self) -> bool:
        """Whether a function was applied that changes negative values."""
        return any(slope != 1 for slope in self.slope)


def thresholds(x: Integers, grid: ActivationGrid) -> Whole:
    """Return the thresholds [channels, levels] that round a tensor to a grid.

    They are clipped to what a channel can reach: its least number is always reached, one above its greatest never.

    Args:
        x: the tensor; no slope is negative.
        grid: of the result.
    """
    step = Fraction(grid.scale)
    rows = []
    for channel in range(x.channels):
        ratio = x.scale[channel] / step
        low, high, offset = int(x.low[channel]), int(x.high[channel]), int(x.offset[channel])
        least = _least(ratio, x.slope[channel], grid)
        rows.append([low if number is None else min(max(number - offset, low), high + 1) for number in least])
    return np.array(rows, np.int64)


def _least(ratio: Fraction, slope: Fraction, grid: ActivationGrid) -> Iterator[int | None]:
    """Give, level by level, the least n for which n * ratio, bent by the slope, rounds to the level; None: all do."""
    above = ratio.numerator, ratio.denominator
    below = (ratio * slope).numerator, (ratio * slope).denominator
    for level in range(1, grid.levels + 1):
        quotient = level - grid.zero_point
        numerator, denominator = above if quotient > 0 else below
        if numerator == 0:
            yield None
            continue
        # n * numerator / denominator >= quotient - 1/2; a tie rounds to an even quotient.
        number, rest = divmod((2 * quotient - 1) * denominator, 2 * numerator)
        yield number if rest == 0 and quotient % 2 == 0 else number + 1
