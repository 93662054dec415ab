"""From an experiment to a trained base on disk."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from hwsearch.data.corpus import load_corpora, read_corpora
from hwsearch.data.dynamic import DynamicMixtures, speech_by_speaker
from hwsearch.data.feasible import check_recordings
from hwsearch.data.rooms import build_bank, check_rooms
from hwsearch.data.utterance import Utterance, load_speech
from hwsearch.errors import UserError
from hwsearch.experiment import Experiment, Split
from hwsearch.files import check_writable, digest
from hwsearch.separator.base import BaseDescription, save_base
from hwsearch.separator.separator import build_separator
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
        UserError: no rooms to train or to validate in or unusable ones, unusable corpora or recordings, or a device that this
            machine does not have.
    """
    experiment = workspace.experiment
    for split in (Split.TRAIN, Split.VALIDATION):
        if split not in experiment.data.rooms.count:
            raise UserError(f"data.rooms.count: no '{split.value}'; training wants rooms to train and to validate in")
    if experiment.training.device == "cuda" and not torch.cuda.is_available():
        raise UserError("training.device is 'cuda'; PyTorch finds no CUDA device on this machine: wanted one, or 'cpu'")
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
    separator = build_separator(experiment.data, experiment.separator)
    if experiment.separator.beam:
        # The network's mask is added to the beam's: training starts from the beam alone.
        for parameter in separator.network.mask_head.parameters():
            torch.nn.init.zeros_(parameter)
    progress = fit(
        separator,
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


def trained_path(workspace: Workspace) -> Path:
    """Where training puts the base, whatever base the experiment's search uses."""
    return workspace.folder / "base.safetensors"


def training_digest(experiment: Experiment) -> str:
    """Hash of what a trained base depends on: a search's settings may change under it, and where the work is done."""
    return digest(
        {
            "seed": experiment.seed,
            "data": experiment.data_digest(),
            "separator": experiment.separator.model_dump(mode="json"),
            "training": experiment.training.model_dump(mode="json", exclude={"threads", "loaders", "device"}),
        }
    )


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
    bank = build_bank(data, data_digest, split, workspace.rooms_folder(split), processes, on_rooms)
    return DynamicMixtures(
        speech,
        bank,
        data.mixtures,
        data.sample_rate,
        round(segment_seconds * data.sample_rate),
        (data_digest, purpose, split.value),
    )
