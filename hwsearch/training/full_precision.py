"""From an experiment to a trained base on disk."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from hwsearch.data.arrays import ARRAYS
from hwsearch.data.corpus import load_corpora, read_corpora
from hwsearch.data.dynamic import DynamicMixtures, speech_by_speaker
from hwsearch.data.feasible import check_recordings
from hwsearch.data.rooms import build_bank, check_rooms, rooms_folder
from hwsearch.data.utterance import Utterance, load_speech
from hwsearch.errors import UserError
from hwsearch.experiment import Experiment, ModuleConfig, Split, without_places
from hwsearch.files.reading import digest, file_digest
from hwsearch.files.tensors import load_tensors, refused
from hwsearch.files.writing import check_writable
from hwsearch.network.store import structure
from hwsearch.process.device import check_device, open_device
from hwsearch.separator.base import BaseDescription, save_base
from hwsearch.separator.separator import Separator, build_separator
from hwsearch.separator.untrained import untrained_network
from hwsearch.training.checkpoint import TrainingProgress
from hwsearch.training.fit import EpochReport, StepProgress, fit
from hwsearch.workspace import Workspace

VALIDATION_EXAMPLES = 128
"""Fixed mixtures of held-out speakers in held-out rooms that choose the best epoch."""


@dataclass(frozen=True)
class Reports:
    """Whom training tells of its progress."""

    on_rooms: Callable[[int, int], None]
    on_step: StepProgress
    on_epoch: EpochReport


def check_training(workspace: Workspace) -> None:
    """Refuse what training would, as far as it shows without any work.

    Raises:
        UserError: a network that cannot be built or traced, weights that are not its own, no rooms to train or to validate in or
            unusable ones, unusable corpora or recordings, or a device that this machine does not have.
    """
    experiment = workspace.experiment
    untrained_network(experiment)
    if isinstance(experiment.separator, ModuleConfig) and experiment.separator.weights is not None:
        front = build_separator(experiment.separator, ARRAYS[experiment.data.array], experiment.data.sample_rate)
        load_weights(experiment.separator.weights, front)
    for split in (Split.TRAIN, Split.VALIDATION):
        if split not in experiment.data.rooms.count:
            raise UserError(f"data.rooms.count: no '{split.value}'; training wants rooms to train and to validate in")
    check_device(experiment.workers.device)
    check_rooms(experiment.data, experiment.data_digest())
    speech = read_corpora(experiment.data, experiment.seed, workspace.corpora_folder).speech
    check_recordings((*speech[Split.TRAIN], *speech[Split.VALIDATION]))


def train_base(workspace: Workspace, processes: int, reports: Reports) -> TrainingProgress:
    """Train the experiment's base, or go on training it, and write it to the run folder.

    Raises:
        UserError: unusable corpora, a foreign or damaged checkpoint, a diverging loss.
    """
    experiment = workspace.experiment
    check_training(workspace)
    check_writable(trained_path(workspace))
    speech = load_corpora(experiment.data, experiment.seed, workspace.corpora_folder)
    sets = {
        split: dynamic_mixtures(
            workspace, split, speech[split], experiment.training.segment_seconds, "dynamic", processes, reports.on_rooms
        )
        for split in (Split.TRAIN, Split.VALIDATION)
    }
    torch.manual_seed(experiment.seed)
    separator = build_separator(experiment.separator, ARRAYS[experiment.data.array], experiment.data.sample_rate)
    if isinstance(experiment.separator, ModuleConfig) and experiment.separator.weights is not None:
        load_weights(experiment.separator.weights, separator)
    progress = fit(
        separator.to(open_device(experiment.workers.device)),
        sets[Split.TRAIN],
        [sets[Split.VALIDATION].example(0, index) for index in range(VALIDATION_EXAMPLES)],
        experiment.training,
        workspace.folder / "training",
        training_digest(experiment),
        reports.on_step,
        reports.on_epoch,
    )
    save_base(trained_path(workspace), separator, describe(experiment, progress))
    return progress


def load_weights(path: Path, separator: Separator) -> None:
    """Load a network's state, with which its training begins.

    Raises:
        UserError: no such file, no safetensors, or not the state of the network.
    """
    what = f"the state of {type(separator.network).__name__} in safetensors, as separator.weights names it"
    _, state = load_tensors(path, what)
    try:
        separator.network.load_state_dict(state)
    except RuntimeError as error:
        raise refused(path, what, error) from None


def trained_path(workspace: Workspace) -> Path:
    """Where training puts the base, whatever base the experiment's search uses."""
    return workspace.folder / "base.safetensors"


def training_digest(experiment: Experiment) -> str:
    """Hash of what a trained base depends on: a search's settings may change under it, and where the work is done."""
    return digest(
        {
            "seed": experiment.seed,
            "data": experiment.data_digest(),
            **without_places({"separator": experiment.separator.model_dump(mode="json")}),
            **_own(experiment),
            "training": experiment.training.model_dump(mode="json", exclude={"threads", "loaders"}),
        }
    )


def _own(experiment: Experiment) -> dict[str, object]:
    """What a user's own network is, and what its training begins with."""
    config = experiment.separator
    if not isinstance(config, ModuleConfig):
        return {}
    weights = None if config.weights is None else file_digest(config.weights)
    return {"network": structure(untrained_network(experiment).graph), "weights": weights}


def describe(experiment: Experiment, progress: TrainingProgress) -> BaseDescription:
    """What the base file says of itself."""
    return BaseDescription(
        sample_rate=experiment.data.sample_rate,
        array=experiment.data.array,
        separator=experiment.separator,
        made_by={
            "experiment": experiment.name,
            "training_digest": training_digest(experiment),
            "seed": str(experiment.seed),
            "epochs": f"{progress.epoch} (best {progress.best_epoch})",
            "validation_si_snr_improvement_db": f"{progress.best_score_db:.2f}",
            "hwsearch": version("hwsearch"),
            "torch": version("torch"),
        },
    )


def dynamic_mixtures(
    workspace: Workspace,
    split: Split,
    utterances: Sequence[Utterance],
    segment_seconds: float,
    purpose: str,
    processes: int,
    on_rooms: Callable[[int, int], None],
) -> DynamicMixtures:
    """An endless set of mixtures of a split's speech in its rooms, which are built where they are missing.

    Args:
        workspace: of the experiment.
        split: whose rooms and, for training, whose speeds.
        utterances: of that split.
        segment_seconds: length of every mixture.
        purpose: sets for different purposes have different mixtures.
        processes: that build rooms.
        on_rooms: told of the rooms.

    Raises:
        UserError: fewer than two speakers, or unreadable speech.
    """
    experiment = workspace.experiment
    data, data_digest = experiment.data, experiment.data_digest()
    # Unusable speech is refused before rooms are simulated for it.
    sampled = [(utterance.speaker, load_speech(utterance, data.sample_rate)) for utterance in utterances]
    speeds = experiment.training.speeds if split is Split.TRAIN else (1.0,)
    speech = speech_by_speaker(sampled, data.sample_rate, speeds)
    bank = build_bank(data, data_digest, split, rooms_folder(workspace.data_folder, split), processes, on_rooms)
    return DynamicMixtures(
        speech,
        bank,
        data.mixtures,
        data.sample_rate,
        round(segment_seconds * data.sample_rate),
        (data_digest, purpose, split.value),
    )
