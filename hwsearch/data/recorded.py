"""Mixtures that exist as files: their lists, their identity, and checks of their headers."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import soxr
from numpy.typing import NDArray

from hw_models.reading import no_file
from hwsearch.data.arrays import microphone_array
from hwsearch.data.audio import Recording, decode, open_recording, refuse_silent
from hwsearch.errors import UserError
from hwsearch.experiment import DataConfig, Experiment, RecordedConfig, Split
from hwsearch.extensions import RECORDED
from hwsearch.files.reading import digest, file_digest

SHORTEST_S = 0.5
"""Shortest mixture in seconds, as for those that are simulated."""

LARGEST_BYTES = 2**27
"""Largest size of a mixture as 32-bit samples of all its channels: six minutes of six microphones at 16 kHz."""

_SAMPLE_BYTES = 4


@dataclass(frozen=True)
class RecordedMixture:
    """A mixture that exists, with one of its speakers as the target.

    Attributes:
        where: the line or entry of the list, for error messages.
        split: the split that it belongs to.
        mixture: file of all microphones; microphone 1 is the reference.
        targets: files that add up to the target. Of several channels, the first is taken.
        doa_deg: direction of the target, or None if unknown.
        utterance: name of the target's utterance, unique in its list.
        speaker: the target's speaker, or None if unknown.
        transcript: lower-case words, or None if unknown.
        angle_deg: angle between the target and the other speaker, seen from the array, or None if unknown.
    """

    where: str
    split: Split
    mixture: Path
    targets: tuple[Path, ...]
    doa_deg: float | None
    utterance: str
    speaker: str | None
    transcript: str | None
    angle_deg: float | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """All files."""
        return (self.mixture, *self.targets)

    @property
    def content(self) -> str:
        """Hash of all that the list says of the mixture, and of the content of its files, wherever they lie."""
        said = [self.split.value, self.doa_deg, self.utterance, self.speaker, self.transcript, self.angle_deg]
        return digest([*said, *map(content_digest, self.files)])


@dataclass(frozen=True)
class RecordedList:
    """The mixtures of a list, and lines for people about them."""

    mixtures: tuple[RecordedMixture, ...]
    notes: tuple[str, ...] = ()


ReadRecorded = Callable[[Path, DataConfig], RecordedList]
"""Reads a list of mixtures, in its order, for an experiment's section `data`. Raises `UserError` for an unusable list."""


def read_list(config: RecordedConfig, data: DataConfig) -> RecordedList:
    """Read a list and choose the mixtures that the experiment uses: the first ones of each split.

    Raises:
        UserError: the list is unusable, its files are missing, or it has no mixture for a split that the experiment names.
    """
    listed = RECORDED.load(config.kind)(config.path, data)
    chosen: list[RecordedMixture] = []
    for split in Split:
        found = [mixture for mixture in listed.mixtures if mixture.split is split]
        if config.count and split not in config.count:
            continue
        if split in config.count and not found:
            raise UserError(f"{config.path}: no {split.value} mixture in it; data.recorded.count wants some")
        chosen += found[: config.count.get(split)]
    if not chosen:
        raise UserError(f"{config.path}: no mixture in it; wanted some")
    for mixture in chosen:
        for path in mixture.files:
            if (reason := no_file(path)) is not None:
                raise UserError(f"{mixture.where}: {path}: {reason}; wanted a recording")
    return RecordedList(tuple(chosen), listed.notes)


def list_digest(listed: RecordedList) -> str:
    """Hash the content of the chosen mixtures of a list."""
    return digest([mixture.content for mixture in listed.mixtures])


def read_recorded(data: DataConfig) -> RecordedList:
    """Read all lists of an experiment.

    Raises:
        UserError: as `read_list`; a list's content has changed since the experiment was read; a mixture with the same target is
            listed twice, or a recording or a speaker is in two splits.
    """
    found: list[RecordedMixture] = []
    notes: list[str] = []
    for config in data.recorded:
        listed = read_list(config, data)
        if config.sha256 not in (None, list_digest(listed)):
            raise UserError(
                f"{config.path}: the list or its files have changed since they had the content {str(config.sha256)[:16]}; "
                "wanted the same content, or the experiment's file with another name"
            )
        found += listed.mixtures
        notes += listed.notes
    _check_apart(found)
    return RecordedList(tuple(found), tuple(notes))


def check_directions(experiment: Experiment, mixtures: Iterable[RecordedMixture]) -> None:
    """Raise `UserError` for a mixture without a direction if the experiment's network uses it."""
    for mixture in mixtures:
        if mixture.doa_deg is None and experiment.separator.spectral is not None:
            raise UserError(f"{mixture.where}: no direction of the target, which the network is given; wanted one")


