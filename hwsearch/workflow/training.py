"""What comes before a search: data, the full-precision base and its training, the calibration."""

from collections.abc import Iterable

from hwsearch.data.build import build_data
from hwsearch.data.corpus import read_corpora
from hwsearch.data.rooms import rooms_folder
from hwsearch.errors import UserError
from hwsearch.experiment import Split
from hwsearch.search.driver_account import Step
from hwsearch.separator.base import load_base
from hwsearch.separator.prepare import PreparedBase, load_checked_base, prepare_base
from hwsearch.separator.separator import Separator
from hwsearch.training.checkpoint import TrainingProgress
from hwsearch.training.full_precision import (
    SPEECH,
    check_training,
    speech_digest,
    train_base,
    trained_path,
    training_digest,
)
from hwsearch.workflow.caller import SILENT, Listener
from hwsearch.workspace import Workspace


def build(workspace: Workspace, processes: int, listener: Listener = SILENT) -> None:
    """Build the rooms and mixtures of an experiment that are missing.

    Raises:
        UserError: a corpus, recording, room or folder cannot be used.
    """
    folder, progress = workspace.data_folder, listener.progress(Step.DATA.value)
    for note in build_data(workspace.experiment, folder, workspace.corpora_folder, processes, progress):
        listener.said(f"data: {note}")
    listener.said(f"data: {folder}")


def needs_training(workspace: Workspace) -> bool:
    """Whether the experiment trains its own base and has not done so yet."""
    return workspace.experiment.base is None and not workspace.base_path.is_file()


def load_float_base(workspace: Workspace) -> Separator:
    """Load the experiment's base in full precision.

    Raises:
        UserError: the base is missing, does not fit the experiment, or was trained with other settings.
    """
    experiment, path = workspace.experiment, workspace.base_path
    separator = load_checked_base(experiment, path)
    if experiment.base is None and load_base(path, experiment.separator)[1].made_by.get("training_digest") != training_digest(
        experiment
    ):
        raise UserError(
            f"{path}: trained by an experiment '{experiment.name}' whose data, separator or training differ from the file given; "
            "wanted the same content, another name, or another --runs-dir"
        )
    return separator


def check_trained_on(workspace: Workspace) -> None:
    """Check that the speech of an experiment is what its own base was trained on. The base must be there.

    Raises:
        UserError: a recording was replaced, or a corpus cannot be used.
    """
    experiment, path = workspace.experiment, workspace.base_path
    before = None if experiment.base is not None else load_base(path, experiment.separator)[1].made_by.get(SPEECH)
    if before is None:
        return
    speech = read_corpora(experiment.data, experiment.seed, workspace.corpora_folder).speech
    if speech_digest(speech) != before:
        raise UserError(
            f"{path}: trained on other recordings than those that data.corpora holds now; wanted them as they were, another "
            "name, or another --runs-dir"
        )


def prepare(workspace: Workspace, widths: Iterable[int] = ()) -> PreparedBase:
    """Load the experiment's base, folded and calibrated, with the scales of its weights at some widths."""
    return prepare_base(workspace.experiment, workspace.base_path, workspace.data_folder, workspace.calibration_path, widths)


def train(workspace: Workspace, processes: int, listener: Listener = SILENT) -> TrainingProgress:
    """Train the experiment's base, or go on training it.

    Args:
        workspace: the experiment and its folders.
        processes: number of processes that make rooms.
        listener: hears of rooms, of steps over all epochs, and of each epoch's figures.

    Raises:
        UserError: training is refused.
    """
    config = workspace.experiment.training
    done_before = 0
    if not rooms_folder(workspace.data_folder, Split.TRAIN).is_dir():  # otherwise they were said when the rooms were made
        for note in check_training(workspace):
            listener.said(f"data: {note}")

    def on_step(step: int, steps: int, loss: float) -> None:
        del loss
        listener.advanced(Step.BASE.value, done_before * steps + step, config.epochs * steps)

    def on_epoch(progress: TrainingProgress) -> None:
        nonlocal done_before
        done_before = progress.epoch
        loss, score = progress.history[-1]
        listener.said(
            f"epoch {progress.epoch}/{config.epochs}: training loss {loss:.2f} dB, validation SI-SNR improvement "
            f"{score:.2f} dB (best {progress.best_score_db:.2f} in epoch {progress.best_epoch})"
        )

    progress = train_base(workspace, processes, listener.progress("rooms"), on_step, on_epoch)
    listener.said(f"base: {trained_path(workspace)}")
    return progress
