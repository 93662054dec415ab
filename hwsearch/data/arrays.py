"""Microphone arrays.

Arrays lie in the horizontal plane. A direction of arrival (DOA) is the angle in degrees from the x axis, counter-clockwise.
Linear arrays lie along the x axis. They cannot tell a DOA from its negative, so their DOAs are 0 to 180.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Point = tuple[float, float, float]
"""Metres from a corner of the room along length, width and height."""

SPEED_OF_SOUND = 343.0
"""Metres per second, in air at 20 degrees Celsius."""


@dataclass(frozen=True)
class MicrophoneArray:
    """Geometry of an array.

    Attributes:
        name: key in `ARRAYS`.
        positions: [mics, 2] metres from the array's centre. Microphone 0 is the reference.
        pairs: pairs of microphones, counted from 0, whose phase differences are features.
        max_doa_deg: largest DOA in degrees; the smallest is 0.
    """

    name: str
    positions: NDArray[np.float64]
    pairs: tuple[tuple[int, int], ...]
    max_doa_deg: float

    @property
    def microphones(self) -> int:
        """Number of microphones."""
        return len(self.positions)


ArrayName = Literal["linear15", "linear6", "circular6", "linear4", "mono"]


def _linear(name: str, spacings_cm: list[float], pairs: tuple[tuple[int, int], ...]) -> MicrophoneArray:
    x = np.concatenate([[0.0], np.cumsum(spacings_cm)]) / 100.0
    positions = np.stack([x - x.mean(), np.zeros_like(x)], axis=1)
    return MicrophoneArray(name, positions, pairs, max_doa_deg=180.0)


def _circular(name: str, microphones: int, radius_cm: float) -> MicrophoneArray:
    angles = 2 * np.pi * np.arange(microphones) / microphones
    positions = radius_cm / 100.0 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    neighbours = tuple((m, (m + 1) % microphones) for m in range(microphones))
    opposites = tuple((m, m + microphones // 2) for m in range(microphones // 2))
    return MicrophoneArray(name, positions, neighbours + opposites, max_doa_deg=360.0)


# The reference system's array: spacings from arXiv 2307.02909, pairs, counted from 1, from arXiv 2011.07755.
_PAPER_PAIRS = ((1, 15), (2, 14), (3, 13), (1, 7), (12, 4), (11, 5), (12, 8), (7, 10), (8, 9))

ARRAYS: dict[ArrayName, MicrophoneArray] = {
    "linear15": _linear(
        "linear15",
        [7, 6, 5, 4, 3, 2, 1, 1, 2, 3, 4, 5, 6, 7],
        tuple((m - 1, n - 1) for m, n in _PAPER_PAIRS),
    ),
    # The pairs' baselines are 27, 20, 17, 12, 8 and 5 cm. The smallest is free of spatial aliasing up to 3.4 kHz.
    "linear6": _linear("linear6", [7, 5, 3, 5, 7], ((0, 5), (0, 4), (1, 5), (0, 2), (1, 3), (3, 4))),
    "circular6": _circular("circular6", 6, 5.0),
    "linear4": _linear("linear4", [4, 3, 5], ((0, 1), (0, 2), (0, 3), (1, 2))),
    # One microphone, for networks that use no direction.
    "mono": MicrophoneArray("mono", np.zeros((1, 2)), (), max_doa_deg=360.0),
}
