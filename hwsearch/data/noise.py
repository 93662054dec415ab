"""Noise from a folder of recordings, which is added to mixtures at a level that is drawn."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import signal

from hw_models.reading import no_file
from hwsearch.data.arrays import microphone_array
from hwsearch.data.audio import SILENCE_PEAK, open_recording
from hwsearch.data.folder import sounds_below, stable_name
from hwsearch.data.recorded import resampled
from hwsearch.data.recorded_rooms import read_recorded_rooms
from hwsearch.data.source import deal_to_all
from hwsearch.errors import UserError
from hwsearch.experiment import DataConfig, Split
from hwsearch.files.reading import digest

Audio = NDArray[np.float32]

SHORTEST_S = 0.1
"""Shortest noise in seconds; noise that is shorter than a mixture is repeated."""

_CANDIDATES = 8
"""Largest number of places in noise files that are tried until one is not silent."""

_END_BYTES = 2**16
"""Bytes at either end of a noise file that identify it, besides its name and size."""

_PLACES = 3
"""Places that a room needs if noise of one channel sounds from one of them."""


@dataclass(frozen=True)
class NoiseFile:
    """A recording of noise.

    Attributes:
        id: unique in the folder, the same on all machines.
    """

    id: str
    path: Path


@dataclass(frozen=True)
class Noises:
    """Noise that a mixture may get.

    Attributes:
        snr_db: lowest and highest level of the speech above the noise.
    """

    files: tuple[NoiseFile, ...]
    snr_db: tuple[float, float]

    def drawn(self, rng: np.random.Generator) -> "Noises":
        """A few of the files, for one mixture."""
        return Noises(tuple(self.files[int(i)] for i in rng.integers(len(self.files), size=_CANDIDATES)), self.snr_db)


@dataclass(frozen=True)
class Noise:
    """Noise for one mixture.

    Attributes:
        sound: [mics, samples], at the level of its recording.
        snr_db: level of the speech above it.
        file: where it comes from.
    """

    sound: Audio
    snr_db: float
    file: NoiseFile


def read_noise(data: DataConfig, seed: int) -> dict[Split, Noises]:
    """Find the noise of an experiment and deal it to the splits that have a share.

    Files in one folder below the noise folder stay together. A hash of name and seed decides on the split.

    Raises:
        UserError: there is no such folder, no recording in it, or there are fewer files and folders in it than splits with a
            share.
    """
    config = data.noise
    if config is None:
        return {}
    files = list_noise(config.folder)
    groups = {file.id: file.id.partition("/")[0] for file in files}
    homes = deal_to_all(
        (f"noise:{group}" for group in groups.values()), config.shares, seed, f"{config.folder}: noise files", least=1
    )
    return {
        split: Noises(tuple(file for file in files if homes.get(f"noise:{groups[file.id]}") is split), config.snr_db)
        for split, share in config.shares.items()
        if share > 0
    }


def list_noise(folder: Path) -> tuple[NoiseFile, ...]:
    """Find the WAV and FLAC files of a noise folder, at any depth, in the order of their names.

    Raises:
        UserError: there is no such folder, or no recording in it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; wanted WAV or FLAC files of noise in it")
    found = tuple(sorted((NoiseFile(stable_name(path, folder), path) for path in sounds_below(folder)), key=lambda file: file.id))
    if not found:
        raise UserError(f"{folder}: no WAV or FLAC file in it; wanted recordings of noise")
    return found


def noise_digest(files: Sequence[NoiseFile]) -> str:
    """Hash the names and sizes of noise files, and their first and last bytes: folders of noise hold many gigabytes.

    Raises:
        UserError: a file cannot be read.
    """
    return digest([[file.id, *_size_and_ends(file.path)] for file in files])


def _size_and_ends(path: Path) -> tuple[int, str]:
    """The size of a file in bytes, and a hash of both of its ends, which overlap in a short file."""
    if (reason := no_file(path)) is not None:
        raise UserError(f"{path}: {reason}; wanted a recording")
    try:
        with path.open("rb") as stream:
            size = path.stat().st_size
            first = stream.read(_END_BYTES)
            stream.seek(max(0, size - _END_BYTES))
            return size, hashlib.sha256(first + stream.read(_END_BYTES)).hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); wanted a recording") from None


