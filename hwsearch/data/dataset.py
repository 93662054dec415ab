"""Fixed mixtures on disk: what is known of each, and how it is read back.

A data set is a folder with one folder per split, which holds `manifest.jsonl` (a line per mixture) and two
float WAV files per mixture. Paths in a manifest are relative to the data set's folder.
"""

import hashlib
import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import soundfile as sf
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from hw_models.wording import first_mistake
from hwsearch.data.arrays import ARRAYS, ArrayName, Point
from hwsearch.errors import UserError
from hwsearch.experiment import Fraction, Split
from hwsearch.files.reading import canonical_json, read_content

MANIFEST_BYTES = 256 * 2**20
"""The largest manifest that is read; one of a split with the most mixtures takes half of it."""

SOUND_BYTES = 256 * 2**20
"""The largest sound file of a mixture; the longest one for the largest array takes a quarter of it."""

_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

_Text = Annotated[str, Field(min_length=1)]
_Position = Annotated[int, Field(ge=0)]
_Count = Annotated[int, Field(ge=1)]
_Length = Annotated[float, Field(gt=0.0)]
_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


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

    __pydantic_config__ = _STRICT

    utterance: _Text
    speaker: _Text
    transcript: str | None
    position_m: Point
    doa_deg: Annotated[float, Field(ge=0.0, le=360.0)]
    start: _Position
    samples: _Count
    whole: bool


@dataclass(frozen=True)
class Mixture:
    """One mixture and how it was made.

    Attributes:
        id: split and number, as `test-00012`.
        made_from: hash of the recordings that it may be made from.
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

    __pydantic_config__ = _STRICT

    id: _Text
    made_from: _Sha256
    sample_rate: Literal[8000, 16000]
    samples: _Count
    array: ArrayName
    microphones: _Count
    room: _Position
    room_size_m: tuple[_Length, _Length, _Length]
    array_centre_m: Point
    t60_s: _Length
    t60_measured_s: _Length | None
    target: Talker
    interferer: Talker
    angle_deg: Annotated[float, Field(ge=0.0, le=180.0)]
    overlap_drawn: Fraction
    overlap: Fraction
    sir_db: float
    noise_snr_db: float | None
    target_kind: Literal["reverberant", "early"]
    mixture_path: _Text
    mixture_sha256: _Sha256
    target_path: _Text
    target_sha256: _Sha256


_MIXTURE = TypeAdapter(Mixture)


def manifest_path(folder: Path, split: Split) -> Path:
    """Where a split's manifest is."""
    return folder / split.value / "manifest.jsonl"


def manifest_hash(folder: Path, split: Split) -> str:
    """SHA-256 of a split's manifest: it covers every parameter and, through their hashes, every sample.

    Raises:
        UserError: the split was not built.
    """
    return hashlib.sha256(_manifest(folder, split)).hexdigest()


def open_dataset(folder: Path, split: Split) -> tuple[Mixture, ...]:
    """Read a split's manifest; sound is not read.

    Raises:
        UserError: the split was not built, or a line of the manifest is broken; names the line.
    """
    path = manifest_path(folder, split)
    try:
        lines = _manifest(folder, split).decode().splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason}); wanted a manifest of mixtures") from None
    if not lines:
        raise UserError(f"{path}: empty; wanted a line for each mixture")
    mixtures: dict[str, Mixture] = {}
    for number, line in enumerate(lines, start=1):
        try:
            mixture = parse_mixture(line)
        except ValueError as error:
            raise UserError(
                f"{path}:{number}: broken line in a manifest of mixtures ({error}); delete the file and build the data again"
            ) from None
        if mixture.id in mixtures:
            raise UserError(f"{path}:{number}: mixture {mixture.id} is listed twice; delete the file and build the data again")
        mixtures[mixture.id] = mixture
    return tuple(mixtures.values())


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
        mixture = _MIXTURE.validate_json(line)
    except ValidationError as error:
        raise ValueError(first_mistake(error).said) from None
    _check_whole(mixture)
    return mixture


def _check_whole(mixture: Mixture) -> None:
    """Refuse fields that contradict each other."""
    microphones = ARRAYS[mixture.array].microphones
    if mixture.microphones != microphones:
        raise ValueError(f"microphones: {mixture.microphones}; array {mixture.array} has {microphones}")
    for name, talker in (("target", mixture.target), ("interferer", mixture.interferer)):
        end = talker.start + talker.samples
        if end > mixture.samples:
            raise ValueError(f"{name}.samples: speech ends at sample {end} of {mixture.samples}")
    for name, path in (("mixture_path", mixture.mixture_path), ("target_path", mixture.target_path)):
        if path != Path(path).as_posix() or Path(path).is_absolute() or ".." in Path(path).parts:
            raise ValueError(f"{name}: {path!r} is no path below the data set's folder")


def _manifest(folder: Path, split: Split) -> bytes:
    return read_content(manifest_path(folder, split), f"the {split.value} mixtures; build the data first", MANIFEST_BYTES)


def _read(path: Path, sha256: str, mixture: Mixture, channels: int) -> NDArray[np.float32]:
    content = read_content(path, "the sound that the manifest lists; build the data again", SOUND_BYTES)
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
