"""From an experiment to a trained base on disk."""

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from hwsearch.data.arrays import microphone_array
from hwsearch.data.corpus import load_corpora, read_corpora
from hwsearch.data.dynamic import DynamicMixtures, speech_by_speaker
from hwsearch.data.feasible import check_recordings
from hwsearch.data.noise import check_noise, read_noise
from hwsearch.data.plan import identify
from hwsearch.data.recorded import check_directions, check_headers, conversion_notes, read_recorded
from hwsearch.data.rooms import build_bank, check_rooms, rooms_folder
from hwsearch.data.training_examples import Examples, MixedExamples, RecordedExamples
from hwsearch.data.utterance import Utterance, load_speech
from hwsearch.errors import UserError
from hwsearch.experiment import Experiment, ModuleConfig, Split, without_places
from hwsearch.files.reading import digest, file_digest
from hwsearch.files.tensors import load_tensors, refused
from hwsearch.files.writing import check_writable
from hwsearch.network.structure import structure
from hwsearch.process.device import check_device, open_device
from hwsearch.separator.base import BaseDescription, save_base
from hwsearch.separator.separator import Separator, build_separator
from hwsearch.separator.untrained import untrained_network
from hwsearch.training.checkpoint import TrainingProgress
from hwsearch.training.fit import EpochReport, fit
from hwsearch.training.loss import StepReport
from hwsearch.workspace import Workspace

RECORDED_SHARE = 0.5
"""Share of recorded mixtures in training, unless the experiment says otherwise."""

SPEECH = "speech_sha256"
"""Key of `speech_digest` in what a base says of its making."""

VALIDATION_EXAMPLES = 128
"""Fixed mixtures, of speakers and rooms that training does not use, whose score chooses the best epoch."""


def check_training(workspace: Workspace) -> tuple[str, ...]:
    """Refuse before any work what training would refuse.

    Returns:
        Lines for people, such as which recordings are resampled.

    Raises:
        UserError: a network that cannot be built or traced, weights of another network, missing or unusable rooms, unusable
            corpora or recordings, or a device that this machine does not have.
    """
    experiment = workspace.experiment
    untrained_network(experiment)
    _initial_separator(experiment)
    data = experiment.data
    for split in (Split.TRAIN, Split.VALIDATION):
        if split not in data.rooms.count and not data.has_recorded(split):
            raise UserError(f"data.rooms.count: no '{split.value}'; training wants rooms to train and to validate in")
    check_device(experiment.workers.device)
    check_rooms(data, experiment.data_digest())
    recorded = read_recorded(data)
    check_directions(experiment, recorded.mixtures)
    headers = [(mixture, check_headers(mixture, data)) for mixture in recorded.mixtures if mixture.split is not Split.TEST]
    speech = read_corpora(data, experiment.seed, workspace.corpora_folder).speech
    notes = recorded.notes + conversion_notes(headers, data.sample_rate) + check_noise(data, experiment.seed)
    return notes + check_recordings((*speech[Split.TRAIN], *speech[Split.VALIDATION]), data.sample_rate)


def train_base(
    workspace: Workspace, processes: int, on_rooms: Callable[[int, int], None], on_step: StepReport, on_epoch: EpochReport
) -> TrainingProgress:
    """Train the base of an experiment from its last checkpoint, if there is one, and write it to the run folder.

    Args:
        workspace: workspace of the experiment.
        processes: number of processes that build rooms.
        on_rooms: called after each room with (done, total).
        on_step: called after each step.
        on_epoch: called after each epoch.

    Raises:
        UserError: anything that `check_training` refuses, a damaged checkpoint or one of another experiment, or a diverging loss.
    """
    experiment = workspace.experiment
    check_training(workspace)
    check_writable(trained_path(workspace))
    speech = load_corpora(experiment.data, experiment.seed, workspace.corpora_folder)
    spoken = speech_digest(speech)
    sets = {
        split: training_examples(
            workspace, split, speech[split], experiment.training.segment_seconds, "dynamic", processes, on_rooms
        )
        for split in (Split.TRAIN, Split.VALIDATION)
    }
    separator = _initial_separator(experiment)
    progress = fit(
        separator.to(open_device(experiment.workers.device)),
        sets[Split.TRAIN],
        [sets[Split.VALIDATION].example(0, index) for index in range(VALIDATION_EXAMPLES)],
        experiment.training,
        workspace.folder / "training",
        training_digest(experiment) if spoken is None else digest([training_digest(experiment), spoken]),
        on_step,
        on_epoch,
    )
    made_by = {
        "experiment": experiment.name,
        "training_digest": training_digest(experiment),
        **({} if spoken is None else {SPEECH: spoken}),
        "seed": str(experiment.seed),
        "epochs": f"{progress.epoch} (best {progress.best_epoch})",
        "validation_si_snr_improvement_db": f"{progress.best_score_db:.2f}",
        "hwsearch": version("hwsearch"),
        "torch": version("torch"),
    }
    description = BaseDescription(
        sample_rate=experiment.data.sample_rate,
        array=separator.front_end.array.setting,
        separator=experiment.separator,
        made_by=made_by,
    )
    save_base(trained_path(workspace), separator, description)
    return progress


