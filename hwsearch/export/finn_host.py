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

KEYS = ("mean", "gain", "input_scale", "input_zero_point", "input_levels", "output_scale", "output_zero_point")
"""Arrays of `host.npz`: mean and gain of each feature, and the grids of the graph's input and output."""


class Host:
    """The host's part of an exported network.

    Args:
        path: the file `host.npz` of the export.
    """

    def __init__(self, path: str | Path) -> None:
        with np.load(path, allow_pickle=False) as arrays:
            self._arrays: dict[str, NDArray[Any]] = {key: arrays[key] for key in KEYS}

    def to_board(self, features: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Normalise features [1, features, frames] and round them to the grid of the graph's input.

        Returns:
            Whole numbers [1, frames, 1, features].
        """
        arrays = self._arrays
        normalised = (features - arrays["mean"][:, None]) * arrays["gain"][:, None]
        zero_point, levels = int(arrays["input_zero_point"]), int(arrays["input_levels"])
        numbers = np.clip(np.rint(normalised / arrays["input_scale"]), -zero_point, levels - zero_point) + zero_point
        given: NDArray[np.uint8] = numbers.astype(np.uint8).transpose(0, 2, 1)[:, :, None, :]
        return given

    def from_board(self, numbers: NDArray[Any]) -> NDArray[np.float32]:
        """Turn the graph's output [1, frames, 1, channels] into a mask [1, channels, frames]."""
        arrays = self._arrays
        steps = numbers[:, :, 0, :].transpose(0, 2, 1).astype(np.float32) - np.float32(arrays["output_zero_point"])
        mask: NDArray[np.float32] = steps * arrays["output_scale"]
        return mask
