"""A mixture and what should be heard of it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Example:
    """One mixture.

    Attributes:
        mixture: [mics, samples].
        target: [samples].
        doa_deg: direction of the target in degrees.
    """

    mixture: NDArray[np.float32]
    target: NDArray[np.float32]
    doa_deg: float
