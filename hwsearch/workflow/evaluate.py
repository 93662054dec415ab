"""Evaluation of a base, a candidate or an exported file on the test mixtures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hwsearch.data.build import check_data
from hwsearch.data.dataset import manifest_hash, open_dataset
from hwsearch.errors import UserError
from hwsearch.experiment import Fidelity, Split
from hwsearch.files.reading import file_digest
from hwsearch.metrics.evaluation import (
    Audio,
    Summary,
    System,
    UtteranceScores,
    check_comparable,
    check_recogniser,
    compare,
    evaluate,
    make_recogniser,
    read_figures,
    summarise,
    to_json,
)
from hwsearch.metrics.statistics import PairedTest
from hwsearch.separator.allocation import BitAllocation
from hwsearch.separator.fast import FastNetwork
from hwsearch.separator.prepare import PreparedBase
from hwsearch.separator.separator import MaskFunction, Separator
from hwsearch.separator.trained import TrainedState, trained_mask_function
from hwsearch.workflow.caller import SILENT, Listener, Progress
from hwsearch.workflow.checks import check_provenance, check_searched
from hwsearch.workflow.runs import Run, open_candidate, read_run
from hwsearch.workflow.training import build, load_float_base, prepare
from hwsearch.workspace import Workspace

if TYPE_CHECKING:
    from hwsearch.export.runtime import OnnxSeparator


@dataclass(frozen=True)
class Subject:
    """What is evaluated: the full-precision base, unless a candidate or a file is named.

    Attributes:
        candidate: the number of a candidate.
        model: an exported ONNX file.
        fidelity: the fidelity of the candidate; None for the highest that the search used.
    """

    candidate: int | None = None
    model: Path | None = None
    fidelity: Fidelity | None = None

    def __str__(self) -> str:
        """The name of the subject in figures."""
        if self.model is not None:
            return str(self.model)
        return "full-precision base" if self.candidate is None else f"candidate {self.candidate}"


@dataclass(frozen=True)
class Evaluation:
    """Figures of one system on the test mixtures.

    Attributes:
        summaries: one for each angle bin, then one for all mixtures.
        tests: paired tests against other figures, by metric.
        made_by: what the figures depend on.
    """

    system: str
    results: Sequence[UtteranceScores]
    summaries: Sequence[Summary]
    tests: Mapping[str, PairedTest]
    made_by: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the content of a file for `metrics.evaluation.read_figures`."""
        return {"made_by": dict(self.made_by), **to_json(self.results, self.summaries)}


def evaluate_subject(
    workspace: Workspace, subject: Subject, against: Path | None = None, processes: int = 1, listener: Listener = SILENT
) -> Evaluation:
    """Score a base, a candidate or an exported file on the test mixtures.

    Args:
        workspace: the experiment and its folders.
        subject: what to evaluate.
        against: a file of another system's figures, for paired tests.
        processes: number of processes that make data.
        listener: hears of data and mixtures.

    Raises:
        UserError: both a candidate and a model are named, the subject does not exist, or there are no test mixtures.
    """
    experiment = workspace.experiment
    if subject.candidate is not None and subject.model is not None:
        raise UserError("--candidate and --model exclude each other; wanted one of them")
    if not experiment.data.fixed_count(Split.TEST):
        raise UserError(f"experiment '{experiment.name}' makes no test mixtures; wanted data.mixtures.count.test")
    check_recogniser(experiment.evaluation)
    others = None if against is None else read_figures(against)
    check_data(experiment, workspace.data_folder, workspace.corpora_folder)
    run = None if subject.candidate is None else read_run(workspace.folder, subject.fidelity)
    make_system = _system_maker(workspace, subject, run)
    build(workspace, processes, listener)
    if others is not None:
        mixtures = open_dataset(workspace.data_folder, Split.TEST)
        check_comparable({mixture.id: mixture.target.utterance for mixture in mixtures}, others)
    results = evaluate_system(make_system(), workspace, listener.progress("test mixtures"))
    summaries = summarise(results, experiment.evaluation.angle_bins_deg, experiment.seed)
    tests = {} if others is None else compare(results, others, experiment.seed)
    return Evaluation(str(subject), results, summaries, tests, _made_by(workspace, subject, run, tests))