@dataclass(frozen=True)
class Header:
    """Sample rate and number of samples of a mixture."""

    sample_rate: int
    samples: int

    def resampled(self, sample_rate: int) -> int:
        """The number of samples at another rate, or one more."""
        return -(-self.samples * sample_rate // self.sample_rate)


def check_headers(mixture: RecordedMixture, data: DataConfig) -> Header:
    """Check the headers of a mixture's files.

    Raises:
        UserError: a file is unusable, the mixture has another number of channels than the array, it is too short or too long, or
            a target has another length or sample rate than the mixture.
    """
    found = open_recording(mixture.mixture)
    array = microphone_array(data.array)
    microphones = array.microphones
    if found.channels != microphones:
        raise UserError(
            f"{mixture.where}: {found.path}: {_channels(found)}; data.array {array} has {microphones} microphone"
            f"{'s' * (microphones != 1)}: wanted a channel for each"
        )
    size = _SAMPLE_BYTES * microphones * found.samples
    if found.seconds < SHORTEST_S or max(size, size * data.sample_rate // found.sample_rate) > LARGEST_BYTES:
        longest = LARGEST_BYTES / (_SAMPLE_BYTES * microphones * max(found.sample_rate, data.sample_rate))
        raise UserError(
            f"{mixture.where}: {found.path}: lasts {found.seconds:g} s; wanted {SHORTEST_S:g} to {longest:.0f} s, or pieces of it"
        )
    for path in mixture.targets:
        target = open_recording(path)
        if target.sample_rate != found.sample_rate:
            raise UserError(
                f"{mixture.where}: {path}: {target.sample_rate} Hz; the mixture has {found.sample_rate} Hz: wanted the same rate"
            )
        if target.samples != found.samples:
            raise UserError(
                f"{mixture.where}: {path}: {target.samples} samples; the mixture {found.path} has {found.samples}: wanted as many"
            )
        if target.channels not in (1, found.channels):
            raise UserError(f"{mixture.where}: {path}: {_channels(target)}; wanted one, or those of the mixture")
    return Header(found.sample_rate, found.samples)


def conversion_notes(headers: Iterable[tuple[RecordedMixture, Header]], sample_rate: int) -> tuple[str, ...]:
    """Say for each rate how many mixtures are resampled."""
    rates = [header.sample_rate for _, header in headers if header.sample_rate != sample_rate]
    counts = {rate: rates.count(rate) for rate in sorted(set(rates))}
    return tuple(
        f"{count} recorded mixture{'s' * (count != 1)} of {rate} Hz: resampled to {sample_rate} Hz"
        for rate, count in counts.items()
    )


def load_recorded(mixture: RecordedMixture, sample_rate: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Read a whole mixture [mics, samples] and its target [samples], at `sample_rate` Hz.

    Raises:
        UserError: a file cannot be decoded, or is silent in its first channel.
    """
    sound, rate = decode(mixture.mixture)
    target = sum_of_first(decode(path)[0] for path in mixture.targets)
    for path, heard in ((mixture.mixture, sound[0]), (mixture.targets[0], target)):
        refuse_silent(path, float(np.abs(heard).max()), " in channel 1")
    return resampled(sound, rate, sample_rate), resampled(target[None], rate, sample_rate)[0]


def sum_of_first(parts: Iterable[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Add up the first channels of sounds [channels, samples]."""
    total: NDArray[np.float32] = np.sum([part[0] for part in parts], axis=0, dtype=np.float32)
    return total


def resampled(sound: NDArray[np.float32], rate: int, sample_rate: int) -> NDArray[np.float32]:
    """Sound [channels, samples] at another sample rate."""
    if rate == sample_rate:
        return sound
    return np.ascontiguousarray(soxr.resample(sound.T, rate, sample_rate).T)


def content_digest(path: Path) -> str:
    """Hash a file's content. A file that has not changed is read once by a process.

    Raises:
        UserError: there is no regular file.
    """
    if (reason := no_file(path)) is not None:
        raise UserError(f"{path}: {reason}; wanted a recording")
    found = path.stat()
    return _content_digest(path, (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns))


@cache
def _content_digest(path: Path, _identity: tuple[int, ...]) -> str:
    return file_digest(path)


def _check_apart(mixtures: Sequence[RecordedMixture]) -> None:
    """Raise `UserError` for mixtures that are listed twice, and for speakers and recordings in two splits.

    A recording is known by its content, so a copy of it is the same one.
    """
    seen: set[tuple[str, ...]] = set()
    homes: dict[str, RecordedMixture] = {}
    for mixture in mixtures:
        contents = tuple(map(content_digest, mixture.files))
        if contents in seen:
            raise UserError(f"{mixture.where}: {mixture.mixture} is listed twice with this target; wanted it once")
        seen.add(contents)
        parts = dict(zip(contents, map(str, mixture.files), strict=True))
        if mixture.speaker is not None:
            parts[f"speaker {mixture.speaker}"] = f"speaker {mixture.speaker}"
        for key, name in parts.items():
            other = homes.setdefault(key, mixture)
            if other.split is not mixture.split:
                raise UserError(
                    f"{mixture.where}: {name} is in the {mixture.split.value} split and, by {other.where}, in the "
                    f"{other.split.value} split; wanted one split"
                )


def _channels(recording: Recording) -> str:
    return f"{recording.channels} channel{'s' * (recording.channels != 1)}"
