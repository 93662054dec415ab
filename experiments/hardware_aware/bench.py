"""Base, data, shared networks and search spaces of the experiment. Each process loads them once."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import torch

from hwsearch.data.dataset import Mixture, open_dataset
from hwsearch.experiment import Experiment, Fidelity, Split, load_experiment, with_search
from hwsearch.files.reading import digest, file_digest
from hwsearch.search.costs import CostBook
from hwsearch.search.experiment_space import experiment_space
from hwsearch.search.kept_networks import KeptNetworks
from hwsearch.search.objectives import PACKED_SIZE, QUALITY
from hwsearch.search.space import SearchSpace
from hwsearch.separator.configuration import Configuration
from hwsearch.separator.prepare import prepare_base
from hwsearch.separator.shared import load_shared
from hwsearch.training.pool import TrainingPool, load_pool, pool_path
from hwsearch.workspace import Workspace

BITS, STRUCTURE, BOTH = "bits", "structure", "both"
"""What is searched: widths of the whole network, structure at 8 bits, or both together."""

MODES = (BITS, STRUCTURE, BOTH)

SIZE_ALONE = "size"
"""In a chip's place: quality against the bytes of the packed file, on no chip."""

WHOLE_BITS = 8
"""Width of everything where structure alone is searched."""


@dataclass(frozen=True)
class Settings:
    """What the figures depend on, apart from seeds.

    Attributes:
        experiment: the experiment's file.
        runs: the folder of all runs.
        steps: training steps of each finished candidate.
        mixtures: number of test mixtures, the first ones.
        evaluations: candidates that each search scores.
    """

    experiment: Path
    runs: Path
    steps: int
    mixtures: int
    evaluations: int


class Bench:
    """What all parts of the experiment share."""

    def __init__(self, settings: Settings) -> None:
        torch.set_num_threads(1)
        self.settings = settings
        self.loaded = with_search(load_experiment(settings.experiment), {"trials": settings.evaluations})
        self.chips: tuple[str, ...] = self.loaded.search.targets
        self._networks: dict[bool, KeptNetworks] = {}

    def workspace(self, mode: str) -> Workspace:
        """Return the workspace of a mode's shared network. Widths alone have one that was trained for widths alone."""
        if mode != BITS:
            return Workspace(self.settings.runs, self.loaded)
        plain = with_search(self.loaded, {"structure": {}})
        return Workspace(self.settings.runs, plain.model_copy(update={"name": f"{self.loaded.name}-plain"}))

    def experiment(self, mode: str, chip: str, seed: int) -> Experiment:
        """Return the experiment of a search."""
        cost = [PACKED_SIZE] if chip == SIZE_ALONE else [f"latency_ms[{chip}]", PACKED_SIZE]
        changes: dict[str, object] = {"targets": [] if chip == SIZE_ALONE else [chip], "objectives": [QUALITY, *cost]}
        if mode == STRUCTURE:
            changes["weight_bits"] = [WHOLE_BITS]
        return with_search(self.workspace(mode).experiment, changes).model_copy(update={"seed": seed})

    def networks(self, mode: str) -> KeptNetworks:
        """Return the base and the shared network of a mode, and what structures keep of them."""
        elastic = mode != BITS
        if elastic not in self._networks:
            workspace = self.workspace(mode)
            experiment, cache = workspace.experiment, workspace.calibration_path
            base = prepare_base(experiment, workspace.base_path, workspace.data_folder, cache, experiment.search.weight_bits)
            self._networks[elastic] = KeptNetworks(base, load_shared(workspace.shared_path, base, {}), integers=False)
        return self._networks[elastic]

    def space(self, mode: str) -> SearchSpace:
        """Return the search space of a mode."""
        return experiment_space(self.experiment(mode, SIZE_ALONE, 0))

    @cached_property
    def costs(self) -> Mapping[str, CostBook]:
        """All costs, on all chips, by mode."""
        found = {}
        for mode in MODES:
            experiment = with_search(self.experiment(mode, SIZE_ALONE, 0), {"targets": list(self.chips)})
            found[mode] = CostBook(experiment, experiment_space(experiment))
        return found

    @cached_property
    def pool(self) -> TrainingPool:
        """The training mixtures, which must have been made."""
        return load_pool(pool_path(self.workspace(BOTH)))

    @cached_property
    def test(self) -> list[Mixture]:
        """The test mixtures."""
        return list(open_dataset(self.workspace(BOTH).data_folder, Split.TEST)[: self.settings.mixtures])

    @property
    def fidelity(self) -> Fidelity:
        """How searches score."""
        return Fidelity.SHARED_SUBSET

    def folder(self, *names: str) -> Path:
        """Return a folder or file of the experiment's own, in the run folder."""
        return Path(self.workspace(BOTH).folder, "hardware-aware", *names)

    def key(self, mode: str, configuration: Configuration | None, seed: int) -> str:
        """Hash a finished candidate and all that its figures depend on; None: full precision."""
        content = {
            "shared": file_digest(self.workspace(mode).shared_path),
            "allocation": None if configuration is None else configuration.allocation.to_json(),
            "structure": {} if configuration is None else configuration.kept,
            "steps": self.settings.steps,
            "qat": self.loaded.qat.model_dump(mode="json"),
            "seed": seed,
        }
        return digest(content)[:24]


@lru_cache(maxsize=1)
def bench_of(settings: Settings) -> Bench:
    """Return the bench of this process."""
    return Bench(settings)