def _initial_separator(experiment: Experiment) -> Separator:
    """The separator that training starts from: seeded weights, or those of the file that `separator.weights` names.

    Raises:
        UserError: there is no such file, it is no safetensors file, or it holds another network.
    """
    torch.manual_seed(experiment.seed)
    config = experiment.separator
    separator = build_separator(config, microphone_array(experiment.data.array), experiment.data.sample_rate)
    if isinstance(config, ModuleConfig) and config.weights is not None:
        what = f"the state of {type(separator.network).__name__} in safetensors, as separator.weights names it"
        _, state = load_tensors(config.weights, what)
        try:
            separator.network.load_state_dict(state)
        except RuntimeError as error:
            raise refused(config.weights, what, error) from None
    return separator


def trained_path(workspace: Workspace) -> Path:
    """The file of the trained base. A search may use another base."""
    return workspace.folder / "base.safetensors"


def training_digest(experiment: Experiment) -> str:
    """Hash of all in an experiment that a trained base depends on. Settings of the search or of the machine are not among it."""
    config, own = experiment.separator, {}
    if isinstance(config, ModuleConfig):
        weights = None if config.weights is None else file_digest(config.weights)
        own = {"network": structure(untrained_network(experiment).graph), "weights": weights}
    return digest(
        {
            "seed": experiment.seed,
            "data": experiment.data_digest(),
            **without_places({"separator": config.model_dump(mode="json")}),
            **own,
            "training": experiment.training.model_dump(mode="json", exclude={"threads", "loaders"}),
        }
    )


def speech_digest(speech: Mapping[Split, Sequence[Utterance]]) -> str | None:
    """Hash the recordings that a base is trained and validated on; None if all are known by their names.

    Raises:
        UserError: a recording is missing.
    """
    heard = [*speech[Split.TRAIN], *speech[Split.VALIDATION]]
    return digest(list(map(identify, heard))) if any(utterance.by_content for utterance in heard) else None


def training_examples(
    workspace: Workspace,
    split: Split,
    utterances: Sequence[Utterance],
    segment_seconds: float,
    purpose: str,
    processes: int,
    on_rooms: Callable[[int, int], None],
) -> Examples:
    """An endless set of mixtures of a split: those made in its rooms, its recorded ones, or a share of both.

    The arguments are those of `dynamic_mixtures`.

    Raises:
        UserError: as `dynamic_mixtures`, or recorded mixtures are unusable.
    """
    data, digest_name = workspace.experiment.data, workspace.experiment.data_digest()
    name = (digest_name, purpose, split.value)
    if not data.has_recorded(split):
        return dynamic_mixtures(workspace, split, utterances, segment_seconds, purpose, processes, on_rooms)
    mixtures = tuple(mixture for mixture in read_recorded(data).mixtures if mixture.split is split)
    recorded = RecordedExamples(mixtures, data.sample_rate, round(segment_seconds * data.sample_rate), name)
    if split not in data.rooms.count:
        return recorded
    made = dynamic_mixtures(workspace, split, utterances, segment_seconds, purpose, processes, on_rooms)
    return MixedExamples(made, recorded, RECORDED_SHARE if data.recorded_share is None else data.recorded_share, name)


def dynamic_mixtures(
    workspace: Workspace,
    split: Split,
    utterances: Sequence[Utterance],
    segment_seconds: float,
    purpose: str,
    processes: int,
    on_rooms: Callable[[int, int], None],
) -> DynamicMixtures:
    """An endless set of mixtures of the speech of a split in its rooms. Missing rooms are built.

    Args:
        workspace: workspace of the experiment.
        split: the split; `training.speeds` applies to the training split only.
        utterances: the speech of the split.
        segment_seconds: length of each mixture.
        purpose: name of the set. Sets of different names hold different mixtures.
        processes: number of processes that build rooms.
        on_rooms: called after each room with (done, total).

    Raises:
        UserError: fewer than two speakers, or unreadable speech.
    """
    experiment = workspace.experiment
    data, data_digest = experiment.data, experiment.data_digest()
    # Speech comes before rooms: unusable speech is refused sooner.
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
        read_noise(data, experiment.seed).get(split),
    )
