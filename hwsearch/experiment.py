"""The experiment file: one TOML that says everything a run depends on.

Every section is a frozen pydantic model; unknown keys and values out of range are errors that name the key. Paths inside the
file are relative to the file itself.
"""

import json
import math
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from enum import StrEnum
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Self, get_args

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from hw_models.errors import TargetError
from hw_models.layer_cost import executed_activation
from hw_models.reading import Unreadable, read_toml
from hw_models.target import load_target
from hw_models.wording import Mistake, first_mistake, shown
from hwsearch.errors import UserError
from hwsearch.extensions import CORPORA, QUALITY_METRICS, RECORDED, SAMPLERS, SENSITIVITIES, STRATEGIES
from hwsearch.files.reading import digest

FLOAT_BITS = 32
"""The bit-width that stands for floating point."""

WIDE_BITS = 16
"""Width of the trunk, if every target of an experiment supports it."""

NARROW_BITS = 8
"""Width from which on layers read the trunk at a width of their own."""

FINN_RULE = "dataflow"
"""The compute rule of FINN targets."""

MOST_MICROPHONES = 16
"""Most microphones of an array."""

MOST_PAIRS = MOST_MICROPHONES * (MOST_MICROPHONES - 1) // 2

_NARROWEST_CM, _WIDEST_CM = 0.5, 200.0
"""Least and largest width of an array. The features take a speaker to be far away, compared with the width."""

_SAME_PLACE_CM = 0.01
"""Microphones nearer than this are at one place."""

_BEND = 0.05
"""Breadth of a line of microphones, as a share of its length: across it there is too little to tell front from back."""

EXPERIMENT_FILE = "experiment.json"
"""File of a run folder: the experiment that it is of."""

RESERVED_NAMES = ("data", "corpora")
"""Folders that all runs share. No experiment may have these names."""

DATA_PLACES: dict[str, Any] = {
    "corpora": {"__all__": {"root"}},
    "recorded": {"__all__": {"path"}},
    "rooms": {"recorded"},
    "noise": {"folder"},
}
"""Paths in the section `data`, which no hash covers; those of recorded data are known by their content."""

_MOVED = {"training.device": "workers.device"}
"""Keys of earlier versions, and those that replace them."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Split(StrEnum):
    """The three disjoint parts of a data set."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
