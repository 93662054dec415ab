"""The experiment file: one TOML that says everything a run depends on.

Every section is a frozen pydantic model; unknown keys and values out of range are errors that name the key. Paths inside the
file are relative to the file itself.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Self, get_args

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from hw_models.errors import TargetError
from hw_models.layer_cost import executed_activation
from hw_models.reading import Unreadable, read_toml
from hw_models.target import load_target
from hw_models.wording import Mistake, first_mistake, shown
from hwsearch.errors import UserError
from hwsearch.files import digest

FLOAT_BITS = 32
"""The bit-width that stands for 'left in floating point'."""


WIDE_BITS = 16
"""Width of the trunk where every target of an experiment takes it."""

NARROW_BITS = 8
"""Widest activation that layers read in integers. A trunk of as many bits is read as it is."""

RESERVED_NAMES = ("data", "corpora")
"""Folders that all runs share; no experiment may be called so."""

KEYS_FILE = "hwsearch/experiment.py"
"""This file, as a reader of the project finds it."""


class Section(BaseModel):
    """A part of the experiment file: immutable, and an unknown key in it is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Split(StrEnum):
    """The three disjoint parts of a data set."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


class CorpusKind(StrEnum):
    """What a corpus is read from."""

    LIBRISPEECH = "librispeech"
    CSV = "csv"
    FSDD = "fsdd"
    ESPEAK = "espeak"


Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
RoomSide = Annotated[float, Field(ge=1.0, le=100.0)]
Degrees = Annotated[float, Field(ge=0.0, le=180.0)]
Decibels = Annotated[float, Field(ge=-60.0, le=60.0)]
WeightBits = Literal[2, 3, 4, 5, 6, 7, 8, 16, 32]
ActivationBits = Literal[4, 5, 6, 7, 8, 16, 32]


class CorpusConfig(Section):
    """One source of speech.

    `splits` gives the share of its speakers that each split takes; speakers are dealt by a hash of their name and the
    experiment's seed. `root` is a folder (`librispeech`, `fsdd`) or a file (`csv`); `espeak` needs none.
    """

    kind: CorpusKind
    root: Path | None = None
    splits: dict[Split, Fraction]
    digit_strings: Fraction = 0.0
    """Share of utterances that are digit strings (`espeak`; `fsdd` is digit strings throughout)."""
    speakers: Annotated[int, Field(ge=3, le=200)] = 40
    """Number of synthetic voices (`espeak`)."""
    utterances_per_speaker: Annotated[int, Field(ge=1, le=500)] = 12
    """Utterances made for each speaker (`espeak`, `fsdd`)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.splits or sum(self.splits.values()) <= 0 or sum(self.splits.values()) > 1 + 1e-9:
            raise ValueError("splits must name at least one split, with shares that sum to at most 1")
        if (self.root is None) != (self.kind is CorpusKind.ESPEAK):
            raise ValueError(f"root is {'wanted' if self.root is None else 'not used'} for kind '{self.kind.value}'")
        return self


