"""Microphone arrays.

A direction of arrival (DOA) is the angle in degrees from the x axis, counter-clockwise, seen from above. Microphones in a line
lie along the x axis. They cannot tell a DOA from its negative, so their DOAs are 0 to 180.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from hwsearch.experiment import ArrayConfig, ArrayName, ArraySetting

Point = tuple[float, float, float]
"""Metres from a corner of the room along length, width and height."""

SPEED_OF_SOUND = 343.0
"""Metres per second, in air at 20 degrees Celsius."""

_SAME_BASELINE_M = 1e-3
"""Baselines that differ by less than this count as the same."""

_DIGITS = 9
"""Decimals of metres that baselines are compared with, so that the choice of pairs depends on no processor's last bit."""


@dataclass(frozen=True, eq=False)
class MicrophoneArray:
    """Geometry of an array.

    Attributes:
        setting: what an experiment file says of it. For an array of the user's own, with its pairs.
        places: [mics, 3] metres from the array's centre. Microphone 0 is the reference.
        pairs: pairs of microphones, counted from 0, whose phase differences are features.
        max_doa_deg: largest DOA in degrees; the smallest is 0.
    """

    setting: ArraySetting
    places: NDArray[np.float64]
    pairs: tuple[tuple[int, int], ...]
    max_doa_deg: float

    @property
    def positions(self) -> NDArray[np.float64]:
        """[mics, 2] metres in the horizontal plane, in which directions are."""
        return np.ascontiguousarray(self.places[:, :2])

    @property
    def microphones(self) -> int:
        """Number of microphones."""
        return len(self.places)

    @property
    def said(self) -> str:
        """The setting, as an experiment file has it."""
        if isinstance(self.setting, str):
            return str(self)
        positions = ", ".join("[" + ", ".join(f"{value:g}" for value in place) + "]" for place in self.setting.positions_cm)
        return f"{{ positions_cm = [{positions}], pairs = {[list(pair) for pair in self.pairs]} }}"

    def __str__(self) -> str:
        """Name a built-in array in quotes, or count the microphones."""
        return f"'{self.setting}'" if isinstance(self.setting, str) else f"of {self.microphones} microphones"


def microphone_array(setting: ArraySetting) -> MicrophoneArray:
    """Return the array that an experiment file names or describes."""
    return ARRAYS[setting] if isinstance(setting, str) else _own(setting)


@lru_cache(maxsize=64)
def _own(config: ArrayConfig) -> MicrophoneArray:
    metres = np.array(config.positions_cm, np.float64) / 100.0
    places = _raised(metres - metres.mean(axis=0))
    pairs = choose_pairs(places) if config.pairs is None else config.pairs
    max_doa_deg = 180.0 if config.is_line else 360.0
    return MicrophoneArray(config.model_copy(update={"pairs": pairs}), places, pairs, max_doa_deg)


def choose_pairs(places: NDArray[np.float64]) -> tuple[tuple[int, int], ...]:
    """Choose pairs of microphones whose phase differences say most about the direction.

    The first pair is the longest. Each further pair has the baseline, as a vector, that differs most from those chosen. There
    are at most as many pairs as microphones, and no two with the same baseline.

    Long baselines tell directions at low frequencies, where short ones see hardly any difference. At high frequencies only short
    ones are unambiguous. Baselines of different orientation tell different directions. A second pair with the same baseline
    would say the same again.

    Args:
        places: [mics, 3] metres.
    """
    every = list(combinations(range(len(places)), 2))
    baselines = {pair: places[pair[1]] - places[pair[0]] for pair in every}
    chosen: list[tuple[int, int]] = []
    while every and len(chosen) < len(places):
        news = [_difference(baselines[pair], [baselines[other] for other in chosen]) for pair in every]
        if max(news) < _SAME_BASELINE_M:
            break
        chosen.append(every.pop(int(np.argmax(news))))
    return tuple(chosen)


def _difference(baseline: NDArray[np.float64], others: Iterable[NDArray[np.float64]]) -> float:
    """Metres between a baseline and the nearest of others, of which either end may come first; its length if there are none."""
    distances = [min(np.linalg.norm(baseline - other), np.linalg.norm(baseline + other)) for other in others]
    return round(float(min(distances, default=np.linalg.norm(baseline))), _DIGITS)


def _raised(positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Add heights of zero to [mics, 2]; [mics, 3] stay as they are."""
    return np.pad(positions, ((0, 0), (0, 3 - positions.shape[1])))


def _linear(name: ArrayName, spacings_cm: list[float], pairs: tuple[tuple[int, int], ...] = ()) -> MicrophoneArray:
    x = np.concatenate([[0.0], np.cumsum(spacings_cm)]) / 100.0
    places = _raised(np.stack([x - x.mean(), np.zeros_like(x)], axis=1))
    return MicrophoneArray(name, places, pairs or choose_pairs(places), max_doa_deg=180.0)


def _circular(name: ArrayName, microphones: int, radius_cm: float) -> MicrophoneArray:
    angles = 2 * np.pi * np.arange(microphones) / microphones
    positions = radius_cm / 100.0 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    neighbours = tuple((m, (m + 1) % microphones) for m in range(microphones))
    opposites = tuple((m, m + microphones // 2) for m in range(microphones // 2))
    return MicrophoneArray(name, _raised(positions), neighbours + opposites, max_doa_deg=360.0)


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
    "mono": MicrophoneArray("mono", np.zeros((1, 3)), (), max_doa_deg=360.0),
    # The narrower of the two distances between two microphones that Microsoft recommends ("Microphone Array Support in Windows").
    "laptop2": _linear("laptop2", [10]),
    # Radii as the open-source localiser ODAS has them for these boards. Microphones follow one another counter-clockwise.
    "respeaker4": _circular("respeaker4", 4, 3.2),
    "respeaker6": _circular("respeaker6", 6, 4.63),
    # Typical, not of one product: 3 cm are free of spatial aliasing up to 5.7 kHz.
    "linear8": _linear("linear8", [3] * 7),
}
