"""What a system scores on test mixtures: SI-SNR, PESQ and STOI on speech, word errors on digit strings."""

from collections.abc import Sequence
from pathlib import Path

from hwsearch.data.dataset import Mixture, load_mixture, open_dataset
from hwsearch.experiment import Split
from hwsearch.metrics.evaluation import System, UtteranceScores, evaluate, make_recogniser
from hwsearch.metrics.recognisers.recogniser import Recogniser, heard_errors
from hwsearch.workspace import Workspace


def judge(system: System, workspace: Workspace, mixtures: int, *, digits: bool) -> list[UtteranceScores]:
    """Score a system on the first test mixtures of a workspace.

    Args:
        system: maps a mixture and a direction to an estimate.
        workspace: its data exist.
        mixtures: number of mixtures.
        digits: whether words are counted, and nothing else.
    """
    chosen = first_mixtures(workspace, mixtures)
    if not digits:
        return evaluate(system, workspace.data_folder, chosen, None, lambda _done, _all: None)
    recogniser = make_recogniser(workspace.experiment.evaluation, chosen)
    return [_words(system, workspace.data_folder, mixture, recogniser) for mixture in chosen]


def first_mixtures(workspace: Workspace, mixtures: int) -> Sequence[Mixture]:
    """Return the first test mixtures of a workspace."""
    return open_dataset(workspace.data_folder, Split.TEST)[:mixtures]


def _words(system: System, folder: Path, mixture: Mixture, recogniser: Recogniser | None) -> UtteranceScores:
    """Count the word errors of a system on a mixture."""
    sound, _ = load_mixture(folder, mixture)
    estimate = system(sound, mixture.target.doa_deg)
    errors = heard_errors(recogniser, mixture.target.transcript, estimate, mixture.sample_rate)
    words = {} if errors is None else {"estimate": errors}
    return UtteranceScores(mixture.id, mixture.target.utterance, mixture.angle_deg, mixture.t60_measured_s, {}, words, {})