class RoomConfig(Section):
    """Simulated rooms: uniform draws between the two ends given (metres, seconds)."""

    count: dict[Split, Annotated[int, Field(ge=1, le=20_000)]]
    sources_per_room: Annotated[int, Field(ge=2, le=16)] = 4
    size_min_m: tuple[RoomSide, RoomSide, RoomSide] = (4.0, 4.0, 2.5)
    size_max_m: tuple[RoomSide, RoomSide, RoomSide] = (10.0, 8.0, 6.0)
    t60_min_s: Annotated[float, Field(ge=0.05, le=2.0)] = 0.05
    t60_max_s: Annotated[float, Field(ge=0.05, le=2.0)] = 0.7
    distance_min_m: Annotated[float, Field(ge=0.2, le=100.0)] = 0.8
    distance_max_m: Annotated[float, Field(ge=0.2, le=100.0)] = 2.5
    min_angle_deg: Annotated[float, Field(ge=0.0, le=60.0)] = 5.0
    """Smallest angle between two sources of one room, seen from the array."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for low, high, name in (
            (self.t60_min_s, self.t60_max_s, "t60"),
            (self.distance_min_m, self.distance_max_m, "distance"),
            *zip(self.size_min_m, self.size_max_m, ("size",) * 3, strict=True),
        ):
            if low > high:
                raise ValueError(f"{name} minimum {low} is above its maximum {high}")
        return self


class MixtureConfig(Section):
    """How two reverberant speakers become one mixture, and how many mixtures are written to disk."""

    count: dict[Split, Annotated[int, Field(ge=1, le=100_000)]]
    """Mixtures per split. Training needs none: it mixes as it goes."""
    seconds: Annotated[float, Field(ge=0.5, le=60.0)] = 4.0
    """Longest mixture; longer utterances are cut."""
    overlap_mean: Fraction = 0.85
    overlap_min: Fraction = 0.6
    sir_mean_db: Decibels = 0.0
    sir_std_db: Annotated[float, Field(ge=0.0, le=20.0)] = 2.0
    noise_snr_db: Decibels | None = None
    """Level of spatially white sensor noise below the mixture; absent: no noise."""
    target: Literal["reverberant", "early"] = "reverberant"
    early_ms: Annotated[float, Field(gt=0.0, le=200.0)] = 50.0


class DataConfig(Section):
    """Speech, rooms and mixtures."""

    sample_rate: Literal[8000, 16000] = 8000
    array: Literal["linear15", "linear6", "circular6", "linear4"] = "linear6"
    corpora: Annotated[tuple[CorpusConfig, ...], Field(min_length=1)]
    rooms: RoomConfig
    mixtures: MixtureConfig


class SpectralConfig(Section):
    """The spectral front end: features of all microphones in, a complex mask for the first one out."""

    n_fft: Literal[128, 256, 512, 1024] = 512
    hop_length: Annotated[int, Field(ge=16, le=512)] = 128
    ipd: Literal["none", "angle", "cos_sin", "steered"] = "none"
    """`angle`: the raw phase difference, as in the reference; `cos_sin`: its cosine and sine; `steered`: cosine and sine
    of the phase difference after steering to the target's direction."""
    beam: bool = True
    """Whether the features of a superdirective beam towards the target are added."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.n_fft % self.hop_length or self.n_fft // self.hop_length < 2:
            raise ValueError(f"hop_length {self.hop_length} must divide n_fft {self.n_fft} at least twice")
        return self


class SeparatorConfig(SpectralConfig):
    """The TF-masking TCN, in the symbols of the Conv-TasNet papers (X, R, B, H, P)."""

    network: Literal["tcn"] = "tcn"
    B: Annotated[int, Field(ge=4, le=1024)] = 64
    H: Annotated[int, Field(ge=4, le=2048)] = 128
    P: Literal[3, 5, 7] = 3
    X: Annotated[int, Field(ge=1, le=10)] = 6
    R: Annotated[int, Field(ge=1, le=8)] = 2
    activation: Literal["prelu", "relu"] = "relu"
    causal: bool = False

    @property
    def spectral(self) -> SpectralConfig:
        """Its front end."""
        return SpectralConfig(**{name: getattr(self, name) for name in SpectralConfig.model_fields})


class ConvTasNetConfig(Section):
    """Conv-TasNet on microphone 0 (arXiv 1809.07454), in the paper's symbols (table I); it needs no direction."""

    network: Literal["conv-tasnet"]
    N: Annotated[int, Field(ge=4, le=1024)] = 64
    """Filters of the learned encoder and decoder."""
    L: Annotated[int, Field(ge=4, le=256, multiple_of=2)] = 16
    """Length of a filter in samples; the hop is half of it."""
    B: Annotated[int, Field(ge=4, le=1024)] = 32
    H: Annotated[int, Field(ge=4, le=2048)] = 64
    Sc: Annotated[int, Field(ge=4, le=1024)] = 32
    """Channels of the skip connections."""
    P: Literal[3, 5, 7] = 3
    X: Annotated[int, Field(ge=1, le=10)] = 6
    R: Annotated[int, Field(ge=1, le=8)] = 2
    activation: Literal["prelu", "relu"] = Field("prelu", exclude_if=lambda kind: kind == "prelu")
    """`prelu` is the paper's. ONNX Runtime has integer kernels for convolutions before `relu` only."""
    norm: Literal["batch", "global"] = "batch"
    """`batch` folds into the convolutions; `global`, over channels and frames, runs in floating point."""
    causal: bool = False

    @property
    def spectral(self) -> None:
        """It has no spectral front end."""
        return None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.causal and self.norm == "global":
            raise ValueError("norm 'global' looks at the whole recording; wanted 'batch' with causal")
        return self


