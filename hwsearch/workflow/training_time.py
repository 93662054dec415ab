"""How long a training step takes on this machine. Validation mixtures stand in for training mixtures, which may not exist yet."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from hwsearch.data.dataset import load_mixture, open_dataset
from hwsearch.data.example import Example
from hwsearch.experiment import Split
from hwsearch.process.device import open_device
from hwsearch.search.space import SearchSpace
from hwsearch.search.structure import structure_values
from hwsearch.separator.allocation import uniform
from hwsearch.separator.prepare import PreparedBase, prepare_base
from hwsearch.training.pool import TrainingPool, analysed_pool
from hwsearch.training.qat import TrainingOptions, train_quantized
from hwsearch.training.shared import SharedTraining, train_shared
from hwsearch.workspace import Workspace

_STEPS = 4
"""Steps that are run for timing. The first one is slower and does not count."""


@dataclass(frozen=True)
class TrainingTimes:
    """Seconds for a training step of a candidate, and of the shared network."""

    candidate: float
    shared: float


def time_training(workspace: Workspace, space: SearchSpace, calibration: Path) -> TrainingTimes:
    """Measure a training step of a candidate and one of the shared network, by running a few steps of each.

    Args:
        workspace: the experiment and its folders. Nothing in them changes.
        space: the experiment's search space.
        calibration: path of the calibration, outside the workspace. A missing file is made. Others may be written beside it.
    """
    experiment = workspace.experiment
    search = experiment.search
    prepared = prepare_base(experiment, workspace.base_path, workspace.data_folder, calibration)
    pool = _stand_in(workspace, prepared)
    # How weights are rounded before training does not affect the time of a step.
    base = replace(prepared, statistics=None).on(open_device(experiment.workers.device))
    allocation = uniform(base.sites, max(search.weight_bits), max(search.activation_bits), search.widest_trunk)
    shared = SharedTraining(
        dict(space.widths),
        space.groups,
        experiment.shared.model_copy(update={"steps": _STEPS}),
        experiment.qat,
        experiment.seed,
        "timing",
        structure_values(search.structure, base.options) if search.structure else {},
    )

    def train(on_step: Callable[[], None]) -> None:
        options = TrainingOptions(on_step=lambda *_: on_step())
        train_quantized(base, allocation, pool, experiment.qat, _STEPS, experiment.seed, options=options)

    def train_together(on_step: Callable[[], None]) -> None:
        checkpoint = calibration.with_name("shared-training")
        train_shared(base, shared, pool, checkpoint, lambda state: {}, lambda *_: on_step())

    return TrainingTimes(_step_seconds(train), _step_seconds(train_together))


def _step_seconds(train: Callable[[Callable[[], None]], None]) -> float:
    times: list[float] = []
    train(lambda: times.append(time.perf_counter()))
    return (times[-1] - times[0]) / (len(times) - 1)


def _stand_in(workspace: Workspace, base: PreparedBase) -> TrainingPool:
    """Make training examples from validation mixtures, cut or repeated to the length of a training segment."""
    experiment, folder = workspace.experiment, workspace.data_folder
    samples = round(experiment.qat.segment_seconds * experiment.data.sample_rate)
    count = max(experiment.qat.batch_size, experiment.shared.batch_size)
    examples = []
    for mixture in islice(cycle(open_dataset(folder, Split.VALIDATION)), count):
        sound, target = load_mixture(folder, mixture)
        place = np.arange(samples) % sound.shape[-1]
        examples.append(Example(sound[:, place], target[..., place], mixture.doa_deg))
    return analysed_pool(base.separator, base.base_sha256, examples, count)
