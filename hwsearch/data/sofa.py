"""Impulse responses in SOFA files (AES69), which are HDF5. They need the package `h5py`."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwsearch.data.audio import RATES, SILENCE_PEAK
from hwsearch.errors import UserError

SOFA_BYTES = 2**31
"""Size limit of a SOFA file."""

MOST_MEASUREMENTS = 512
"""Largest number of measurements in a file. All of them are places of one room, and any two of these may be a pair."""

_MOST_VALUES = 2**20
"""Largest number of values of what is read whole: positions, delays and rates."""

_WANTED = "wanted impulse responses in a SOFA file"

_BROKEN = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, IndexError)
"""What h5py raises for files that it cannot read."""


@dataclass(frozen=True, eq=False)
class SofaFile:
    """A SOFA file whose header has been read.

    Attributes:
        channels: number of receivers.
        taps: length of the responses in samples.
        sample_rate: in Hz.
        sources: positions of the sources [measurements, 3] in metres, from the listener, whose view is the x axis.
        receivers: positions of the microphones [receivers, 3] in the same axes.
    """

    path: Path
    channels: int
    taps: int
    sample_rate: int
    sources: NDArray[np.float64]
    receivers: NDArray[np.float64]

    def load(self, measurement: int) -> NDArray[np.float32]:
        """Read the responses [receivers, taps] of a measurement.

        Raises:
            UserError: they are not finite, or silent.
        """
        import h5py

        try:
            with h5py.File(self.path) as file:
                found = np.asarray(_data(file, "Data.IR")[measurement], np.float64).reshape(self.channels, self.taps)
        except _BROKEN as error:
            raise UserError(f"{self.path}: not readable as SOFA ({_reason(error)}); {_WANTED}") from None
        if not np.isfinite(found).all() or np.abs(found).max() < SILENCE_PEAK:
            raise UserError(f"{self.path}: measurement {measurement} is silent or not finite; {_WANTED}")
        return found.astype(np.float32)


def open_sofa(path: Path) -> SofaFile:
    """Read the header of a SOFA file with FIR responses.

    Raises:
        UserError: h5py is not installed, the file is missing, too large or no SOFA file, or it has other data than FIR responses
            of one emitter, more than `MOST_MEASUREMENTS`, or delays beside the responses that differ between microphones.
    """
    if find_spec("h5py") is None:
        raise UserError(f"{path}: SOFA files want a package that is not installed: pip install 'hwsearch[sofa]'")
    import h5py

    try:
        if path.stat().st_size > SOFA_BYTES:
            raise UserError(f"{path}: larger than {SOFA_BYTES / 2**20:g} MiB; {_WANTED}")
        with h5py.File(path) as file:
            return _header(path, file)
    except _BROKEN as error:
        raise UserError(f"{path}: not readable as SOFA ({_reason(error)}); {_WANTED}") from None


def _header(path: Path, file: Any) -> SofaFile:
    shape = _data(file, "Data.IR").shape
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] != 1) or 0 in shape:
        raise UserError(f"{path}: Data.IR has the shape {list(shape)}; wanted measurements, receivers and samples of one emitter")
    measurements, channels, taps = shape[:3]
    if measurements > MOST_MEASUREMENTS:
        raise UserError(f"{path}: {measurements} measurements; wanted at most {MOST_MEASUREMENTS}, in a file with a part of them")
    _check_delays(path, file)
    rates = np.unique(_values(file, "Data.SamplingRate"))
    if len(rates) != 1 or not RATES[0] <= rates[0] <= RATES[1] or rates[0] != round(rates[0]):
        raise UserError(f"{path}: Data.SamplingRate is {rates.tolist()}; wanted one whole rate of {RATES[0]} to {RATES[1]} Hz")
    listener, view = (_points(file, name, measurements) for name in ("ListenerPosition", "ListenerView"))
    source = _points(file, "SourcePosition", measurements) - listener
    azimuth = np.arctan2(view[:, 1], view[:, 0])
    cosine, sine = np.cos(azimuth), np.sin(azimuth)
    turned = np.stack(
        [cosine * source[:, 0] + sine * source[:, 1], cosine * source[:, 1] - sine * source[:, 0], source[:, 2]], axis=1
    )
    receivers = _cartesian(_values(file, "ReceiverPosition")[:, :, 0], _kind(file, "ReceiverPosition"))
    if not (np.isfinite(turned).all() and np.isfinite(receivers).all()):
        raise UserError(f"{path}: a position is not finite; {_WANTED}")
    return SofaFile(path, channels, taps, round(rates[0]), turned, receivers)


def _check_delays(path: Path, file: Any) -> None:
    """Raise `UserError` if a delay beside the responses is not the same for all microphones: it would change directions."""
    if "Data.Delay" not in file:
        return
    delays = _values(file, "Data.Delay")
    if not (delays == delays[:, :1]).all():  # NaN is not equal, either
        raise UserError(f"{path}: Data.Delay differs between microphones; wanted delays within the responses, and zeros there")


def _points(file: Any, name: str, measurements: int) -> NDArray[np.float64]:
    """Positions [measurements, 3] in metres, of which the file may hold one for all."""
    found = _cartesian(_values(file, name), _kind(file, name))
    return np.broadcast_to(found, (measurements, 3)).copy()


def _cartesian(points: NDArray[np.float64], kind: str) -> NDArray[np.float64]:
    if kind != "spherical":
        return points
    azimuth, elevation = np.deg2rad(points[..., 0]), np.deg2rad(points[..., 1])
    flat = points[..., 2] * np.cos(elevation)
    return np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), points[..., 2] * np.sin(elevation)], axis=-1)


def _kind(file: Any, name: str) -> str:
    kind = file[name].attrs.get("Type", b"cartesian")
    return kind.decode() if isinstance(kind, bytes) else str(kind)


def _data(file: Any, name: str) -> Any:
    """A data set that lies in the file itself."""
    import h5py

    found = file[name]
    if not isinstance(file.get(name, getlink=True), h5py.HardLink) or found.external is not None or found.is_virtual:
        raise ValueError(f"{name} lies in another file")
    return found


def _values(file: Any, name: str) -> NDArray[np.float64]:
    """All values of a data set."""
    found = _data(file, name)
    if found.size > _MOST_VALUES:
        raise ValueError(f"{name} has {found.size} values")
    return np.asarray(found, np.float64)


def _reason(error: BaseException) -> str:
    """What went wrong, on one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
