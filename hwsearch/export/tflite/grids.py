"""How TensorFlow Lite files store activations: int8 with a zero point, or int16 without one."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from hwsearch.export.tflite.writer import Quantization
from hwsearch.separator.quantizers import MAX_BITS, ActivationGrid

_WIDE_BITS, _WIDE_ZERO = 16, 2**15
_LARGEST_BYTE = 127


@dataclass(frozen=True)
class StoredGrid:
    """The integers that a file holds of an activation.

    Up to 8 bits, the grid is that of the network. Its last integer is 127, the last int8, so that narrower grids need no clipping
    at their upper end. 16 bits have the zero point 0, as kernels want it, and a scale that covers the range of the network's
    grid.

    Attributes:
        grid: the grid, with integers from 0 on.
        offset: what is added to these integers.
    """

    grid: ActivationGrid
    offset: int

    @classmethod
    def of(cls, grid: ActivationGrid) -> Self:
        """The stored form of a grid of the network."""
        if grid.bits > MAX_BITS:
            return cls.wide(grid.low, grid.high)
        return cls(grid, _LARGEST_BYTE - grid.levels)

    @classmethod
    def wide(cls, low: float, high: float) -> Self:
        """16 bits that cover a range around zero."""
        scale = float(np.float32(max(-low, high) / (_WIDE_ZERO - 1)))
        return cls(ActivationGrid(_WIDE_BITS, scale, _WIDE_ZERO), -_WIDE_ZERO)

    @property
    def is_wide(self) -> bool:
        """Whether the integers are int16."""
        return self.grid.bits > MAX_BITS

    @property
    def kind(self) -> str:
        """The type of the integers."""
        return "int16" if self.is_wide else "int8"

    @property
    def lowest(self) -> int:
        """The lowest integer. Kernels give lower ones if it is not that of the type."""
        return self.offset

    @property
    def quantization(self) -> Quantization:
        """Scale and zero point."""
        return Quantization((self.grid.scale,), self.grid.zero_point + self.offset)