def check_noise(data: DataConfig, seed: int) -> tuple[str, ...]:
    """Check the noise of an experiment by the headers of its files.

    Returns:
        Lines for people: what is resampled, and how noise of one channel reaches the microphones.

    Raises:
        UserError: as `read_noise`; the files have changed since the experiment was read; a file is unusable, too short, or has
            neither one channel nor one for each microphone; a split with noise has no rooms; or noise of one channel has no free
            place in a room.
    """
    config = data.noise
    if config is None:
        return ()
    dealt = read_noise(data, seed)
    if config.sha256 not in (None, noise_digest(list_noise(config.folder))):
        raise UserError(
            f"{config.folder}: its files have changed since the experiment was read; wanted the same files, or "
            "the experiment's file with another name"
        )
    for split in dealt:
        if split not in data.rooms.count:
            raise UserError(
                f"data.noise: noise for the {split.value} split, whose mixtures are not made: data.rooms.count has no "
                f"'{split.value}'; wanted data.noise.splits with splits that have rooms"
            )
    array = microphone_array(data.array)
    microphones = array.microphones
    rates: Counter[int] = Counter()
    single = 0
    for file in (file for noises in dealt.values() for file in noises.files):
        recording = open_recording(file.path)
        if recording.channels not in (1, microphones):
            raise UserError(
                f"{file.path}: {recording.channels} channels; data.array {array} has {microphones} microphone"
                f"{'s' * (microphones != 1)}: wanted a channel for each, or one"
            )
        if recording.seconds < SHORTEST_S:
            raise UserError(f"{file.path}: lasts {recording.seconds:g} s; wanted noise of at least {SHORTEST_S:g} s")
        single += recording.channels == 1 < microphones
        rates[recording.sample_rate] += recording.sample_rate != data.sample_rate
    if single:
        _check_places(data, dealt)
    return tuple(
        f"{config.folder}: {count} noise file{'s' * (count != 1)} {how}"
        for count, how in (
            *((rates[rate], f"of {rate} Hz: resampled to {data.sample_rate} Hz") for rate in sorted(rates)),
            (single, "of one channel: the noise sounds from a place in the room where nobody speaks"),
        )
        if count
    )


def make_noise(
    rng: np.random.Generator, noises: Noises, responses: Audio, taken: tuple[int, int], shape: tuple[int, int]
) -> Noise:
    """Read noise for a mixture.

    Noise with a channel for each microphone is added as it is. Noise of one channel sounds from a place in the room at which
    neither speaker is: a point source with all its reverberation.

    Args:
        rng: generator of level, place and segment.
        noises: the files that are tried in turn until one is not silent.
        responses: impulse responses of the room [places, mics, taps].
        taken: places of the speakers.
        shape: length of the mixture in samples, and its sample rate in Hz.

    Raises:
        UserError: a file is unusable.
    """
    samples, sample_rate = shape
    snr_db = float(rng.uniform(*noises.snr_db))
    free = [place for place in range(len(responses)) if place not in taken]
    place = free[int(rng.integers(len(free)))] if free else None
    sound, file = np.zeros((responses.shape[1], samples), np.float32), noises.files[0]
    for candidate in noises.files:
        file = candidate
        sound = _segment(rng, file, responses if place is None else responses[place], samples, sample_rate)
        if np.abs(sound[0]).max() >= SILENCE_PEAK:
            break
    return Noise(sound, snr_db, file)


def _segment(rng: np.random.Generator, file: NoiseFile, response: Audio, samples: int, sample_rate: int) -> Audio:
    """Noise at the microphones, [mics, samples]."""
    recording = open_recording(file.path)
    microphones, taps = response.shape[-2:]
    point = recording.channels == 1 < microphones
    length = samples + (taps - 1 if point else 0)
    count = -(-length * recording.sample_rate // sample_rate) + 1
    if count <= recording.samples:
        sound = recording.part(int(rng.integers(recording.samples - count + 1)), count)
    else:
        start = int(rng.integers(recording.samples))
        sound = np.take(recording.part(0, recording.samples), np.arange(start, start + count), axis=1, mode="wrap")
    heard = resampled(sound, recording.sample_rate, sample_rate)[:, :length]
    if point:
        return signal.oaconvolve(heard, response, mode="valid", axes=1).astype(np.float32)
    return np.ascontiguousarray(heard)


def noise_ids(noises: Noises | None) -> list[object]:
    """What identifies the noise of a mixture; nothing without noise."""
    return [] if noises is None else [["noise", [file.id for file in noises.files]]]


def _check_places(data: DataConfig, dealt: Mapping[Split, object]) -> None:
    """Raise `UserError` if a room of a split with noise has only places for two speakers."""
    few: Iterable[str] = (
        [f"data.rooms.sources_per_room is {data.rooms.sources_per_room}"] if data.rooms.sources_per_room < _PLACES else []
    )
    if data.rooms.recorded is not None:
        few = (
            f"{room.responses[0].where}: room {room.name} has {len(room.responses)} places"
            for room in read_recorded_rooms(data)
            if room.split in dealt and len(room.responses) < _PLACES
        )
    for said in few:
        raise UserError(f"{said}; noise of one channel sounds from a third place: wanted at least {_PLACES}")
