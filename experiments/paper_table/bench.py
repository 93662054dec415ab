"""Data, bases and systems of the table, and the files of their scores."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from judging import judge
from ours import Ours, our_experiment, packed_bytes
from reference import Reference, reference_experiment, with_layer_scales
from systems import Kind, System

from hwsearch.errors import UserError
from hwsearch.experiment import load_experiment
from hwsearch.files.reading import digest
from hwsearch.files.writing import atomic_write_json
from hwsearch.metrics import evaluation
from hwsearch.metrics.evaluation import UtteranceScores, read_figures, to_json
from hwsearch.separator.base import base_digest
from hwsearch.separator.prepare import PreparedBase
from hwsearch.training.pool import build_pool
from hwsearch.workflow.caller import SILENT
from hwsearch.workflow.evaluate import candidate_system, float_system
from hwsearch.workflow.training import build, prepare
from hwsearch.workspace import Workspace

SPEECH, DIGITS = "speech", "digits"
"""The two sets of test mixtures."""

Scores = dict[str, list[UtteranceScores]]
"""Scores of single mixtures, by set."""


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        experiment: the experiment file of our systems.
        digits: the experiment file of the digit strings.
        runs: folder of all runs.
        mixtures: number of test mixtures of each set, the first ones.
        seeds: number of trainings of each of our systems.
        steps: most training steps of a system; None for those of `[qat]`.
    """

    experiment: Path
    digits: Path
    runs: Path
    mixtures: int
    seeds: int
    steps: int | None


@dataclass(frozen=True)
class Row:
    """A system, and the seed of its training if it has one."""

    system: System
    seed: int | None = None

    def __str__(self) -> str:
        """The row in words."""
        return self.system.name if self.seed is None else f"{self.system.name}, seed {self.seed}"


class Bench:
    """Everything that is loaded once in each process."""

    def __init__(self, settings: Settings) -> None:
        torch.set_num_threads(1)
        given = Workspace(settings.runs, load_experiment(settings.experiment))
        self.settings = settings
        self.workspace = replace(given, experiment=our_experiment(given))
        self.reference = replace(given, experiment=reference_experiment(given.experiment))
        self.sets = {SPEECH: given, DIGITS: Workspace(settings.runs, load_experiment(settings.digits))}
        self.folder = self.workspace.folder / "table"
        self.steps = settings.steps or given.experiment.qat.finetune_steps

    @property
    def systems_path(self) -> Path:
        """The list of systems."""
        return self.folder / "systems.json"

    @cached_property
    def base(self) -> PreparedBase:
        """The base of our systems."""
        return prepare(self.workspace, self.workspace.experiment.search.weight_bits)

    @cached_property
    def reference_base(self) -> PreparedBase:
        """The base of the reference's systems."""
        return with_layer_scales(prepare(self.reference))

    @cached_property
    def pool(self) -> Path:
        """The training mixtures."""
        return build_pool(self.workspace, 1, lambda _done, _all: None)

    @cached_property
    def ours(self) -> Ours:
        """Our systems."""
        return Ours(self.workspace, self.pool, self.steps)

    def prepare(self, processes: int) -> list[System]:
        """Make all that the rows need; return the systems. One process at a time may."""
        for workspace in self.sets.values():
            build(workspace, processes, SILENT)
        self.folder.mkdir(parents=True, exist_ok=True)
        _ = self.base, self.reference_base
        return [*Reference(self.reference).systems(self.pool), *self.ours.systems()]

    def rows(self, systems: list[System]) -> list[Row]:
        """Return the rows of some systems."""
        seeds = range(self.settings.seeds)
        return [Row(system, seed) for system in systems for seed in (seeds if system.kind is Kind.OURS else [None])]

    def path(self, row: Row, data: str) -> Path:
        """Return the file of the scores of a row on a set."""
        trained = None if row.seed is None else self.ours.trained_path(row.system, row.seed).stem
        content = {
            "system": row.system.to_json(),
            "trained": trained,
            "base": base_digest(self.workspace.base_path),
            "data": self.sets[data].experiment.data_digest(),
            "mixtures": self.settings.mixtures,
        }
        return self.folder / data / f"{digest(content)[:24]}.json"

    def measure(self, row: Row) -> None:
        """Score a row on both sets, after training it if it has a seed. What was scored before is left alone."""
        missing = [data for data in self.sets if not self.path(row, data).is_file()]
        if not missing:
            return
        system = self._system(row)
        for data in missing:
            scores = judge(system, self.sets[data], self.settings.mixtures, digits=data == DIGITS)
            atomic_write_json(self.path(row, data), to_json(scores, []))

    def scores(self, row: Row) -> Scores | None:
        """Read the scores of a row by set; None if it was not scored yet."""
        paths = {data: self.path(row, data) for data in self.sets}
        if not all(path.is_file() for path in paths.values()):
            return None
        return {data: read_figures(path) for data, path in paths.items()}

    def _system(self, row: Row) -> evaluation.System:
        allocation = row.system.allocation
        match row.system.kind, row.seed:
            case Kind.FULL, _:
                return float_system(self.base.separator)
            case Kind.REFERENCE, _:
                return candidate_system(self.reference_base, allocation)
            case Kind.OURS, int(seed):
                state = self.ours.trained(self.base, row.system, seed)
                if (found := packed_bytes(self.base, state)) != row.system.file_bytes:
                    raise UserError(f"{row}: the packed file has {found} bytes; wanted {row.system.file_bytes}")
                return candidate_system(self.base, allocation, state)
            case _:
                raise ValueError(f"{row}: wanted a seed")