class ModuleConfig(Section):
    """A network of one's own: a function that builds a `torch.nn.Module`, called as `build(inputs, outputs, **arguments)`.

    The experiment file names the code, and so it is imported and run.
    """

    module: Annotated[str, Field(pattern=r"^[^:]+:[A-Za-z_]\w*$")]
    """`networks/mine.py:build`, a file beside the experiment and the function in it, or `my_package.my_file:build` of a package
    that is installed. Workers on other machines look for it in the same place."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the function: numbers, text, true or false, and lists of these."""
    weights: Path | None = None
    """A safetensors file of the module's state, with which training begins; absent: fresh weights."""
    spectral: SpectralConfig | None = None
    """The spectral front end: features in, mask out. Absent: the waveform of microphone 0 in, that of each speaker out."""

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
    """Which of the networks a section `separator` describes."""
    if isinstance(value, dict):
        return "module" if "module" in value else str(value.get("network", "tcn"))
    return "module" if isinstance(value, ModuleConfig) else str(getattr(value, "network", "tcn"))


NETWORKS = ("tcn", "conv-tasnet")
"""Networks that ship."""

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
    steps_per_epoch: Annotated[int, Field(ge=1, le=100_000)] = 300
    batch_size: Annotated[int, Field(ge=1, le=512)] = 8
    segment_seconds: Annotated[float, Field(ge=0.5, le=30.0)] = 3.0
    learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 1e-3
    final_learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 2e-5
    """The rate follows half a cosine from `learning_rate` to this over all epochs."""
    gradient_clip: Positive = 5.0
    patience: Annotated[int, Field(ge=1)] = 15
    """Epochs without a better validation score after which training stops."""
    speeds: Annotated[tuple[Annotated[float, Field(ge=0.5, le=2.0)], ...], Field(min_length=1)] = (0.9, 1.0, 1.1)
    """Speeds at which the training speech is played."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the network's convolutions; weights, losses and the optimizer stay in float32."""
    threads: Annotated[int, Field(ge=1, le=256)] = 2
    loaders: Annotated[int, Field(ge=0, le=64)] = 0
    """Processes that mix ahead of the training step."""
    device: Literal["cpu", "cuda"] = "cpu"


class QuantizationConfig(Section):
    """What a bit-width means."""

    weight_scale: Literal["per_tensor", "per_channel"] = "per_channel"
    weight_scale_method: Literal["mse", "max"] = "mse"
    calibration_mixtures: Annotated[int, Field(ge=1)] = 8
    """Validation mixtures from which activation ranges are read."""


class Fidelity(StrEnum):
    """How a candidate is scored, from cheap and rough to dear and final."""

    SUBSET = "post-training-subset"
    """Quantized and not trained again, on the first `search.validation_mixtures` mixtures."""
    POST_TRAINING = "post-training"
    """The same, on the whole validation set."""
    SHORT_QAT = "short-qat"
    """After `qat.steps` steps of quantization-aware training, on the whole validation set."""
    FULL_QAT = "full-qat"
    """After `qat.full_steps` steps."""

    @property
    def trained(self) -> bool:
        """Whether the network is trained before it is scored."""
        return self in (Fidelity.SHORT_QAT, Fidelity.FULL_QAT)


class Prior(StrEnum):
    """Sensitivities that seed a search: tables of `hwsearch sensitivity`."""

    CURVATURE = "curvature"
    AVERAGE_CURVATURE = "average-curvature"
    FISHER = "fisher"
    KL = "kl"
    MEASURED = "measured-noise-ratio"
    GRADIENT = "gradient"
    OUTPUT_NOISE = "output-noise-ratio"
    RECOVERABILITY = "recoverability"


class SamplerKind(StrEnum):
    """Who proposes behind the seeds."""

    POSTERIOR = "posterior"
    """The prior sensitivities, corrected by every scored candidate, and the allocation problem solved again."""
    RANDOM = "random"
    NSGA2 = "nsga2"
    TPE = "tpe"
    GP = "gp"


