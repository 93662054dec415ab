"""The host's part of a network on an FPGA: features to whole numbers for the board, and its whole numbers to a mask.

An export for FINN holds a copy of this file beside `host.npz`. It needs NumPy alone:

    from host import Host

    host = Host("host.npz")
    numbers = host.to_board(features)      # features [1, features, frames], float32
    mask = host.from_board(answer)         # the board's answer, [1, frames, 1, channels]
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

KEYS = ("mean", "gain", "input_scale", "input_least", "input_most", "input_zero", "output_scale", "output_zero")
"""Arrays of `host.npz`: mean and gain of each feature; scale of the graph's input, its least and most steps from zero, and the
number that stands for zero; scale of its output, and the number that stands for zero.
"""


class Host:
    """The host's part of an exported network.

    Args:
        path: the file `host.npz` of the export.
    """

    def __init__(self, path: str | Path) -> None:
        with np.load(path, allow_pickle=False) as arrays:
            self._arrays: dict[str, NDArray[Any]] = {key: arrays[key] for key in KEYS}

    def to_board(self, features: NDArray[np.float32]) -> NDArray[np.int32]:
        """Normalise features [1, features, frames] and round them to the grid of the graph's input.

        Returns:
            Whole numbers [1, frames, 1, features].
        """
        arrays = self._arrays
        normalised = (features - arrays["mean"][:, None]) * arrays["gain"][:, None]
        steps = np.clip(np.rint(normalised / arrays["input_scale"]), arrays["input_least"], arrays["input_most"])
        numbers: NDArray[np.int32] = (steps.astype(np.int32) + arrays["input_zero"]).transpose(0, 2, 1)[:, :, None, :]
        return numbers

    def from_board(self, numbers: NDArray[Any]) -> NDArray[np.float32]:
        """Turn the graph's output [1, frames, 1, channels] into a mask [1, channels, frames]."""
        arrays = self._arrays
        steps = numbers[:, :, 0, :].transpose(0, 2, 1).astype(np.float32) - np.float32(arrays["output_zero"])
        mask: NDArray[np.float32] = steps * arrays["output_scale"]
        return mask