def evaluate_system(system: System, workspace: Workspace, progress: Progress) -> list[UtteranceScores]:
    """Score a system on the test mixtures.

    Raises:
        UserError: the data was not built, or the recogniser cannot be made.
    """
    mixtures = open_dataset(workspace.data_folder, Split.TEST)
    recogniser = make_recogniser(workspace.experiment.evaluation, mixtures)
    return evaluate(system, workspace.data_folder, mixtures, recogniser, progress)


def float_system(separator: Separator) -> System:
    """Make a system of the full-precision base."""
    return _system(separator, separator.network)


def candidate_system(prepared: PreparedBase, allocation: BitAllocation, state: TrainedState | None = None) -> System:
    """Make a system of a candidate, with its trained weights if it was trained."""
    if state is not None:
        return _system(prepared.separator, trained_mask_function(prepared, state))
    network = FastNetwork(prepared.graph, prepared.calibration, prepared.quantization, weights=prepared.weights)
    return _system(prepared.separator, network.mask_function(allocation))


def _system(separator: Separator, mask_function: MaskFunction) -> System:
    def separate(sound: Audio, doa_deg: float) -> Audio:
        with torch.no_grad():
            estimate = separator.separate(torch.from_numpy(sound)[None], torch.tensor([doa_deg]), mask_function)
        result: Audio = estimate[0].numpy()
        return result

    return separate


def _system_maker(workspace: Workspace, subject: Subject, run: Run | None) -> Callable[[], System]:
    """Refuse what cannot be evaluated; return what makes the system once the data are built."""
    if subject.model is not None:
        model = _open_model(workspace, subject.model)
        return lambda: model.separate
    if run is None or subject.candidate is None:
        base = load_float_base(workspace)
        return lambda: float_system(base)
    candidate = subject.candidate
    run.row(candidate)
    check_searched(workspace)

    def make() -> System:
        check_provenance(workspace)
        opened = open_candidate(run, prepare(workspace), candidate)
        return candidate_system(opened.base, opened.configuration.allocation, opened.state)

    return make


def _open_model(workspace: Workspace, model: Path) -> "OnnxSeparator":
    from hwsearch.export.runtime import OnnxSeparator

    separator = OnnxSeparator(model, threads=1)
    found = (separator.description.sample_rate, separator.description.array)
    wanted = (workspace.experiment.data.sample_rate, workspace.experiment.data.array)
    if found != wanted:
        raise UserError(
            f"{model}: made for {found[0]} Hz and '{found[1]}'; the test mixtures are {wanted[0]} Hz and '{wanted[1]}'"
        )
    return separator


def _made_by(workspace: Workspace, subject: Subject, run: Run | None, tests: Mapping[str, PairedTest]) -> dict[str, Any]:
    """What the figures depend on: system, experiment, seed, allocation, versions, and hashes of model and mixtures."""
    experiment = workspace.experiment
    allocation, structure, fidelity = None, None, None
    if run is not None and subject.candidate is not None:
        configuration = run.configuration(subject.candidate)
        allocation, structure = configuration.allocation.to_json(), configuration.kept
        fidelity = run.table.fidelity.value
    return {
        "system": str(subject),
        "experiment": experiment.name,
        "experiment_digest": experiment.digest(),
        "seed": experiment.seed,
        "quantization": experiment.quantization.model_dump(),
        "allocation": allocation,
        **({"structure": structure} if structure else {}),
        "fidelity": fidelity,
        "versions": {name: version(name) for name in ("hwsearch", "torch", "numpy", "pesq", "pystoi", "jiwer")},
        "against": {key: asdict(test) for key, test in tests.items()},
        "recogniser": experiment.evaluation.recogniser,
        "base_sha256" if subject.model is None else "model_sha256": file_digest(subject.model or workspace.base_path),
        "test_sha256": manifest_hash(workspace.data_folder, Split.TEST),
    }