class Strategy(StrEnum):
    """Which candidates a search tries, for comparisons; the default is all that is known."""

    PRIOR_CORRECTED = "prior-corrected"
    """Uniform allocations, every prior's exact front, and then the sampler."""
    UNIFORM = "uniform"
    """Uniform allocations and 'ends at 8 bits' only."""
    CURVATURE = "curvature"
    """Uniform allocations, then the exact front of the curvature sensitivities at ever more sizes."""
    KL = "kl"
    """The same with the KL sensitivities."""
    NAS = "nas"
    """Uniform allocations, then those a differentiable search finds over a sweep of cost weights."""


class SensitivityConfig(Section):
    """How the sensitivities of sites and widths are estimated."""

    mixtures: Annotated[int, Field(ge=1, le=1000)] = 4
    """Validation mixtures, the first ones."""
    probe: Literal["rademacher", "gaussian"] = "rademacher"
    relative_error: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    """Standard error of a trace, as a share of it, at which probing stops."""
    max_probes: Annotated[int, Field(ge=1, le=10_000)] = 48
    """Probes per mixture and site at which it stops in any case."""
    recoverability_steps: Annotated[int, Field(ge=1, le=10_000)] = 20
    """Training steps after which a quantized site's remaining loss is measured."""


class QatConfig(Section):
    """Quantization-aware training of candidates, from the base, with distillation from it."""

    steps: Annotated[int, Field(ge=1, le=100_000)] = 100
    """Training steps at the fidelity `short-qat`."""
    full_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 2000
    """Training steps at the fidelity `full-qat`."""
    batch_size: Annotated[int, Field(ge=1, le=512)] = 4
    segment_seconds: Annotated[float, Field(ge=0.5, le=30.0)] = 2.0
    examples: Annotated[int, Field(ge=1, le=100_000)] = 256
    """Training mixtures, made once and visited in a new order in every pass; with their features a megabyte or two each."""
    learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 1e-4
    """Rate of the weights, biases and slopes. It follows half a cosine down to a twentieth."""
    scale_learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 3e-2
    """Rate of the scales, relative to each scale's size. It falls likewise."""
    distillation: Fraction = 0.5
    """Share of the loss that compares with the full-precision base's estimate instead of the target."""
    gradient_clip: Positive = 5.0
    warm_start: bool = True
    """Whether training starts from the nearest candidate that was trained already instead of from the base."""


class NasConfig(Section):
    """The differentiable search: every site a weighted choice among its widths."""

    steps: Annotated[int, Field(ge=1, le=100_000)] = 60
    """Training steps per weight of the cost."""
    cost_weights: Annotated[tuple[Positive, ...], Field(min_length=1)] = (0.2, 1.0, 3.0, 6.0, 10.0, 18.0, 30.0)
    """Weights lambda of the cost in dB, where a cost of 1 is that of the widest allocation; each gives a candidate or two."""
    cost: str = "size_bytes"
    """An additive cost, such as `size_bytes` or `latency_ms[cortex-m7-cmsis-nn]`, or `sum-sqrt-bits`, the reference system's."""
    relaxation: Literal["softmax", "gumbel"] = "softmax"
    temperature: Annotated[tuple[Positive, Positive], Field()] = (1.0, 0.1)
    """First and last temperature of the choice."""
    batch_size: Annotated[int, Field(ge=1, le=512)] = 2
    learning_rate: Annotated[float, Field(gt=0.0, le=10.0)] = 0.1
    train_weights: bool = False
    """Whether the shared weights are trained with the choices."""


class Promotion(Section):
    """A rung of successive halving: which candidates are scored again, at a higher fidelity."""

    fidelity: Literal[Fidelity.POST_TRAINING, Fidelity.SHORT_QAT, Fidelity.FULL_QAT]
    keep: Annotated[int, Field(ge=1, le=1_000_000)]
    """Candidates of the rung below that go on: its fronts from the best on, and the uniform and ends-at-8 ones in any case."""