RoomSide = Annotated[float, Field(ge=1.0, le=100.0)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Degrees = Annotated[float, Field(ge=0.0, le=180.0)]
Centimetres = Annotated[float, Field(ge=-1000.0, le=1000.0)]
Channel = Annotated[int, Field(ge=0, lt=MOST_MICROPHONES)]
Decibels = Annotated[float, Field(ge=-60.0, le=60.0)]
WeightBits = Literal[2, 3, 4, 5, 6, 7, 8, 16, 32]
ActivationBits = Literal[4, 5, 6, 7, 8, 16, 32]
Device = Literal["cpu", "cuda"]


class CorpusConfig(Section):
    """One source of speech. A file holds one `[[data.corpora]]` or several.

    The experiment's seed decides which speaker belongs to which split. No sentence is in two splits, and no speaker, except those
    of `fsdd`.
    """

    kind: Annotated[str, CORPORA]
    """Format of the speech."""
    root: Path | None = None
    """The folder (`folder`, `librispeech`, `fsdd`), file (`csv`) or either (`lhotse`) of the speech. `espeak` takes none."""
    splits: dict[Split, Fraction]
    """Share of the speakers that each split gets. The shares sum to at most 1, and speakers beyond the sum are left out."""
    digit_strings: Fraction = 0.0
    """Share of utterances that are digit strings, for `espeak`. All utterances of `fsdd` are digit strings."""
    speakers: Annotated[int, Field(ge=3, le=200)] = 40
    """Number of synthetic voices over all splits, for `espeak`."""
    utterances_per_speaker: Annotated[int, Field(ge=1, le=500)] = 12
    """Utterances made for each speaker, for `espeak` and `fsdd`."""
    channel: Annotated[int, Field(ge=0, le=1023)] | None = Field(default=None, exclude_if=lambda channel: channel is None)
    """Channel taken from recordings with several, counted from 0. Default: the first one for `folder`, the one of the
    supervision for `lhotse`; other kinds average the channels."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.splits or sum(self.splits.values()) <= 0 or sum(self.splits.values()) > 1 + 1e-9:
            raise ValueError("splits must name at least one split, with shares that sum to at most 1")
        return self


class RoomConfig(Section):
    """Simulated rooms with an array and sources in each. Sizes, reverberation times and distances are drawn uniformly between
    their two ends. Recorded rooms use only `count` and `min_angle_deg`.
    """

    count: dict[Split, Annotated[int, Field(ge=1, le=20_000)]]
    """Number of rooms in each split. Of recorded rooms, the most of each split: the first ones of the list are taken, and if no
    count is given, all rooms of all splits."""
    recorded: Path | None = Field(default=None, exclude_if=lambda path: path is None)
    """A list of recorded impulse responses, in place of simulated rooms: a CSV file with the columns `rir`, `doa_deg`, `room` and
    `split`. `rir` is a WAV or FLAC file with a channel for each microphone, or a SOFA file, which wants
    `pip install 'hwsearch[sofa]'`; it is relative to the list's folder."""
    sha256: Sha256 | None = Field(default=None, exclude_if=lambda content: content is None)
    """Hash of the recorded rooms that are taken: of what the list says of them, and of the content of their files. If it is
    given, they must have it. Otherwise it is found when the experiment is read."""
    sources_per_room: Annotated[int, Field(ge=2, le=16)] = 4
    """Positions for speakers in each room. A mixture uses two of them."""
    size_min_m: tuple[RoomSide, RoomSide, RoomSide] = (4.0, 4.0, 2.5)
    """Smallest length, width and height in metres."""
    size_max_m: tuple[RoomSide, RoomSide, RoomSide] = (10.0, 8.0, 6.0)
    """Largest length, width and height in metres."""
    t60_min_s: Annotated[float, Field(ge=0.05, le=2.0)] = 0.05
    """Shortest reverberation time (T60) in seconds."""
    t60_max_s: Annotated[float, Field(ge=0.05, le=2.0)] = 0.7
    """Longest reverberation time (T60) in seconds."""
    distance_min_m: Annotated[float, Field(ge=0.2, le=100.0)] = 0.8
    """Smallest distance from a source to the centre of the array, in metres."""
    distance_max_m: Annotated[float, Field(ge=0.2, le=100.0)] = 2.5
    """Largest distance from a source to the centre of the array, in metres."""
    min_angle_deg: Annotated[float, Field(ge=0.0, le=60.0)] = 5.0
    """Smallest angle between two sources of a room, seen from the array, in degrees."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for low, high, name in (
            (self.t60_min_s, self.t60_max_s, "t60"),
            (self.distance_min_m, self.distance_max_m, "distance"),
            *zip(self.size_min_m, self.size_max_m, ("size",) * 3, strict=True),
        ):
            if low > high:
                raise ValueError(f"{name} minimum {low} is above its maximum {high}")
        if self.sha256 is not None and self.recorded is None:
            raise ValueError("sha256 is given, but no recorded rooms; wanted 'recorded', too")
        return self


class MixtureConfig(Section):
    """How two reverberant speakers become one mixture, and how many mixtures are written to disk."""

    count: dict[Split, Annotated[int, Field(ge=1, le=100_000)]]
    """Mixtures written for each split. Training needs none, because it mixes as it goes."""
    seconds: Annotated[float, Field(ge=0.5, le=60.0)] = 4.0
    """Longest mixture in seconds. Longer utterances are cut."""
    overlap_mean: Fraction = 0.85
    """Mean share of a mixture in which both speakers talk. The share is drawn uniformly around it."""
    overlap_min: Fraction = 0.6
    """Smallest share of a mixture in which both speakers talk."""
    sir_mean_db: Decibels = 0.0
    """Mean level of the target above the interferer, in dB. The level is drawn from a normal distribution."""
    sir_std_db: Annotated[float, Field(ge=0.0, le=20.0)] = 2.0
    """Standard deviation of the target's level above the interferer, in dB."""
    noise_snr_db: Decibels | None = None
    """Level of the mixture above the sensor noise, which is spatially white, in dB. Default: no noise."""
    target: Literal["reverberant", "early"] = "reverberant"
    """What the separator is to return, as microphone 1 hears it.

    - `reverberant`: the target speaker with all reverberation.
    - `early`: the target speaker with the first `early_ms` of the room's response.
    """
    early_ms: Annotated[float, Field(gt=0.0, le=200.0)] = 50.0
    """Milliseconds after the direct sound that `target = "early"` keeps."""


class RecordedConfig(Section):
    """A list of mixtures that exist as files, beside those that are made from `data.corpora`, or in place of them. A file holds
    any number of `[[data.recorded]]`.

    Recorded mixtures of the validation and the test split come before those that are made. They are resampled to
    `data.sample_rate`, and must have as many channels as the array has microphones.
    """

    kind: Annotated[str, RECORDED] = "csv"
    """Format of the list."""
    path: Path
    """The list. The paths in it are relative to its folder."""
    count: dict[Split, Annotated[int, Field(ge=1, le=1_000_000)]] = Field(default_factory=dict)
    """Most mixtures of each split; the first ones of the list are taken. Splits that are not named are left out. Default: all
    mixtures of all splits."""
    sha256: Sha256 | None = Field(default=None, exclude_if=lambda content: content is None)
    """Hash of the mixtures that are taken: of what the list says of them, and of the content of their files. If it is given, they
    must have it. Otherwise it is found when the experiment is read."""


class NoiseConfig(Section):
    """Recorded noise that is added to mixtures that are made. Recorded mixtures keep the noise that they have.

    Noise with a channel for each microphone is added as it is. Noise of one channel sounds from a place in the room at which
    neither speaker is, as a point source with all its reverberation. Noise that is shorter than a mixture is repeated.
    """

    folder: Path
    """The folder of WAV and FLAC files, at any depth. Files in one folder below it stay together."""
    snr_db: tuple[Decibels, Decibels]
    """Lowest and highest level of the speech above the noise at microphone 1, in dB. The level is drawn uniformly."""
    splits: dict[Split, Fraction] = Field(default_factory=dict)
    """Share of the files that each split gets. Splits without a share have no noise. No file is in two splits, and the seed
    decides which files belong to which. Default: noise in training alone."""
    sha256: Sha256 | None = Field(default=None, exclude_if=lambda content: content is None)
    """Hash of the names, sizes and ends of the files. If it is given, they must have it. Otherwise it is found when it
    is read."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.snr_db[0] > self.snr_db[1]:
            raise ValueError(f"snr_db {list(self.snr_db)} must rise, from the lowest level to the highest")
        if sum(self.shares.values()) <= 0 or sum(self.shares.values()) > 1 + 1e-9:
            raise ValueError("splits must name at least one split, with shares that sum to at most 1")
        return self

    @property
    def shares(self) -> Mapping[Split, float]:
        """Share of the files that each split gets."""
        return self.splits or {Split.TRAIN: 1.0}


class ArrayConfig(Section):
    """An array of your own, in place of the name of a built-in one: `array = { positions_cm = [[0, 0], [3, 0], [6, 0]] }`.

    Directions are counted counter-clockwise from the x axis, seen from above. A line of microphones lies along the x axis.
    """

    positions_cm: Annotated[
        tuple[Annotated[tuple[Centimetres, ...], Field(min_length=2, max_length=3)], ...],
        Field(min_length=1, max_length=MOST_MICROPHONES),
    ]
    """Place of each microphone: x, y and, if wanted, the height z, in centimetres from any origin. The order is that of the
    channels of a recording. One microphone suffices for a network without a spectral front end."""
    pairs: Annotated[tuple[tuple[Channel, Channel], ...], Field(max_length=MOST_PAIRS)] | None = None
    """Pairs of microphones, counted from 0, whose phase differences are features if `separator.ipd` asks for them. Default: at
    most as many as microphones. The longest comes first, then always the one whose baseline differs most from those chosen."""

    @property
    def width_cm(self) -> float:
        """Largest distance of two microphones in centimetres; 0 for one microphone."""
        return max((math.dist(one, other) for one, other in combinations(self.positions_cm, 2)), default=0.0)

    @property
    def radius_cm(self) -> float:
        """Largest distance of a microphone from the centre, the mean of the positions, in centimetres."""
        centre = [sum(axis) / len(axis) for axis in zip(*self.positions_cm, strict=True)]
        return max(math.dist(position, centre) for position in self.positions_cm)

    @property
    def is_line(self) -> bool:
        """Whether the microphones, seen from above, lie along the x axis. It may bend by a twentieth of its length."""
        length, breadth = (max(axis) - min(axis) for axis in (self._along(0), self._along(1)))
        return len(self.positions_cm) > 1 and breadth <= length * _BEND

    def _along(self, axis: int) -> list[float]:
        return [position[axis] for position in self.positions_cm]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len({len(position) for position in self.positions_cm}) > 1:
            raise ValueError("positions_cm has rows of 2 and of 3 numbers; wanted [x, y] for each microphone, or [x, y, z]")
        for (one, here), (other, there) in combinations(enumerate(self.positions_cm), 2):
            if math.dist(here, there) < _SAME_PLACE_CM:
                raise ValueError(f"positions_cm has microphones {one} and {other} at one place, {list(here)}; wanted two places")
        if len(self.positions_cm) > 1:
            self._check_size()
            self._check_line()
        self._check_pairs()
        return self

    def _check_size(self) -> None:
        width = self.width_cm
        if width < _NARROWEST_CM:
            raise ValueError(
                f"positions_cm spans {width:.3g} cm in all; wanted centimetres, at least {_NARROWEST_CM:g} in all: these look "
                f"like metres ({100 * width:.3g} cm?)"
            )
        if width > _WIDEST_CM:
            raise ValueError(
                f"positions_cm spans {width:.4g} cm in all; wanted centimetres, at most {_WIDEST_CM:g} in all: these look like "
                f"millimetres ({width / 10:.3g} cm?)"
            )

    def _check_line(self) -> None:
        """Refuse microphones in a line other than the x axis: the range of directions is counted from there."""
        flat = [position[:2] for position in self.positions_cm]
        start, end = max(combinations(flat, 2), key=lambda pair: math.dist(*pair))
        length = math.dist(start, end)
        if length < _NARROWEST_CM:
            raise ValueError("positions_cm has all microphones above one another; wanted some apart in x, to tell directions")
        x, y = ((end[axis] - start[axis]) / length for axis in (0, 1))
        breadth = [(place[0] - start[0]) * y - (place[1] - start[1]) * x for place in flat]
        if max(breadth) - min(breadth) <= length * _BEND and not self.is_line:
            raise ValueError(
                "positions_cm is a line, but not along the x axis, from which directions are counted; wanted all y alike, as in "
                "[[0, 0], [3, 0]]"
            )

    def _check_pairs(self) -> None:
        microphones = len(self.positions_cm)
        for first, second in self.pairs or ():
            for end in (first, second):
                if end >= microphones:
                    raise ValueError(
                        f"pairs has [{first}, {second}], and there is no microphone {end}; wanted 0 to {microphones - 1}"
                    )
            if first == second:
                raise ValueError(f"pairs has [{first}, {second}]; wanted two different microphones")
        if self.pairs is not None and len({frozenset(pair) for pair in self.pairs}) < len(self.pairs):
            raise ValueError("pairs has two microphones twice; wanted each pair once")
        if self.pairs == () and microphones > 1:
            raise ValueError("pairs is []; wanted at least one, or no such key")


ArrayName = Literal["linear15", "linear6", "circular6", "linear4", "mono", "laptop2", "respeaker4", "respeaker6", "linear8"]
"""The built-in arrays."""

_OWN_ARRAY, _BUILT_IN_ARRAY = "positions", "name"


def _array_kind(value: Any) -> str:
    return _OWN_ARRAY if isinstance(value, dict | ArrayConfig) else _BUILT_IN_ARRAY


ArraySetting = Annotated[
    Annotated[ArrayName, Tag(_BUILT_IN_ARRAY)] | Annotated[ArrayConfig, Tag(_OWN_ARRAY)], Discriminator(_array_kind)
]
"""The key `data.array` of an experiment file."""


class DataConfig(Section):
    """Speech, rooms and mixtures. With `data.recorded`, all the rest may be left out."""

    sample_rate: Literal[8000, 16000] = 8000
    """Samples per second of all audio."""
    array: ArraySetting = "linear6"
    """Microphone array: a built-in one, or the microphones' positions. The number in a name is the number of microphones.

    - `linear15`: the array of the reference system, 56 cm long.
    - `linear6`, `linear4`: lines of 27 cm and 12 cm.
    - `circular6`: a circle of 5 cm radius.
    - `mono`: one microphone, for networks that use no direction.
    - `laptop2`: two microphones in the frame of a screen, 10 cm apart.
    - `respeaker4`, `respeaker6`: the circles of ReSpeaker boards, of 3.2 cm and 4.63 cm radius.
    - `linear8`: a line of 21 cm, as in bars below a screen.
    """
    corpora: tuple[CorpusConfig, ...]
    rooms: RoomConfig
    mixtures: MixtureConfig
    recorded: tuple[RecordedConfig, ...] = Field(default=(), exclude_if=lambda recorded: not recorded)
    noise: NoiseConfig | None = Field(default=None, exclude_if=lambda noise: noise is None)
    recorded_share: Share | None = Field(default=None, exclude_if=lambda share: share is None)
    """Share of training mixtures that are recorded ones, if there are both such and rooms for training. Default: half."""

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        if not self.corpora and (not self.recorded or self.rooms.count or self.mixtures.count):
            raise ValueError("corpora is []; wanted at least 1 entry, for rooms and mixtures to be made")
        if self.recorded_share is not None and not self.recorded:
            raise ValueError("recorded_share is given; wanted [[data.recorded]], too")
        return self

    def fixed_count(self, split: Split) -> int:
        """The number of mixtures of a split that the data set holds, made and recorded."""
        recorded = sum(each.count.get(split, 0) for each in self.recorded) if split is not Split.TRAIN else 0
        return self.mixtures.count.get(split, 0) + recorded

    @property
    def names_recordings(self) -> bool:
        """Whether there are recorded mixtures, rooms or noise, which are a part of the experiment."""
        return bool(self.recorded or self.rooms.recorded or self.noise)

    def has_recorded(self, split: Split) -> bool:
        """Whether a split has recorded mixtures."""
        return any(split in each.count for each in self.recorded)

    @model_validator(mode="after")
    def _check(self) -> Self:
        radius_m = 0.0 if isinstance(self.array, str) else self.array.radius_cm / 100
        if radius_m >= self.rooms.distance_min_m:
            raise ValueError(
                f"rooms.distance_min_m is {self.rooms.distance_min_m:g}, and the array reaches {radius_m:.2f} m from its centre; "
                "wanted speakers outside the array"
            )
        return self


class SpectralConfig(Section):
    """The spectral front end. It gives the network features of all microphones and takes a complex mask for microphone 1."""

    n_fft: Literal[128, 256, 512, 1024] = 512
    """Samples per STFT frame."""
    hop_length: Annotated[int, Field(ge=16, le=512)] = 128
    """Samples from one frame to the next. It divides `n_fft` at least twice."""
    ipd: Literal["none", "angle", "cos_sin", "steered"] = "none"
    """Phase differences between microphone pairs, as features.

    - `none`: no such features.
    - `angle`: the raw phase difference, as in the reference system.
    - `cos_sin`: its cosine and sine.
    - `steered`: cosine and sine of the phase difference after steering to the target's direction.
    """
    beam: bool = True
    """Whether to add the features of a superdirective beam towards the target."""
    level_seconds: Annotated[float, Field(ge=0.1, le=60)] | None = Field(default=None, exclude_if=lambda seconds: seconds is None)
    """Time constant, in seconds, of a running level. Each frame's spectrum is relative to the level of the sound so far.
    A causal network with it can run while a recording goes on. Default: the level of the whole recording."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.n_fft % self.hop_length or self.n_fft // self.hop_length < 2:
            raise ValueError(f"hop_length {self.hop_length} must divide n_fft {self.n_fft} at least twice")
        return self


class SeparatorConfig(SpectralConfig):
    """The time-frequency-masking TCN, with the symbols of the Conv-TasNet paper (X, R, B, H, P). It extracts the speaker at a
    given direction.
    """

    network: Literal["tcn"] = "tcn"
    """The network. It may be left out."""
    B: Annotated[int, Field(ge=4, le=1024)] = 64
    """Channels between blocks (the residual trunk)."""
    H: Annotated[int, Field(ge=4, le=2048)] = 128
    """Channels inside a block."""
    P: Literal[3, 5, 7] = 3
    """Kernel size of the depthwise convolutions."""
    X: Annotated[int, Field(ge=1, le=10)] = 6
    """Blocks per repeat. Their dilations are 1, 2, 4 and so on."""
    R: Annotated[int, Field(ge=1, le=8)] = 2
    """Repeats of the X blocks."""
    activation: Literal["prelu", "relu"] = "relu"
    """Non-linearity of the blocks. The FINN export takes `relu`, and `prelu` whose slopes are at least 0."""
    causal: bool = False
    """Whether the network sees no future frames. To run it while a recording goes on, set `level_seconds`, too."""

    @property
    def spectral(self) -> SpectralConfig:
        """The front end."""
        return SpectralConfig(**{name: getattr(self, name) for name in SpectralConfig.model_fields})


class ConvTasNetConfig(Section):
    """Conv-TasNet (arXiv 1809.07454), with the symbols of its table I. It separates both speakers from microphone 1 and needs
    no direction.
    """

    network: Literal["conv-tasnet"]
    """The network."""
    N: Annotated[int, Field(ge=4, le=1024)] = 64
    """Filters of the learned encoder and decoder."""
    L: Annotated[int, Field(ge=4, le=256, multiple_of=2)] = 16
    """Filter length in samples. The hop is half of it."""
    B: Annotated[int, Field(ge=4, le=1024)] = 32
    """Channels between blocks (the residual trunk)."""
    H: Annotated[int, Field(ge=4, le=2048)] = 64
    """Channels inside a block."""
    Sc: Annotated[int, Field(ge=4, le=1024)] = 32
    """Channels of the skip connections."""
    P: Literal[3, 5, 7] = 3
    """Kernel size of the depthwise convolutions."""
    X: Annotated[int, Field(ge=1, le=10)] = 6
    """Blocks per repeat. Their dilations are 1, 2, 4 and so on."""
    R: Annotated[int, Field(ge=1, le=8)] = 2
    """Repeats of the X blocks."""
    activation: Literal["prelu", "relu"] = Field("prelu", exclude_if=lambda kind: kind == "prelu")
    """Non-linearity of the blocks. The paper uses `prelu`. ONNX Runtime has integer kernels only for convolutions followed by
    `relu`."""
    norm: Literal["batch", "global"] = "batch"
    """Normalisation in the blocks.

    - `batch`: batch norm, folded into the convolutions.
    - `global`: layer norm over channels and frames, as in the paper. It runs in floating point and cannot be causal.
    """
    causal: bool = False
    """Whether the network sees no future samples."""

    @property
    def spectral(self) -> None:
        """There is no spectral front end."""
        return None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.causal and self.norm == "global":
            raise ValueError("norm 'global' looks at the whole recording; wanted 'batch' with causal")
        return self


class ModuleConfig(Section):
    """Your own network: a function that builds a `torch.nn.Module`, called as `build(inputs, outputs, **arguments)`.

    The code that the experiment file names is imported and run.
    """

    module: Annotated[str, Field(pattern=r"^[^:]+:[A-Za-z_]\w*$")]
    """File and function: `networks/mine.py:build` for a file beside the experiment, or `my_package.my_file:build` for an
    installed package. A file is sent to workers on other machines; a package must be installed there."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the function: numbers, text, true or false, and lists of these."""
    weights: Path | None = None
    """A safetensors file with the module's state, from which training starts. Default: fresh weights."""
    spectral: SpectralConfig | None = None
    """Default: the network takes the waveform of microphone 1 and gives a waveform for each speaker."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, value in self.arguments.items():
            for each in value if isinstance(value, list) else [value]:
                if not isinstance(each, bool | int | float | str) or (isinstance(each, float) and not math.isfinite(each)):
                    raise ValueError(
                        f"arguments.{name} holds {shown(each)}; wanted numbers, text, true or false, or a list of these"
                    )
        return self


def _network_kind(value: Any) -> str:
    """The kind of network that a section `separator` describes."""
    if isinstance(value, dict):
        return "module" if "module" in value else str(value.get("network", "tcn"))
    return "module" if isinstance(value, ModuleConfig) else str(getattr(value, "network", "tcn"))


NETWORKS = ("tcn", "conv-tasnet")
"""Networks that ship with the package."""

_NETWORK_SECTIONS: Mapping[str, type[Section]] = {
    "tcn": SeparatorConfig,
    "conv-tasnet": ConvTasNetConfig,
    "module": ModuleConfig,
}
"""Sections `separator`, by kind of network."""

NetworkConfig = Annotated[
    Annotated[SeparatorConfig, Tag("tcn")]
    | Annotated[ConvTasNetConfig, Tag("conv-tasnet")]
    | Annotated[ModuleConfig, Tag("module")],
    Discriminator(_network_kind),
]
"""The section `separator` of an experiment file."""


class TrainingConfig(Section):
    """Full-precision training of the base."""

    epochs: Annotated[int, Field(ge=1, le=10_000)] = 60
    """Most epochs to train."""
    steps_per_epoch: Annotated[int, Field(ge=1, le=100_000)] = 300
    """Training steps in an epoch."""
    batch_size: Annotated[int, Field(ge=1, le=512)] = 8
    """Mixtures per training step."""
    segment_seconds: Annotated[float, Field(ge=0.5, le=30.0)] = 3.0
    """Length of a training mixture in seconds."""
    learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 1e-3
    """Learning rate of the first step."""
    final_learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 2e-5
    """Learning rate of the last step. The rate follows half a cosine from `learning_rate` to this one."""
    block_distillation: Annotated[float, Field(ge=0.0, le=100.0)] = 0.0
    """Weight in the loss of the error at the outputs of residual blocks against those of the base, in dB. A step takes 25 %
    longer with it."""
    gradient_clip: Positive = 5.0
    """Largest norm of the gradient. A larger gradient is scaled down to it."""
    patience: Annotated[int, Field(ge=1)] = 15
    """Training stops after this many epochs without a better validation score."""
    speeds: Annotated[tuple[Annotated[float, Field(ge=0.5, le=2.0)], ...], Field(min_length=1)] = (0.9, 1.0, 1.1)
    """Speed factors at which the training speech is played. Each speed counts as more speech."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Number format of the network's convolutions. Weights, losses and the optimizer stay in `float32`."""
    threads: Annotated[int, Field(ge=1, le=256)] = 2
    """Processor threads of the training step."""
    loaders: Annotated[int, Field(ge=0, le=64)] = 0
    """Processes that mix ahead of the training step. With 0 the training process mixes."""


class QuantizationConfig(Section):
    """How weights and activations are mapped to integers."""

    weight_scale: Literal["per_tensor", "per_channel"] = "per_channel"
    """Whether a layer's weights share one scale or each output channel has its own."""
    weight_scale_method: Literal["mse", "max"] = "mse"
    """How the scale of a weight tensor is chosen.

    - `mse`: the scale with the least squared error. It may clip large weights.
    - `max`: the scale that maps the largest weight to the largest integer.
    """
    rounding: Literal["nearest", "second-order"] = "second-order"
    """How weights of up to 8 bits are rounded before any training.

    - `nearest`: each weight to the nearest integer.
    - `second-order`: so that the output of the layer changes least (GPTQ). It applies to convolutions and linear layers. With
      `mse`, the scale is chosen for the output, too.
    """
    bias_correction: bool = True
    """Whether the bias of a layer makes up for the mean error of its rounded weights."""
    equalise: bool = True
    """Whether the channels before each depthwise layer are scaled to one range, so that one grid fits them all. The network
    computes the same. It applies if `weight_scale` is `per_channel`."""
    centre_trunk: bool = True
    """Whether each channel of a residual trunk is moved to the middle of its range, so that one grid fits all channels more
    finely. The network computes the same. It wants `bias_correction`."""
    tied_adds: bool | None = Field(default=None, exclude_if=lambda value: value is None)
    """Whether the tensors that a sum adds share one scale, so that their integers can be added, as `hwsearch export --format
    finn` wants it. They then have one width, too. In a trunk of 16 bits, all sums share one scale and are never rounded; what
    they add has 8 bits. The search allows only what FINN takes.

    Default: true if one of the targets is a FINN target, else false.
    """
    calibration_mixtures: Annotated[int, Field(ge=1)] = 8
    """Number of validation mixtures on which the activations are measured."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.centre_trunk and not self.bias_correction:
            raise ValueError("centre_trunk is true and bias_correction is false; wanted both, or neither")
        return self


class Fidelity(StrEnum):
    """How a candidate is scored, from cheap to expensive."""

    SUBSET = "post-training-subset"
    """Quantized and not trained again, on the first `search.validation_mixtures` mixtures."""
    POST_TRAINING = "post-training"
    """The same, on the whole validation set."""
    SHARED_SUBSET = "shared-subset"
    """With the weights of the shared network, on the first `search.validation_mixtures` mixtures."""
    SHARED = "shared"
    """The same, on the whole validation set."""
    SHORT_QAT = "short-qat"
    """After `qat.steps` steps of quantization-aware training, on the whole validation set."""
    FULL_QAT = "full-qat"
    """After `qat.full_steps` steps."""
    FINETUNED = "finetuned"
    """After `hwsearch finetune`, which trains chosen candidates."""

    @property
    def trained(self) -> bool:
        """Whether the network is trained before it is scored."""
        return self in (Fidelity.SHORT_QAT, Fidelity.FULL_QAT, Fidelity.FINETUNED)

    @property
    def on_shared(self) -> bool:
        """Whether the candidate has the weights of the shared network."""
        return self in (Fidelity.SHARED_SUBSET, Fidelity.SHARED)

    @property
    def on_subset(self) -> bool:
        """Whether the candidate is scored on a part of the validation set."""
        return self in (Fidelity.SUBSET, Fidelity.SHARED_SUBSET)

    @property
    def without_training(self) -> "Fidelity":
        """The fidelity that scores on the same mixtures, after quantization alone."""
        return Fidelity.SUBSET if self.on_subset else Fidelity.POST_TRAINING


class SensitivityConfig(Section):
    """How the sensitivities of sites and widths are estimated."""

    mixtures: Annotated[int, Field(ge=1, le=1000)] = 4
    """Number of validation mixtures to measure on. The first ones are taken."""
    probe: Literal["rademacher", "gaussian"] = "rademacher"
    """Distribution of the random vectors that estimate the trace of the Hessian."""
    relative_error: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    """Probing of a trace stops once its standard error is at most this share of the trace."""
    max_probes: Annotated[int, Field(ge=1, le=10_000)] = 48
    """Most probes per mixture and site."""
    recoverability_steps: Annotated[int, Field(ge=1, le=10_000)] = 20
    """Training steps before `recoverability` measures what a quantized site still loses."""


class QatConfig(Section):
    """Quantization-aware training of candidates. It starts from the base and distills from it."""

    steps: Annotated[int, Field(ge=1, le=100_000)] = 100
    """Training steps at the fidelity `short-qat`."""
    full_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 2000
    """Training steps at the fidelity `full-qat`."""
    finetune_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 300
    """Training steps of `hwsearch finetune`, unless its option `--steps` says another number."""
    batch_size: Annotated[int, Field(ge=1, le=512)] = 4
    """Mixtures per training step."""
    segment_seconds: Annotated[float, Field(ge=0.5, le=30.0)] = 2.0
    """Length of a training mixture in seconds."""
    examples: Annotated[int, Field(ge=1, le=100_000)] = 1024
    """Number of training mixtures. They are made once, kept in memory (two seconds from six microphones take 0.26 MB),
    and visited in a new order in each pass. A long training overfits few mixtures: take about as many as it visits, which is its
    steps times `batch_size`."""
    learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 1e-4
    """Learning rate of weights, biases and slopes: four times as high for weights of 2 bits, twice for 3 bits. Where an output
    is made of n values, weights have it times the square root of 128 / n. It rises over the first twentieth of the steps, and
    falls over all of them to a twentieth, along half a cosine."""
    scale_learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 1e-2
    """Learning rate of the scales, relative to the size of each scale. It follows the same course."""
    distillation: Fraction = 0.5
    """Share of the loss that compares with the estimate of the full-precision base. The rest compares with the target."""
    block_distillation: Annotated[float, Field(ge=0.0, le=100.0)] = 0.0
    """Weight in the loss of the error at the outputs of residual blocks against those of the base, in dB. A step takes 25 %
    longer with it."""
    gradient_clip: Positive = 5.0
    """Largest norm of the gradient. A larger gradient is scaled down to it."""
    warm_start: bool = True
    """Whether training starts from the nearest candidate already trained. Otherwise it starts from the base."""

    def steps_at(self, fidelity: Fidelity) -> int:
        """Return the number of training steps at a fidelity; 0 if nothing is trained there."""
        steps = {
            Fidelity.SHORT_QAT: self.steps,
            Fidelity.FULL_QAT: self.full_steps,
            Fidelity.FINETUNED: self.finetune_steps,
        }
        return steps.get(fidelity, 0)


class SharedConfig(Section):
    """The training of the shared network: one set of weights for all bit allocations of the search space. It uses the training
    mixtures of `[qat]`, its `distillation` and its `gradient_clip`.
    """

    steps: Annotated[int, Field(ge=1, le=1_000_000)] = 3000
    """Training steps. Each trains one allocation: in turn the narrowest, a random one, the widest, and a random one."""
    batch_size: Annotated[int, Field(ge=1, le=512)] = 4
    """Mixtures per training step."""
    learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 1e-4
    """Learning rate of weights, biases and slopes. As in `[qat]`, it depends on the number of values that an output is made of;
    it does not depend on the width."""
    scale_learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 1e-2
    """Learning rate of the scales, relative to the size of each scale. Both rates follow the course of those of `[qat]`."""
    report_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 250
    """After so many steps the quality of the uniform allocations is measured, on `search.validation_mixtures` validation
    mixtures."""


class NasConfig(Section):
    """The differentiable search, in which every site is a weighted mixture of its widths. It runs once for each cost weight."""

    steps: Annotated[int, Field(ge=1, le=100_000)] = 60
    """Training steps for each cost weight."""
    cost_weights: Annotated[tuple[Positive, ...], Field(min_length=1)] = (0.2, 1.0, 3.0, 6.0, 10.0, 18.0, 30.0)
    """Weights of the cost in dB, relative to the cost of the widest allocation. Each weight gives one or two candidates."""
    cost: str = "size_bytes"
    """The cost to lower: an additive cost such as `size_bytes` or `latency_ms[cortex-m7-cmsis-nn]`, or `sum-sqrt-bits`, the
    cost of the reference system."""
    relaxation: Literal["softmax", "gumbel"] = "softmax"
    """How a choice of width is made continuous: `softmax` (DARTS) or `gumbel` (Gumbel-softmax)."""
    temperature: Annotated[tuple[Positive, Positive], Field()] = (1.0, 0.1)
    """First and last temperature of the softmax. It falls geometrically."""
    batch_size: Annotated[int, Field(ge=1, le=512)] = 2
    """Mixtures per training step."""
    learning_rate: Annotated[float, Field(gt=0.0, le=10.0)] = 0.1
    """Learning rate of the choices."""
    train_weights: bool = False
    """Whether the network's weights are trained along with the choices. The base itself does not change."""


class Promotion(Section):
    """A step up in fidelity. The best candidates so far are scored again, at this fidelity. A file holds none, one or several
    `[[search.promotions]]`.
    """

    fidelity: Literal[Fidelity.POST_TRAINING, Fidelity.SHARED, Fidelity.SHORT_QAT, Fidelity.FULL_QAT]
    """How the candidates are scored again, on the whole validation set.

    - `post-training`: quantized, without training.
    - `shared`: with the weights of the shared network, if `search.fidelity` is `shared`.
    - `short-qat`: after `qat.steps` steps of quantization-aware training.
    - `full-qat`: after `qat.full_steps` steps.
    """
    keep: Annotated[int, Field(ge=1, le=1_000_000)]
    """Number of candidates that go on. The front goes first, then the front of the rest. Uniform and ends-at-8 allocations
    always go on."""


class SearchConfig(Section):
    """The search for bit allocations."""

    trials: Annotated[int, Field(ge=1, le=1_000_000)] = 64
    """Number of candidates to score. They always include the uniform and ends-at-8 allocations. If there are more seeds than
    this, those of the last prior are left out first."""
    hours: Annotated[float, Field(gt=0.0, le=100_000.0)] | None = None
    """After this many hours a run of the search begins no more candidates. Those in flight finish. Default: no limit."""
    stall_candidates: Annotated[int, Field(ge=2, le=1_000_000)] | None = None
    """Number of candidates over which growth is measured. The search stops once the hypervolume has grown by less than
    `stall_growth` over them. All seeds are scored first. Default: no such stop."""
    stall_growth: Annotated[float, Field(gt=0.0, le=1.0)] = 0.001
    """Growth of the hypervolume, as a share of it, below which the search has stalled."""
    fidelity: Literal["post-training", "shared"] = "post-training"
    """How candidates are first scored, on `search.validation_mixtures` mixtures.

    - `post-training`: quantized, without training.
    - `shared`: with the weights of the shared network, which is trained first (section `shared`). Sensitivities are measured on
      it, too, and the training of a candidate starts from it.
    """
    strategy: Annotated[str, STRATEGIES] = "prior-corrected"
    """Which candidates to try. Each strategy begins with the uniform allocations and the ends-at-8 ones, whose first and last
    layer have 8 bits."""
    sampler: Annotated[str, SAMPLERS] = "posterior"
    """What proposes candidates after the seeds, if the strategy uses a sampler."""
    priors: tuple[Annotated[str, SENSITIVITIES], ...] = (
        "output-noise-ratio",
        "measured-noise-ratio",
        "kl",
        "curvature",
        "gradient",
    )
    """Sensitivities whose exact fronts seed the search. `posterior` starts from those in noise ratios, or else from the first."""
    seed_sizes: Annotated[int, Field(ge=8, le=1000)] = 8
    """Number of sizes at which each prior's exact front is scored."""
    nas: bool = False
    """Whether a differentiable search (section `nas`) adds its candidates to the seeds."""
    objectives: Annotated[tuple[str, ...], Field(min_length=2, max_length=4)] = ("si_snr_improvement_db", "size_bytes")
    """What the front trades off: a metric of quality first, then other metrics and at least one cost, such as `size_bytes` or
    `latency_ms[ethos-u55-128]`. `si_snr_improvement_db` is always recorded, because sensitivities, promotions, plots and
    `export.max_drop_db` use it."""
    limits: dict[str, float] = Field(default_factory=dict)
    """Largest value of a cost, such as `size_bytes` or `latency_ms[ethos-u55-128]`. Uniform seeds may exceed it."""
    population: Annotated[int, Field(ge=2, le=1000)] = 20
    """Candidates per generation of `nsga2`. `tpe` and `gp` draw at random until this many candidates are scored, seeds
    included."""
    weight_bits: Annotated[tuple[WeightBits, ...], Field(min_length=1)] = (2, 3, 4, 5, 6, 8)
    """Bit-widths that weights may take."""
    activation_bits: Annotated[tuple[ActivationBits, ...], Field(min_length=1)] = (8,)
    """Bit-widths that activations may take."""
    trunk_bits: Annotated[tuple[ActivationBits, ...], Field(min_length=1)] | None = None
    """Bit-widths of the trunk, which runs through the residual blocks: tensors that no layer made and that are read both by a
    layer and by a sum, product or concatenation, and sums that go into the next sum. If the trunk has more than 8 bits, it is
    rounded to one of `activation_bits` for each layer that reads it.

    Default: 16 if every target supports it, else `activation_bits`.
    """
    allowed: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    """Bit-widths that the sites of a name pattern may take instead. Patterns use shell wildcards. If several match, the last
    one counts."""
    fixed: dict[str, int] = Field(default_factory=dict)
    """Bit-width of the sites of a name pattern, which is then not searched. It overrides `allowed`."""
    groups: tuple[tuple[str, ...], ...] = ()
    """Lists of name patterns. All sites that a list matches share one width."""
    structure: dict[str, Annotated[tuple[Share, ...], Field(min_length=1)]] = Field(default_factory=dict)
    """What may be kept instead of the whole, by a name pattern of what can be left out: 0 of a residual block, `NAME.kept`, and
    shares such as 0.5 of a group of channels, `LAYER.channels`. If several patterns match, the last one counts. Default: nothing
    is left out."""
    validation_mixtures: Annotated[int, Field(ge=1)] = 16
    """Validation mixtures on which each candidate is first scored. Promotions score on all of them."""
    integer_kernels: bool = False
    """Whether to score a subset of the mixtures on the processor's 8-bit kernels if it has them. They compute the convolutions
    and linear layers whose input and weights have at most 8 bits. All else is computed in floating point. This is several times
    faster. Scores may differ between machines, by 0.02 dB on average (`experiments/scoring_speed.py`)."""
    promotions: tuple[Promotion, ...] = ()
    """Steps to higher fidelities, in rising order. Each keeps at most as many candidates as the one before."""
    targets: tuple[str, ...] = ("cortex-m7-cmsis-nn", "ethos-u55-128", "bitfusion", "x86-onnxruntime")
    """Chips to charge each candidate for: built-in names (`hwsearch targets` lists them) or paths of target files."""
    utterance_seconds: Annotated[float, Field(ge=0.1, le=3600.0)] = 4.0
    """Length in seconds of the inference that targets are charged for."""
    streaming: bool = False
    """Whether targets are charged for one frame at a time, with the state of the dilated convolutions in memory."""
    max_attempts: Annotated[int, Field(ge=1, le=10)] = 3
    """How often a candidate is tried before it counts as failed. A try ends when its worker dies or exceeds
    `workers.time_limit_s`."""

    @property
    def widest_trunk(self) -> int | None:
        """Width of the trunk in uniform allocations; None if it is that of the other activations."""
        return None if self.trunk_bits is None or self.trunk_bits == self.activation_bits else max(self.trunk_bits)

    @property
    def uses_shared(self) -> bool:
        """Whether the search wants the shared network."""
        return self.fidelity == "shared"

    @property
    def wide_trunk(self) -> bool:
        """Whether each layer reads the trunk at a width of its own."""
        return self.trunk_bits is not None and max(self.trunk_bits) > NARROW_BITS

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, widths in (
            ("weight_bits", self.weight_bits),
            ("activation_bits", self.activation_bits),
            *(() if self.trunk_bits is None else (("trunk_bits", self.trunk_bits),)),
            *((f"allowed of '{pattern}'", widths) for pattern, widths in self.allowed.items()),
        ):
            if not widths or tuple(sorted(set(widths))) != widths:
                raise ValueError(f"{name} {list(widths)} must rise without repeats")
        for pattern, shares in self.structure.items():
            if tuple(sorted(set(shares))) != shares:
                raise ValueError(f"structure of '{pattern}' {list(shares)} must rise without repeats")
        if len(set(self.objectives)) != len(self.objectives) or self.objectives[0] not in QUALITY_METRICS:
            known = " or ".join(f"'{name}'" for name in QUALITY_METRICS)
            raise ValueError(f"objectives {list(self.objectives)} must differ and begin with {known}")
        if all(column in QUALITY_METRICS for column in self.objectives):
            raise ValueError(f"objectives {list(self.objectives)} must hold a cost, such as 'size_bytes'")
        if len(set(self.priors)) != len(self.priors):
            raise ValueError(f"priors {list(self.priors)} must differ")
        order = [list(Fidelity).index(promotion.fidelity) for promotion in self.promotions]
        if order != sorted(set(order)):
            raise ValueError("promotions must rise in fidelity without repeats")
        other = Fidelity.POST_TRAINING if self.uses_shared else Fidelity.SHARED
        if any(promotion.fidelity is other for promotion in self.promotions):
            raise ValueError(f"promotions to '{other.value}' do not go with fidelity '{self.fidelity}'; wanted that one")
        return self


class WorkersConfig(Section):
    """Where training and scoring run, and what Ray reserves for each worker.

    You may change the keys between two runs of one search. On a GPU, losses and scores differ by rounding from those of the
    processor. Activation ranges and weight scales are always found on the processor, the ranges in one thread, so that an
    allocation means the same grids on every device. Training mixtures, evaluation and export stay on the processor, too. Ray
    places workers by `gpus` and `memory_bytes` but enforces neither.
    """

    device: Device = "cpu"
    """Device for training, scoring, sensitivities and the differentiable search. The command itself trains the base. Workers do
    the rest, so in a cluster only the nodes of workers need GPUs."""
    cpus: Annotated[float, Field(gt=0.0, le=1024.0)] = 1.0
    """Cores for each scorer, or the share of one core. A scorer runs as many threads as it has whole cores, and at least one."""
    gpus: Annotated[float, Field(ge=0.0, le=64.0)] = 0.0
    """GPUs for each worker, or the share of one GPU. Ray hides the GPUs from workers with 0."""
    memory_bytes: Annotated[int, Field(ge=1, le=2**50)] | None = None
    """Bytes of memory for each scorer. Default: Ray places scorers without regard to memory."""
    time_limit_s: Positive | None = None
    """Longest try at a candidate in seconds, training included. Default: no limit."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, amount in (("cpus", self.cpus), ("gpus", self.gpus)):
            if amount > 1 and amount != int(amount):
                raise ValueError(f"{name} {amount:g} must be a whole number, or a share of one")
        return self

    @property
    def threads(self) -> int:
        """Threads of a scorer."""
        return max(1, int(self.cpus))

    @property
    def one_core(self) -> "WorkersConfig":
        """The configuration of workers for sensitivities and the differentiable search: one core, and no time limit."""
        return WorkersConfig(device=self.device, gpus=self.gpus) if self.device == "cuda" else WorkersConfig()


class ExportConfig(Section):
    """Which candidate `hwsearch run` exports at its end."""

    max_drop_db: Annotated[float, Field(ge=0.0, le=60.0)] = 0.5
    """Largest loss against the full-precision base, in dB. The smallest candidate within it is exported."""


class EvaluationConfig(Section):
    """How `hwsearch evaluate` judges separated speech."""

    angle_bins_deg: Annotated[tuple[Degrees, ...], Field(min_length=2)] = (0.0, 15.0, 45.0, 90.0, 180.0)
    """Ends of the bins of the angle between the two speakers, in degrees. An angle on an end belongs to the upper bin."""
    recogniser: Literal["none", "ctc-digits", "pocketsphinx-closed"] = "ctc-digits"
    """Recogniser that counts word errors.

    - `none`: no word errors.
    - `ctc-digits`: ships with the package and knows the ten digits.
    - `pocketsphinx-closed`: knows the words of the test transcripts. It needs `pip install 'hwsearch[asr]'`.
    """

    @model_validator(mode="after")
    def _check(self) -> Self:
        if tuple(sorted(set(self.angle_bins_deg))) != self.angle_bins_deg:
            raise ValueError(f"angle_bins_deg {list(self.angle_bins_deg)} must rise without repeats")
        return self


class Experiment(Section):
    """Keys at the top of the file, above all sections."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=64)]
    """Name of the run folder below `--runs-dir`: lower-case letters, digits, `-` and `_`, beginning with a letter or digit.
    `data` and `corpora` are taken."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of everything that is drawn. The same seed gives the same result."""
    base: str | None = None
    """The full-precision base to quantize: `embedded` for the one that ships with the package, or the path of a base file.
    Default: the base that `hwsearch train` makes."""
    data: DataConfig
    separator: NetworkConfig = SeparatorConfig()
    training: TrainingConfig = TrainingConfig()
    quantization: QuantizationConfig = QuantizationConfig()
    sensitivity: SensitivityConfig = SensitivityConfig()
    qat: QatConfig = QatConfig()
    shared: SharedConfig = SharedConfig()
    nas: NasConfig = NasConfig()
    search: SearchConfig = SearchConfig()
    workers: WorkersConfig = WorkersConfig()
    export: ExportConfig = ExportConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.name in RESERVED_NAMES:
            raise ValueError(f"name '{self.name}' is taken by a folder of every --runs-dir; wanted another")
        if self.search.integer_kernels and self.workers.device != "cpu":
            raise ValueError(
                f"search.integer_kernels is true, and they are the processor's; workers.device is '{self.workers.device}': "
                "wanted false, or 'cpu'"
            )
        if lacks_directions(self.data.array, self.separator.spectral):
            raise ValueError(
                "data.array has one microphone, and the network wants a direction; wanted two microphones or more, or "
                "separator.network = 'conv-tasnet'"
            )
        return self

    def data_digest(self) -> str:
        """Hash what the data set depends on; the data folder has this name.

        The paths of corpora and recorded data are left out. Data made from other recordings of a corpus are made anew where they
        differ.
        """
        data = self.data.model_dump(mode="json", exclude=DATA_PLACES)
        return digest({"seed": self.seed, "data": data})

    def digest(self) -> str:
        """Hash the whole experiment without the paths of its files."""
        content = self.model_dump(mode="json", exclude={"base": True, "data": DATA_PLACES})
        return digest(without_places(content))


def lacks_directions(array: ArraySetting, spectral: SpectralConfig | None) -> bool:
    """Return whether a spectral front end is asked for the directions of a single microphone."""
    alone = array == "mono" if isinstance(array, str) else len(array.positions_cm) == 1
    return spectral is not None and alone


def load_experiment(path: Path) -> Experiment:
    """Read and validate an experiment file.

    Raises:
        UserError: the file cannot be read, is no TOML, `parse_experiment` refuses its content, or recorded data that it names are
            unusable.
    """
    try:
        content = read_toml(path)
    except Unreadable as error:
        raise UserError(f"{path}: {error}; wanted an experiment file in TOML") from None
    return experiment_in(path.resolve().parent, content, source=str(path))


def experiment_in(folder: Path, content: dict[str, Any], source: str) -> Experiment:
    """Validate the parsed content of a file in a folder, from which its paths start; raise `UserError` as `parse_experiment`."""
    found = parse_experiment(_resolve_paths(content, folder), source)
    # By its name, because the readers of data import this module.
    return pkgutil.resolve_name("hwsearch.data.contents:with_contents")(found) if found.data.names_recordings else found


def with_search(experiment: Experiment, changes: Mapping[str, object]) -> Experiment:
    """Change some keys of the section `search`; raise `UserError`, which names the key, if a value is out of range."""
    content = experiment.model_dump(mode="json")
    content["search"] |= changes
    return parse_experiment(content, source="command line")


def parse_experiment(content: Any, source: str) -> Experiment:
    """Validate the parsed content of an experiment file, which errors call `source`. Types are strict.

    Raises:
        UserError: a key is unknown or missing, or a value is out of range or of another type; names key and value.
    """

    def refuse_date(value: object) -> NoReturn:
        raise UserError(f"{source}: holds the date or time {value}; no key takes one")

    try:
        # In JSON a list may stand for a tuple and text for a path, but only a number for a number.
        found = Experiment.model_validate_json(json.dumps(_completed(content), default=refuse_date), strict=True)
        return _with_tied_adds(_with_trunk(found))
    except ValidationError as error:
        raise UserError(f"{source}: {_said(first_mistake(error))}") from None


def _completed(content: Any) -> Any:
    """The content of an experiment file with what may be left out where mixtures or rooms are recorded: none need be made."""
    data = content.get("data") if isinstance(content, dict) else None
    if not isinstance(data, dict):
        return content
    rooms = data.get("rooms")
    if isinstance(rooms, dict) and "recorded" in rooms:
        data = {**data, "rooms": {"count": {}, **rooms}}
    if data.get("recorded"):
        counted = {name: data.get(name, {}) for name in ("rooms", "mixtures")}
        filled: dict[str, Any] = {name: {"count": {}} | part for name, part in counted.items() if isinstance(part, dict)}
        data = {"corpora": [], **data, **filled}
    return {**content, "data": data}


def _said(mistake: Mistake) -> str:
    """The mistake in a file, in words."""
    place = _without_kind(mistake.place)
    key = replace(mistake, place=place).key
    match mistake.kind:
        case "union_tag_invalid":
            return f"{key}.network is no network of this project; wanted one of {list(NETWORKS)}, or 'module' for your own"
        case "json_invalid":
            return "holds text, or lies in a folder, whose name is not UTF-8; wanted UTF-8"
        case "extra_forbidden":
            return _unknown_said(mistake, place, key)
        case "literal_error" if place == ("data", "array"):
            return f"{key} is {mistake.found}; wanted {mistake.wanted}, or {{ positions_cm = [[0, 0], [3, 0], ...] }}"
        case "value_error":
            return f"{key}{': ' if key else ''}{mistake.wanted}{mistake.others}"
    found = f"{key} is missing" if mistake.kind == "missing" else f"{key or 'the file'} is {mistake.found}"
    return f"{found}; wanted {mistake.wanted}{mistake.others}"


def _unknown_said(mistake: Mistake, place: Sequence[int | str], key: str) -> str:
    if key in _MOVED:
        earlier = "a run folder that holds it is an earlier version's: search again under another name"
        return f"unknown key '{key}'; wanted '{_MOVED[key]}' ({earlier})"
    near = _nearest_key(mistake.place)
    meant = "" if near is None else f", near to '{'.'.join(map(str, (*place[:-1], near)))}'"
    section = ".".join(part for part in place[:-1] if isinstance(part, str))
    return f"unknown key '{key}'{meant}; '{f'hwsearch explain {section}'.strip()}' lists the keys{mistake.others}"


def _with_trunk(experiment: Experiment) -> Experiment:
    """Set `search.trunk_bits`, if absent, to what the targets support.

    Workers and readers of a run then need no target files. Targets that cannot be read are refused later, when they are charged.
    """
    search = experiment.search
    if search.trunk_bits is not None:
        return experiment
    try:
        takes = all(executed_activation(load_target(name).precisions, WIDE_BITS) is not None for name in search.targets)
    except TargetError:
        return experiment
    wide = takes and min(search.activation_bits) <= NARROW_BITS
    trunk = (WIDE_BITS, *(bits for bits in search.activation_bits if bits > WIDE_BITS)) if wide else search.activation_bits
    return experiment.model_copy(update={"search": search.model_copy(update={"trunk_bits": trunk})})


def _with_tied_adds(experiment: Experiment) -> Experiment:
    """Set `quantization.tied_adds`, if absent, where a FINN target is among the targets.

    Without one it stays absent, so that experiments keep the digests that they had before there was such a key.
    """
    if experiment.quantization.tied_adds is not None:
        return experiment
    try:
        wanted = any(load_target(name).compute.rule == FINN_RULE for name in experiment.search.targets)
    except TargetError:
        return experiment
    changed = experiment.quantization.model_copy(update={"tied_adds": True})
    return experiment.model_copy(update={"quantization": changed}) if wanted else experiment


def without_places(content: dict[str, Any]) -> dict[str, Any]:
    """Leave the file paths of a user's own network out of the JSON of an experiment."""
    separator = content.get("separator")
    if isinstance(separator, dict) and "module" in separator:
        kept = {name: value for name, value in separator.items() if name not in ("module", "weights")}
        return content | {"separator": kept | {"function": separator["module"].rpartition(":")[2]}}
    return content


def _without_kind(place: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """The place without the kinds of network and of array, which pydantic puts behind `separator` and `data.array`."""
    if place[:2] == ("data", "array") and place[2:3] in {(_OWN_ARRAY,), (_BUILT_IN_ARRAY,)}:
        return place[:2] + place[3:]
    return place[:1] + place[2:] if place[:1] == ("separator",) and place[1:2] and place[1] in _NETWORK_SECTIONS else place


def _nearest_key(place: Sequence[int | str]) -> str | None:
    """The key of the same section that is most like an unknown one. `place` contains the kind of a network."""
    *section, unknown = place
    sections: list[type[BaseModel]] = [Experiment]
    others: tuple[str, ...] = ()
    if section[:1] == ["separator"]:
        sections = [_NETWORK_SECTIONS[str(section[1])]]
        section = section[2:]
        others = () if section else ("network", "module")
    for part in section:
        # An index leads no deeper: the key of the list already led to its sections.
        fields = [model.model_fields[part] for model in sections if isinstance(part, str) and part in model.model_fields]
        sections = [found for field in fields for found in _sections_in(field.annotation)] or sections
    names = {*others, *(name for model in sections for name in model.model_fields)} - {str(unknown)}
    near = get_close_matches(str(unknown), sorted(names), n=1)
    return near[0] if near else None


def _sections_in(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for argument in get_args(annotation) for found in _sections_in(argument)]


def _resolve_paths(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Make the paths of an experiment file absolute, relative to the file's own folder."""
    if content.get("base") != "embedded":
        _resolve(content, "base", folder)
    data = content.get("data")
    for name, key in (("corpora", "root"), ("recorded", "path")):
        entries = data.get(name) if isinstance(data, dict) else None
        for entry in entries if isinstance(entries, list) else []:
            _resolve(entry, key, folder)
    if isinstance(data, dict):
        _resolve(data.get("rooms"), "recorded", folder)
        _resolve(data.get("noise"), "folder", folder)
    separator, search = content.get("separator"), content.get("search")
    _resolve(separator, "weights", folder)
    if isinstance(separator, dict) and isinstance(module := separator.get("module"), str):
        file, _, function = module.rpartition(":")
        separator["module"] = f"{folder / file}:{function}" if file.endswith(".py") else module
    if isinstance(search, dict) and isinstance(search.get("targets"), list):
        search["targets"] = [
            str(folder / target) if isinstance(target, str) and target.lower().endswith(".toml") else target
            for target in search["targets"]
        ]
    return content


def _resolve(section: Any, key: str, folder: Path) -> None:
    """Make the path under a key absolute, if there is one."""
    if isinstance(section, dict) and isinstance(section.get(key), str):
        section[key] = str(folder / section[key])
