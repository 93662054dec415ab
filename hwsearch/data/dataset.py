"""Fixed mixtures on disk: what is known of each, and how it is read back.

A data set is a folder with one folder per split, which holds `manifest.jsonl` (a line per mixture) and two
float WAV files per mixture. Paths in a manifest are relative to the data set's folder.
"""

import hashlib
import io
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile as sf
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from hwsearch.errors import UserError
from hwsearch.experiment import Split
from hwsearch.files import canonical_json, file_digest

Point = tuple[float, float, float]


@dataclass(frozen=True)
class Talker:
    """One of the two speakers of a mixture.

    Attributes:
        utterance: id of the utterance.
        transcript: what is said, or None where it is not known: no transcript, or words were cut off.
        position_m: place in the room.
        doa_deg: direction from the array.
        start: first sample of the dry speech in the mixture.
        samples: length of the dry speech; its reverberation is longer.
        whole: whether the utterance was not cut.
    """

    utterance: str
    speaker: str
    transcript: str | None
    position_m: Point
    doa_deg: float
    start: int
    samples: int
    whole: bool


@dataclass(frozen=True)
class Mixture:
    """One mixture and how it was made.

    Attributes:
        id: split and number, as `test-00012`.
        samples: length of both files.
        room: number of the room in its split's bank.
        t60_s: reverberation time the room was drawn with.
        t60_measured_s: reverberation time measured (None: not measurable) on the target's impulse response at the reference
        microphone.
        angle_deg: angle between the two speakers, seen from the array.
        overlap_drawn: overlap asked for; the utterances may have been too short for it.
        overlap: share of the mixture in which both speak.
        sir_db: power of the target's reverberant image over the interferer's, at the reference microphone,
            each over the samples of its own dry speech.
        noise_snr_db: level of the sensor noise below the mixture, or None.
        target_kind: `reverberant` or `early`: what the target file holds.
        mixture_path: [mics, samples]; microphone 0 is the reference.
        target_path: [samples], the target at the reference microphone.
        mixture_sha256: of the whole file, as `target_sha256`.
    """

    id: str
    sample_rate: int
    samples: int
    array: str
    microphones: int
    room: int
    room_size_m: Point
    array_centre_m: Point
    t60_s: float
    t60_measured_s: float | None
    target: Talker
    interferer: Talker
    angle_deg: float
    overlap_drawn: float
    overlap: float
    sir_db: float
    noise_snr_db: float | None
    target_kind: str
    mixture_path: str
    mixture_sha256: str
    target_path: str
    target_sha256: str


_MIXTURE = TypeAdapter(Mixture)


def manifest_path(folder: Path, split: Split) -> Path:
    """Where a split's manifest is."""
    return folder / split.value / "manifest.jsonl"


def manifest_hash(folder: Path, split: Split) -> str:
    """SHA-256 of a split's manifest: it covers every parameter and, through their hashes, every sample.

    Raises:
        UserError: the split was not built.
    """
    path = manifest_path(folder, split)
    if not path.is_file():
        raise UserError(f"{path}: no such file; wanted the {split.value} mixtures; build the data first")
    return file_digest(path)


def open_dataset(folder: Path, split: Split) -> tuple[Mixture, ...]:
    """Read a split's manifest; sound is not read.

    Raises:
        UserError: the split was not built, or a line of the manifest is broken; names the line.
    """
    path = manifest_path(folder, split)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; wanted the {split.value} mixtures; build the data first") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason}); wanted a manifest of mixtures") from None
    if not lines:
        raise UserError(f"{path}: empty; wanted a line for each mixture")
    mixtures = []
    for number, line in enumerate(lines, start=1):
        try:
            mixtures.append(parse_mixture(line))
        except ValueError as error:
            raise UserError(f"{path}:{number}: broken line in a manifest of mixtures ({error})") from None
    return tuple(mixtures)


def dataset_files(folder: Path, split: Split) -> tuple[Path, ...]:
    """Every file of a split.

    Raises:
        UserError: as `open_dataset`.
    """
    sounds = [folder / name for mixture in open_dataset(folder, split) for name in (mixture.mixture_path, mixture.target_path)]
    return (manifest_path(folder, split), *sounds)


def load_mixture(folder: Path, mixture: Mixture) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Read a mixture [mics, samples] and its target [samples].

    Raises:
        UserError: a file is missing or is not the one the manifest was written with.
    """
    sound = _read(folder / mixture.mixture_path, mixture.mixture_sha256, mixture, mixture.microphones)
    target = _read(folder / mixture.target_path, mixture.target_sha256, mixture, channels=1)
    return sound, target[0]


def format_mixture(mixture: Mixture) -> str:
    """A mixture as one line of JSON."""
    return canonical_json(asdict(mixture))


def parse_mixture(line: str) -> Mixture:
    """The inverse of `format_mixture`.

    Raises:
        ValueError: names the first field that is missing or wrong.
    """
    try:
        return _MIXTURE.validate_json(line, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _read(path: Path, sha256: str, mixture: Mixture, channels: int) -> NDArray[np.float32]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; the manifest lists it; build the data again") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(f"{path}: changed since it was written (SHA-256 differs from the manifest); build the data again")
    try:
        samples, rate = sf.read(io.BytesIO(content), dtype="float32", always_2d=True)
    except sf.SoundFileError:
        raise UserError(f"{path}: not audio, though it is what the manifest lists; build the data again") from None
    if (rate, samples.shape) != (mixture.sample_rate, (mixture.samples, channels)):
        raise UserError(
            f"{path}: {samples.shape[1]} channels of {samples.shape[0]} samples at {rate} Hz; the manifest "
            f"wants {channels} of {mixture.samples} at {mixture.sample_rate} Hz"
        )
    return np.ascontiguousarray(samples.T)