class SearchConfig(Section):
    """The search over bit allocations."""

    trials: Annotated[int, Field(ge=1, le=1_000_000)] = 64
    """Candidates scored; at least the uniform and the ends-at-8 ones. Seeds beyond it are left out, the last prior's first."""
    hours: Annotated[float, Field(gt=0.0, le=100_000.0)] | None = None
    """After so long a run of the search begins no more candidates; those in flight finish."""
    stall_candidates: Annotated[int, Field(ge=2, le=1_000_000)] | None = None
    """No more are asked for when the hypervolume has grown by less than `stall_growth` over so many, all seeds being scored."""
    stall_growth: Annotated[float, Field(gt=0.0, le=1.0)] = 0.001
    """Share of the hypervolume before them."""
    strategy: Strategy = Strategy.PRIOR_CORRECTED
    sampler: SamplerKind = SamplerKind.POSTERIOR
    """Who proposes in the strategy `prior-corrected`."""
    priors: tuple[Prior, ...] = (Prior.OUTPUT_NOISE, Prior.MEASURED, Prior.KL, Prior.CURVATURE, Prior.GRADIENT)
    """Whose exact fronts seed the search. The posterior starts from those in noise ratios, or else from the first."""
    seed_sizes: Annotated[int, Field(ge=8, le=1000)] = 8
    """Sizes at which each prior's exact front is scored."""
    nas: bool = False
    """Whether a differentiable search (section `nas`) adds its candidates to the seeds."""
    objectives: Annotated[tuple[str, ...], Field(min_length=2, max_length=4)] = ("si_snr_improvement_db", "size_bytes")
    """Quality first, then one to three costs."""
    limits: dict[str, float] = Field(default_factory=dict)
    """Largest value of a cost, such as `size_bytes` or `latency_ms[ethos-u55-128]`; uniform seeds may lie above it."""
    population: Annotated[int, Field(ge=2, le=1000)] = 20
    """Size of a generation of the genetic samplers. Others draw as many at random first, where nothing was seeded."""
    weight_bits: Annotated[tuple[WeightBits, ...], Field(min_length=1)] = (2, 3, 4, 5, 6, 8)
    activation_bits: Annotated[tuple[ActivationBits, ...], Field(min_length=1)] = (8,)
    trunk_bits: Annotated[tuple[ActivationBits, ...], Field(min_length=1)] | None = None
    """Widths of the residual trunk: of every tensor that a layer reads, that a sum, product or concatenation carries on, and that
    no layer made. Above 8 bits each layer reads it at a width of its own. Absent: 16 where every target can hold that, else
    `activation_bits`."""
    allowed: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    """Site pattern (shell wildcards) to the widths that its sites may take instead."""
    fixed: dict[str, int] = Field(default_factory=dict)
    """Site pattern to a bit-width that is not searched."""
    groups: tuple[tuple[str, ...], ...] = ()
    """Lists of site patterns; all sites that a list matches share one width."""
    validation_mixtures: Annotated[int, Field(ge=1)] = 16
    integer_kernels: bool = False
    """Whether, with a trunk of 8 bits, a subset of the mixtures is scored in the processor's 8-bit kernels where it has them:
    several times faster, and ties of rounding may fall otherwise than on the next machine (0.02 dB in the mean, by
    `experiments/scoring_speed.py`)."""
    promotions: tuple[Promotion, ...] = ()
    """Rungs above the first, in rising fidelity; each keeps fewer candidates or as many."""
    targets: tuple[str, ...] = ("cortex-m7-cmsis-nn", "ethos-u55-128", "bitfusion", "x86-onnxruntime")
    """Built-in target names, or paths of target files."""
    utterance_seconds: Annotated[float, Field(ge=0.1, le=3600.0)] = 4.0
    """Length of the inference that the targets are charged for."""
    streaming: bool = False
    """Whether the targets are charged frame by frame instead, with the state of the dilated convolutions in memory."""
    max_attempts: Annotated[int, Field(ge=1, le=10)] = 3
    """Times a candidate whose scorer dies is tried before it counts as failed."""

    @property
    def widest_trunk(self) -> int | None:
        """The trunk's width beside uniform activations; none where it is theirs."""
        return None if self.trunk_bits is None or self.trunk_bits == self.activation_bits else max(self.trunk_bits)

    @property
    def wide_trunk(self) -> bool:
        """Whether layers read the trunk at a width of their own."""
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
        if len(set(self.objectives)) != len(self.objectives) or self.objectives[0] != "si_snr_improvement_db":
            raise ValueError(f"objectives {list(self.objectives)} must differ and begin with 'si_snr_improvement_db'")
        if len(set(self.priors)) != len(self.priors):
            raise ValueError(f"priors {[prior.value for prior in self.priors]} must differ")
        order = [list(Fidelity).index(promotion.fidelity) for promotion in self.promotions]
        if order != sorted(set(order)):
            raise ValueError("promotions must rise in fidelity without repeats")
        return self


