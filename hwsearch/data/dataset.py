"""Fixed mixtures on disk.

A data set has a folder for each split, with `manifest.jsonl` (one line per mixture) and two float WAV files per mixture. Paths in
a manifest are relative to the data set's folder.
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
"""Size limit of a manifest: twice the size with the most mixtures allowed."""

SOUND_BYTES = 256 * 2**20
"""Size limit of a sound file: four times the size of the longest mixture with the largest array."""

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
        speaker: id of the speaker.
        transcript: words of the utterance, or None if they are unknown or the utterance was cut.
        position_m: position in the room, or None if unknown.
        doa_deg: direction from the array, or None if unknown.
        start: first sample of the dry speech in the mixture.
        samples: length of the dry speech, without its reverberation.
        whole: whether the utterance was left uncut.
    """

    __pydantic_config__ = _STRICT

    utterance: _Text
    speaker: _Text
    transcript: str | None
    position_m: Point | None
    doa_deg: Annotated[float, Field(ge=0.0, le=360.0)] | None
    start: _Position
    samples: _Count
    whole: bool


@dataclass(frozen=True)
class Mixture:
    """One mixture, and how it was made.

    What is not known of a recorded mixture or room is None.

    Attributes:
        id: split and number, such as `test-00012`.
        made_from: hash of the recordings that it may be made from.
        samples: length of both files.
        room: number of the room in its split's bank.
        t60_s: reverberation time drawn for the room.
        t60_measured_s: reverberation time of the target's impulse response at the reference microphone, or None if not
            measurable.
        angle_deg: angle between the two speakers, seen from the array.
        overlap_drawn: overlap drawn for the mixture; the utterances may be too short for it.
        overlap: share of the mixture in which both speak.
        sir_db: ratio of the powers of the reverberant target and interferer at the reference microphone, each averaged over the
            samples of its dry speech.
        noise_snr_db: ratio of mixture to sensor noise, or None without noise.
        target_kind: content of the target file.
        mixture_path: file of [mics, samples]; microphone 0 is the reference.
        mixture_sha256: hash of this file.
        target_path: file of [samples], the target at the reference microphone.
        target_sha256: hash of this file.
        noise: file of the recorded noise in the mixture, relative to the noise folder, or None without such noise.
        noise_below_db: level of the speech above that noise.
    """

    __pydantic_config__ = _STRICT

    id: _Text
    made_from: _Sha256
    sample_rate: Literal[8000, 16000]
    samples: _Count
    array: ArrayName
    microphones: _Count
    room: _Position | None
    room_size_m: tuple[_Length, _Length, _Length] | None
    array_centre_m: Point | None
    t60_s: _Length | None
    t60_measured_s: _Length | None
    target: Talker
    interferer: Talker | None
    angle_deg: Annotated[float, Field(ge=0.0, le=180.0)] | None
    overlap_drawn: Fraction | None
    overlap: Fraction | None
    sir_db: float | None
    noise_snr_db: float | None
    target_kind: Literal["reverberant", "early", "recorded"]
    mixture_path: _Text
    mixture_sha256: _Sha256
    target_path: _Text
    target_sha256: _Sha256
    noise: _Text | None = None
    noise_below_db: float | None = None

    @property
    def doa_deg(self) -> float:
        """Direction of the target; 0 if it is unknown, which only a network that uses no direction is given."""
        return 0.0 if self.target.doa_deg is None else self.target.doa_deg


_MIXTURE = TypeAdapter(Mixture)

AS_RECORDED: Literal["recorded"] = "recorded"
"""Kind of target of a mixture that was not made here."""

_OF_MADE = ("interferer", "room", "angle_deg", "overlap_drawn", "overlap", "sir_db")
"""Fields that every mixture made here has."""

_OF_NOISY = ("noise", "noise_below_db")
"""Fields that only mixtures with recorded noise have."""

_OF_SIMULATED = ("room_size_m", "array_centre_m", "t60_s")
"""Fields that every mixture in a simulated room has, or none of them in a recorded room."""


def manifest_path(folder: Path, split: Split) -> Path:
    """File of a split's manifest."""
    return folder / split.value / "manifest.jsonl"


def manifest_hash(folder: Path, split: Split) -> str:
    """SHA-256 of a split's manifest, which holds all parameters and the hashes of all sound files.

    Raises:
        UserError: the split was not built.
    """
    return hashlib.sha256(_manifest(folder, split)).hexdigest()


def open_dataset(folder: Path, split: Split) -> tuple[Mixture, ...]:
    """Read a split's manifest, without the sound.

    Raises:
        UserError: the split was not built, or a line of the manifest is broken.
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
    """List every file of a split.

    Raises:
        UserError: as `open_dataset`.
    """
    sounds = [folder / name for mixture in open_dataset(folder, split) for name in (mixture.mixture_path, mixture.target_path)]
    return (manifest_path(folder, split), *sounds)


def load_mixture(folder: Path, mixture: Mixture) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Read a mixture [mics, samples] and its target [samples].

    Raises:
        UserError: a file is missing, or its hash is not that in the manifest.
    """
    sound = _read(folder / mixture.mixture_path, mixture.mixture_sha256, mixture, mixture.microphones)
    target = _read(folder / mixture.target_path, mixture.target_sha256, mixture, channels=1)
    return sound, target[0]


def format_mixture(mixture: Mixture) -> str:
    """Write a mixture as one line of JSON."""
    without = () if mixture.noise is not None else _OF_NOISY  # as before there was such noise
    return canonical_json({name: value for name, value in asdict(mixture).items() if name not in without})


def parse_mixture(line: str) -> Mixture:
    """Read a mixture from a line of `format_mixture`.

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
    """Raise `ValueError` if fields contradict each other."""
    microphones = ARRAYS[mixture.array].microphones
    if mixture.microphones != microphones:
        raise ValueError(f"microphones: {mixture.microphones}; array {mixture.array} has {microphones}")
    _check_known(mixture)
    for name, talker in (("target", mixture.target), ("interferer", mixture.interferer)):
        if talker is None:
            continue
        end = talker.start + talker.samples
        if end > mixture.samples:
            raise ValueError(f"{name}.samples: speech ends at sample {end} of {mixture.samples}")
    for name, path in (("mixture_path", mixture.mixture_path), ("target_path", mixture.target_path)):
        if path != Path(path).as_posix() or Path(path).is_absolute() or ".." in Path(path).parts:
            raise ValueError(f"{name}: {path!r} is no path below the data set's folder")


def _check_known(mixture: Mixture) -> None:
    """Raise `ValueError` if a mixture that was made here lacks what is known of such."""
    if mixture.target_kind == AS_RECORDED:
        return
    for name in _OF_MADE:
        if getattr(mixture, name) is None:
            raise ValueError(f"{name}: nothing; wanted a value for a mixture that was made here")
    for name, talker in (("target", mixture.target), ("interferer", mixture.interferer)):
        if talker is None or talker.doa_deg is None:
            raise ValueError(f"{name}.doa_deg: nothing; wanted a value for a mixture that was made here")
        if (talker.position_m is None) != (mixture.t60_s is None):
            raise ValueError(f"{name}.position_m: known, or t60_s is, but not both")
    if len({getattr(mixture, name) is None for name in _OF_SIMULATED}) != 1:
        raise ValueError(f"{', '.join(_OF_SIMULATED)}: some are known, some are not; wanted all or none")


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
