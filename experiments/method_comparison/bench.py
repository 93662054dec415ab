"""Base, data and sizes of the comparison. Each process loads them once."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Self

import torch
from one_scale import with_one_scale

from hwsearch.data.dataset import Mixture, load_mixture, open_dataset
from hwsearch.data.example import Example
from hwsearch.experiment import FLOAT_BITS, QuantizationConfig, Split, load_experiment, with_search
from hwsearch.files.reading import digest, file_digest
from hwsearch.network.sites import WEIGHT
from hwsearch.search.costs import CostBook
from hwsearch.search.mixture_batches import MixtureBatch, mixture_batches
from hwsearch.search.objectives import PACKED_SIZE
from hwsearch.search.space import build_space, uniform_weights
from hwsearch.separator.allocation import BitAllocation, uniform
from hwsearch.separator.base import base_digest
from hwsearch.separator.configuration import Configuration
from hwsearch.separator.prepare import PreparedBase, prepare_base
from hwsearch.separator.shared import SharedState, load_shared
from hwsearch.separator.trained import TrainedState, initial_state
from hwsearch.separator.untrained import untrained_sites
from hwsearch.training.pool import TrainingPool, load_pool, pool_path
from hwsearch.workspace import Workspace

POST_TRAINING, SHARED = "post-training", "shared"
"""Where sensitivities are measured and searches run, and what a training starts from: the rounded base, or the shared network."""

ONE_SCALE, PER_LAYER, PER_CHANNEL = "one scale", "per layer", "per channel"
"""How weights are scaled."""

_QUANTIZATION: Mapping[str, Mapping[str, Any]] = {
    ONE_SCALE: {"rounding": "nearest", "bias_correction": False, "equalise": False, "centre_trunk": False},
    PER_LAYER: {"weight_scale": "per_tensor"},
    PER_CHANNEL: {},
}
_DEPTHWISE = f"depthwise{WEIGHT}"
_SMALL_BITS = 8


@dataclass(frozen=True)
class Settings:
    """What the figures depend on, apart from seeds, sizes and methods.

    Attributes:
        experiment: the experiment's file.
        runs: the folder of all runs.
        steps: training steps of each choice; None for `qat.finetune_steps`.
        mixtures: number of test mixtures, the first ones.
        digits: number of mixtures of spoken digits whose word errors are counted, the first ones.
        evaluations: candidates that each search scores.
        searched_on: validation mixtures that searches score on.
    """

    experiment: Path
    runs: Path
    steps: int | None
    mixtures: int
    digits: int
    evaluations: int
    searched_on: int


@dataclass(frozen=True)
class Choice:
    """An allocation, how its weights are scaled, and what its training starts from."""

    allocation: BitAllocation
    scales: str = PER_CHANNEL
    start: str = POST_TRAINING

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return {"allocation": self.allocation.to_json(), "scales": self.scales, "start": self.start}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Read the result of `to_json`."""
        return cls(BitAllocation.of(content["allocation"]), content["scales"], content["start"])