class WorkersConfig(Section):
    """What each scorer on Ray gets; what candidates are does not depend on it.

    Ray counts `gpus` and `memory_bytes` when it places scorers, and enforces neither. Scoring and training run on the processor.
    """

    cpus: Annotated[float, Field(gt=0.0, le=1024.0)] = 1.0
    """Cores, or below 1 the share of one; a scorer computes with as many threads as whole cores, and at least one."""
    gpus: Annotated[float, Field(ge=0.0, le=64.0)] = 0.0
    """GPUs, or below 1 the share of one."""
    memory_bytes: Annotated[int, Field(ge=1, le=2**50)] | None = None
    time_limit_s: Positive | None = None
    """Longest attempt at a candidate, training included. After `search.max_attempts` such attempts the candidate has failed."""

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


class ExportConfig(Section):
    """Which candidate the main job exports by itself."""

    max_drop_db: Annotated[float, Field(ge=0.0, le=60.0)] = 0.5
    """The smallest candidate that loses at most this against the full-precision base."""


class EvaluationConfig(Section):
    """How separated speech is judged."""

    angle_bins_deg: Annotated[tuple[Degrees, ...], Field(min_length=2)] = (0.0, 15.0, 45.0, 90.0, 180.0)
    """Ends of the bins; an angle on the end between two belongs to the upper one."""
    recogniser: Literal["none", "ctc-digits", "pocketsphinx-closed"] = "ctc-digits"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if tuple(sorted(set(self.angle_bins_deg))) != self.angle_bins_deg:
            raise ValueError(f"angle_bins_deg {list(self.angle_bins_deg)} must rise without repeats")
        return self


class Experiment(Section):
    """All that a run depends on."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=64)]
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    base: str | None = None
    """`embedded` for the base that ships with the package, a path of a base file, or absent: the one `hwsearch train` makes."""
    data: DataConfig
    separator: NetworkConfig = SeparatorConfig()
    training: TrainingConfig = TrainingConfig()
    quantization: QuantizationConfig = QuantizationConfig()
    sensitivity: SensitivityConfig = SensitivityConfig()
    qat: QatConfig = QatConfig()
    nas: NasConfig = NasConfig()
    search: SearchConfig = SearchConfig()
    workers: WorkersConfig = WorkersConfig()
    export: ExportConfig = ExportConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.name in RESERVED_NAMES:
            raise ValueError(f"name '{self.name}' is taken by a folder of every --runs-dir; wanted another")
        return self

    def data_digest(self) -> str:
        """Hash of what the data set depends on; the data folder is named by it.

        Where a corpus lies is left out: the same recordings give the same mixtures on every machine. That a folder's data was
        made from the very same recordings is checked when it is opened for building.
        """
        data = self.data.model_dump(mode="json", exclude={"corpora": {"__all__": {"root"}}})
        return digest({"seed": self.seed, "data": data})

    def digest(self) -> str:
        """Hash of the whole experiment, but for where its files lie."""
        content = self.model_dump(mode="json", exclude={"base": True, "data": {"corpora": {"__all__": {"root"}}}})
        return digest(without_places(content))


def load_experiment(path: Path) -> Experiment:
    """Read and validate an experiment file.

    Raises:
        UserError: the file is missing, is no TOML, or holds an unknown key or a value out of range; names the key.
    """
    try:
        content = read_toml(path)
    except Unreadable as error:
        raise UserError(f"{path}: {error}; wanted an experiment file in TOML") from None
    return parse_experiment(_resolve_paths(content, path.resolve().parent), source=str(path))


def with_search(experiment: Experiment, changes: Mapping[str, object]) -> Experiment:
    """The experiment with other values for some keys of its section `search`.

    Raises:
        UserError: a value out of range; names the key.
    """
    content = experiment.model_dump(mode="json")
    content["search"] |= changes
    return parse_experiment(content, source="command line")


def parse_experiment(content: Any, source: str) -> Experiment:
    """Validate the parsed content of an experiment file; `source` names it in errors.

    Types are strict: of a number, neither text nor true or false is taken.

    Raises:
        UserError: one line with the key, the value found and what is wanted.
    """

    def refuse_date(value: object) -> NoReturn:
        raise UserError(f"{source}: holds the date or time {value}; no key takes one")

    try:
        # Through JSON: there a list may stand for a tuple and text for a path, while a number must be one.
        return _with_trunk(Experiment.model_validate_json(json.dumps(content, default=refuse_date), strict=True))
    except ValidationError as error:
        mistake = _without_kind(first_mistake(error))
        key = mistake.key
        if mistake.kind == "union_tag_invalid":
            raise UserError(
                f"{source}: {key}.network is no network of this project; wanted one of {list(NETWORKS)}, or 'module' for your own"
            ) from None
        if mistake.kind == "json_invalid":
            raise UserError(f"{source}: holds text, or lies in a folder, whose name is not UTF-8; wanted UTF-8") from None
        if mistake.kind == "extra_forbidden":
            near = _nearest_key(mistake.place)
            meant = "" if near is None else f", near to '{near}'"
            raise UserError(f"{source}: unknown key '{key}'{meant}; {KEYS_FILE} has every key{mistake.others}") from None
        if mistake.kind == "value_error":
            raise UserError(f"{source}: {key}{': ' if key else ''}{mistake.wanted}{mistake.others}") from None
        found = f"{key or 'the file'} is {mistake.found}" if mistake.kind != "missing" else f"{key} is missing"
        raise UserError(f"{source}: {found}; wanted {mistake.wanted}{mistake.others}") from None


def _with_trunk(experiment: Experiment) -> Experiment:
    """The experiment with `search.trunk_bits` as its targets have it, where the file leaves that open.

    From here on the widths stand in the experiment: workers and those who read a run need no target file to know them. Targets
    that cannot be read are refused by whoever charges them.
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


