"""A base, a candidate or an exported file judged on the test mixtures."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwsearch.data.build import check_data
from hwsearch.data.dataset import manifest_hash, open_dataset
from hwsearch.errors import UserError
from hwsearch.experiment import Fidelity, Split
from hwsearch.files.reading import file_digest
from hwsearch.metrics.evaluation import (
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
from hwsearch.workflow.checks import check_provenance, check_searched
from hwsearch.workflow.data import build
from hwsearch.workflow.listener import SILENT, Listener, Progress
from hwsearch.workflow.runs import read_run, trained_state
from hwsearch.workflow.systems import candidate_system, float_system
from hwsearch.workflow.training import load_float_base, prepare
from hwsearch.workspace import Workspace

if TYPE_CHECKING:
    from hwsearch.export.runtime import OnnxSeparator


@dataclass(frozen=True)
class Subject:
    """What is judged: the full-precision base, unless a candidate or a file is named.

    Attributes:
        candidate: its number in the run.
        model: an exported ONNX file.
        fidelity: at which the candidate was scored; None: the highest that the search used.
    """

    candidate: int | None = None
    model: Path | None = None
    fidelity: Fidelity | None = None

    def __str__(self) -> str:
        """How figures name it."""
        if self.model is not None:
            return str(self.model)
        return "full-precision base" if self.candidate is None else f"candidate {self.candidate}"


@dataclass(frozen=True)
class Evaluation:
    """Figures of one system on the test mixtures.

    Attributes:
        system: what was judged.
        results: of each mixture.
        summaries: of each angle bin, then of all.
        tests: by metric, against other figures.
        made_by: what the figures depend on.
    """

    system: str
    results: Sequence[UtteranceScores]
    summaries: Sequence[Summary]
    tests: Mapping[str, PairedTest]
    made_by: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """What `metrics.evaluation.read_figures` reads, and what made it."""
        return {"made_by": dict(self.made_by), **to_json(self.results, self.summaries)}


def evaluate_subject(
    workspace: Workspace, subject: Subject, against: Path | None = None, processes: int = 1, listener: Listener = SILENT
) -> Evaluation:
    """Score a base, a candidate or an exported file on the test mixtures.

    Args:
        workspace: of the experiment.
        subject: what is judged.
        against: a file of another system's figures, for paired tests.
        processes: that make data.
        listener: hears of the data and of the mixtures.

    Raises:
        UserError: both a candidate and a model are named, there is no such one, or there are no test mixtures.
    """
    experiment = workspace.experiment
    if subject.candidate is not None and subject.model is not None:
        raise UserError("--candidate and --model exclude each other; wanted one of them")
    if Split.TEST not in experiment.data.mixtures.count:
        raise UserError(f"experiment '{experiment.name}' makes no test mixtures; wanted data.mixtures.count.test")
    check_recogniser(experiment.evaluation)
    others = None if against is None else read_figures(against)
    check_data(experiment, workspace.data_folder, workspace.corpora_folder)
    _check_subject(workspace, subject)
    build(workspace, processes, listener)
    if others is not None:
        mixtures = open_dataset(workspace.data_folder, Split.TEST)
        check_comparable({mixture.id: mixture.target.utterance for mixture in mixtures}, others)
    results = evaluate_system(_system(workspace, subject), workspace, listener.progress("test mixtures"))
    summaries = summarise(results, experiment.evaluation.angle_bins_deg, experiment.seed)
    tests = {} if others is None else compare(results, others, experiment.seed)
    return Evaluation(str(subject), results, summaries, tests, _made_by(workspace, subject, tests))


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


def evaluate_system(system: System, workspace: Workspace, progress: Progress) -> list[UtteranceScores]:
    """Score a system on the test mixtures.

    Raises:
        UserError: the data was not built, or the recogniser cannot be made.
    """
    mixtures = open_dataset(workspace.data_folder, Split.TEST)
    recogniser = make_recogniser(workspace.experiment.evaluation, mixtures)
    return evaluate(system, workspace.data_folder, mixtures, recogniser, progress)


def _check_subject(workspace: Workspace, subject: Subject) -> None:
    """Refuse what cannot be judged, before data are built for it."""
    if subject.model is not None:
        _open_model(workspace, subject.model)
    elif subject.candidate is not None:
        read_run(workspace.folder, subject.fidelity).row(subject.candidate)
        check_searched(workspace)
    else:
        load_float_base(workspace)


def _system(workspace: Workspace, subject: Subject) -> System:
    if subject.model is not None:
        return _open_model(workspace, subject.model).separate
    if subject.candidate is None:
        return float_system(load_float_base(workspace))
    opened = read_run(workspace.folder, subject.fidelity)
    allocation = opened.allocation(subject.candidate)
    check_provenance(workspace)
    prepared = prepare(workspace)
    return candidate_system(prepared, allocation, trained_state(opened, prepared, subject.candidate))


def _made_by(workspace: Workspace, subject: Subject, tests: Mapping[str, PairedTest]) -> dict[str, Any]:
    """What the figures depend on: system, experiment, seed, allocation, versions, and hashes of model and mixtures."""
    experiment = workspace.experiment
    allocation, fidelity = None, None
    if subject.candidate is not None:
        opened = read_run(workspace.folder, subject.fidelity)
        allocation, fidelity = opened.allocation(subject.candidate).to_json(), opened.table.fidelity.value
    path = subject.model or workspace.base_path
    return {
        "system": str(subject),
        "experiment": experiment.name,
        "experiment_digest": experiment.digest(),
        "seed": experiment.seed,
        "quantization": experiment.quantization.model_dump(),
        "allocation": allocation,
        "fidelity": fidelity,
        "versions": {name: version(name) for name in ("hwsearch", "torch", "numpy", "pesq", "pystoi", "jiwer")},
        "against": {key: asdict(test) for key, test in tests.items()},
        "recogniser": experiment.evaluation.recogniser,
        "base_sha256" if subject.model is None else "model_sha256": file_digest(path),
        "test_sha256": manifest_hash(workspace.data_folder, Split.TEST),
    }