class Bench:
    """What all parts of the comparison share.

    The shared network lies in the run folder of the experiment, where `hwsearch train-shared` makes it. What belongs to the
    post-training search has a run folder of its own, because a run folder holds the sensitivities of one fidelity.
    """

    def __init__(self, settings: Settings) -> None:
        torch.set_num_threads(1)
        self.settings = settings
        loaded = load_experiment(settings.experiment)
        changes = {"trials": settings.evaluations, "validation_mixtures": settings.searched_on, "integer_kernels": True}
        self.experiment = with_search(loaded, changes | {"fidelity": SHARED})
        plain = with_search(loaded, changes | {"fidelity": POST_TRAINING})
        plain = plain.model_copy(update={"name": f"{loaded.name}-{POST_TRAINING}"})
        self.workspaces = {
            SHARED: Workspace(settings.runs, self.experiment),
            POST_TRAINING: Workspace(settings.runs, plain),
        }
        self.workspace = self.workspaces[SHARED]
        self.folder = self.workspace.folder / "methods"
        self.data_folder = self.workspace.data_folder
        self.steps = loaded.qat.finetune_steps if settings.steps is None else settings.steps
        self.sites = untrained_sites(self.experiment)
        self.space = build_space(self.experiment.search, self.sites)
        self.costs = CostBook(self.experiment, self.space)
        self._bases: dict[str, PreparedBase] = {}

    def base(self, scales: str = PER_CHANNEL) -> PreparedBase:
        """Return the base under a way of scaling weights."""
        if scales not in self._bases:
            workspace = self.workspaces[POST_TRAINING]
            own = scales == PER_CHANNEL
            cache = workspace.calibration_path if own else self.folder / f"calibration-{scales.replace(' ', '-')}.json"
            experiment = self.experiment.model_copy(update={"quantization": self.quantization(scales)})
            widths = self.experiment.search.weight_bits
            self._bases[scales] = prepare_base(experiment, workspace.base_path, self.data_folder, cache, widths)
        return self._bases[scales]

    def quantization(self, scales: str) -> QuantizationConfig:
        """Return the section `[quantization]` of a way of scaling weights."""
        return self.experiment.quantization.model_copy(update=_QUANTIZATION[scales])

    @cached_property
    def shared(self) -> SharedState:
        """The shared network, which must have been trained."""
        return load_shared(self.workspace.shared_path, self.base(), dict(self.space.widths))

    @cached_property
    def pool(self) -> TrainingPool:
        """The training mixtures, which must have been made."""
        return load_pool(pool_path(self.workspace))

    @cached_property
    def test(self) -> list[Mixture]:
        """The test mixtures that methods are judged on."""
        return list(open_dataset(self.data_folder, Split.TEST)[: self.settings.mixtures])

    def validation(self, count: int) -> list[MixtureBatch]:
        """Return the first validation mixtures, analysed."""
        separator, folder = self.base().separator, self.data_folder
        mixtures = open_dataset(folder, Split.VALIDATION)[:count]
        return mixture_batches(separator, [Example(*load_mixture(folder, one), one.target.doa_deg) for one in mixtures])

    def uniform(self, bits: int, *, small_at_8: bool = False) -> BitAllocation:
        """Return the allocation with one width for all weights; with `small_at_8`, depthwise weights have 8 bits."""
        plain = uniform_weights(self.space)[bits]
        if not small_at_8:
            return plain
        return BitAllocation(tuple((site, _SMALL_BITS if site.endswith(_DEPTHWISE) else width) for site, width in plain.widths))

    @property
    def full_precision(self) -> BitAllocation:
        """Everything in floating point."""
        return uniform(self.sites, FLOAT_BITS)

    def charge(self, allocation: BitAllocation) -> tuple[float, float]:
        """Return the bytes of the packed file, with one scale for each channel, and the mean width of the weights."""
        (costs,) = self.costs.charge([Configuration(allocation)])
        return costs[PACKED_SIZE], costs["average_bits"]

    def bytes_of(self, allocation: BitAllocation) -> float:
        """Return the bytes of the packed file, with one scale for each channel."""
        return self.charge(allocation)[0]

    def budget(self, bits: float) -> float:
        """Return the bytes that every method may use at a size: those of `uniform` with `small_at_8`, also between two widths."""
        below, above = int(bits), -int(-bits // 1)
        sizes = [self.bytes_of(self.uniform(width, small_at_8=True)) for width in (below, above)]
        return sizes[0] + (bits - below) * (sizes[1] - sizes[0])

    def initial(self, choice: Choice) -> TrainedState:
        """Return a choice before its own training."""
        if choice.start == SHARED:
            return self.shared.at(choice.allocation)
        base = self.base(choice.scales)
        state = initial_state(base, choice.allocation)
        return with_one_scale(base, state) if choice.scales == ONE_SCALE else state

    def key(self, choice: Choice, seed: int, steps: int) -> str:
        """Hash a choice and all that its training depends on."""
        used = {"steps", "full_steps", "finetune_steps", "warm_start"}
        content: dict[str, Any] = choice.to_json() | {
            "seed": seed if steps else None,
            "steps": steps,
            "base": base_digest(self.workspace.base_path),
            "quantization": self.quantization(choice.scales).model_dump(mode="json"),
            "qat": self.experiment.qat.model_dump(mode="json", exclude=used) if steps else None,
            "pool": pool_path(self.workspace).stem if steps else None,
        }
        if choice.start == SHARED:
            content["shared"] = file_digest(self.workspace.shared_path)
        return digest(content)[:24]


@lru_cache(maxsize=1)
def bench_of(settings: Settings) -> Bench:
    """Return the bench of this process."""
    return Bench(settings)