def without_places(content: dict[str, Any]) -> dict[str, Any]:
    """An experiment's JSON without where the files of a user's own network lie."""
    separator = content.get("separator")
    if isinstance(separator, dict) and "module" in separator:
        kept = {name: value for name, value in separator.items() if name not in ("module", "weights")}
        return content | {"separator": kept | {"function": separator["module"].rpartition(":")[2]}}
    return content


def _without_kind(mistake: Mistake) -> Mistake:
    """The mistake without the kind of network that pydantic puts into its place."""
    match mistake.place:
        case ("separator", kind, *rest) if kind in (*NETWORKS, "module") and kind != "module":
            return replace(mistake, place=("separator", *rest))
        case ("separator", "module", *rest) if rest or mistake.kind == "value_error":
            return replace(mistake, place=("separator", *rest))
    return mistake


def _nearest_key(place: Sequence[int | str]) -> str | None:
    """The key of the same section that an unknown one is most like; None if none is."""
    *section, unknown = place
    sections: list[type[BaseModel]] = [Experiment]
    for part in section:
        # An index of a list leads no deeper: what a list holds was reached by its own key.
        fields = [model.model_fields[part] for model in sections if isinstance(part, str) and part in model.model_fields]
        sections = [found for field in fields for found in _sections_in(field.annotation)] or sections
    names = [name for model in sections for name in model.model_fields]
    near = get_close_matches(str(unknown), names, n=1)
    return ".".join(map(str, (*section, near[0]))) if near else None


def _sections_in(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for argument in get_args(annotation) for found in _sections_in(argument)]


def _resolve_paths(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Make the paths of an experiment file absolute, relative to the file's own folder."""
    base = content.get("base")
    if isinstance(base, str) and base != "embedded":
        content["base"] = str(folder / base)
    data = content.get("data")
    corpora = data.get("corpora") if isinstance(data, dict) else None
    for corpus in corpora if isinstance(corpora, list) else []:
        if isinstance(corpus, dict) and isinstance(corpus.get("root"), str):
            corpus["root"] = str(folder / corpus["root"])
    separator = content.get("separator")
    if isinstance(separator, dict):
        _resolve_network(separator, folder)
    search = content.get("search")
    if isinstance(search, dict) and isinstance(search.get("targets"), list):
        search["targets"] = [
            str(folder / target) if isinstance(target, str) and target.lower().endswith(".toml") else target
            for target in search["targets"]
        ]
    return content


def _resolve_network(separator: dict[str, Any], folder: Path) -> None:
    module, weights = separator.get("module"), separator.get("weights")
    if isinstance(weights, str):
        separator["weights"] = str(folder / weights)
    if isinstance(module, str) and (file := module.rpartition(":")[0]).endswith(".py"):
        separator["module"] = f"{folder / file}:{module.rpartition(':')[2]}"
