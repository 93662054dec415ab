"""The workflow for a Python program: open an experiment or a run, run a search, query its front, export a candidate.

Nothing is printed. Mistakes raise `hwsearch.UserError` with the line that the command line would print.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwsearch.experiment import Fidelity, load_experiment, with_search
from hwsearch.results.candidates import CandidateTable
from hwsearch.results.query import parse_condition, parse_order, query
from hwsearch.workflow.caller import DEFAULTS, SILENT, Listener, Resources
from hwsearch.workflow.export import export
from hwsearch.workflow.runs import Run, read_run
from hwsearch.workflow.search import search
from hwsearch.workspace import Workspace

__all__ = [
    "Listener",
    "Resources",
    "Run",
    "Workspace",
    "export_candidate",
    "open_experiment",
    "open_run",
    "query_front",
    "run_search",
]

if TYPE_CHECKING:
    from hwsearch.export.verify import VerificationReport


def open_experiment(experiment: str | Path, runs: str | Path = "runs") -> Workspace:
    """Read an experiment file. The steps in `hwsearch.workflow` take the workspace, which holds the experiment and its paths.

    >>> workspace = open_experiment("tiny.toml")
    >>> workspace.experiment.search.trials
    60
    >>> workspace.folder
    PosixPath('runs/tiny')

    Args:
        experiment: the experiment file.
        runs: the folder of all runs. Nothing is written there yet.

    Raises:
        UserError: the file cannot be read, or it is no valid experiment.
    """
    return Workspace(Path(runs), load_experiment(Path(experiment)))


def open_run(folder: str | Path, fidelity: str | None = None) -> Run:
    """Open the run folder of a search that has begun, even while it runs.

    >>> run = open_run("runs/tiny")
    >>> run.workspace.experiment.name
    'tiny'
    >>> len(run.table)
    60

    Args:
        folder: the run folder, such as runs/quickstart.
        fidelity: the fidelity of the scores, such as "post-training"; None for the highest that the search used.

    Raises:
        UserError: it is no run folder, its record is damaged, or nothing is scored at the fidelity.
    """
    return read_run(Path(folder), None if fidelity is None else Fidelity(fidelity))


def run_search(
    experiment: str | Path,
    runs: str | Path = "runs",
    resources: Resources = DEFAULTS,
    listener: Listener = SILENT,
    changes: Mapping[str, Any] | None = None,
) -> Run:
    """Build the data, train a missing base, search, and open the run. The same call continues an interrupted search.

    >>> run = run_search("tiny.toml", resources=Resources(workers=0))
    >>> run.workspace.folder
    PosixPath('runs/tiny')

    Args:
        experiment: the experiment file.
        runs: the folder of all runs.
        resources: processes and Ray workers to use; `Resources(workers=0)` computes in this process.
        listener: hears of the progress of the steps.
        changes: new values for keys of the file's section `search`, such as {"trials": 200}.

    Raises:
        UserError: the experiment cannot be run, which is found before any work, or a step fails.
    """
    workspace = Workspace(Path(runs), with_search(load_experiment(Path(experiment)), dict(changes or {})))
    search(workspace, resources, listener, may_train=True)
    return read_run(workspace.folder)


def query_front(run: Run, *conditions: str, sort: str | None = None) -> CandidateTable:
    """Return the front of the candidates that meet every condition, the smallest one first.

    >>> front = query_front(open_run("runs/tiny"), "size_bytes<=150000", sort="si_snr_improvement_db:desc")
    >>> bool((front.columns["size_bytes"] <= 150000).all())
    True
    >>> allocation = front.configuration(0).allocation
    >>> sorted(allocation.by_site) == sorted(front.sites)
    True

    Args:
        run: an open run.
        conditions: conditions in the form of `hwsearch pareto --where`.
        sort: a column, followed by ":desc" for descending order.

    Raises:
        UserError: a condition cannot be read, or a column is unknown.
    """
    order = None if sort is None else parse_order(sort)
    return query(run.table, [parse_condition(text) for text in conditions], order)


def export_candidate(run: Run, candidate: int, folder: str | Path, graph_format: str = "onnx") -> "VerificationReport":
    """Export a candidate. The folder appears once the file was verified on test mixtures.

    >>> run = open_run("runs/tiny")
    >>> smallest = int(query_front(run).candidate[0])
    >>> report = export_candidate(run, smallest, "exported")
    >>> report.quantized_values > 0 and Path("exported/model.onnx").is_file()
    True

    Args:
        run: an open run.
        candidate: the number of the candidate.
        folder: the folder to write. An earlier export there is replaced.
        graph_format: "onnx" for ONNX Runtime, "qonnx" for FINN.

    Raises:
        UserError: the folder may not be written, there is no such candidate, the base or the data are not those of the search,
            or the file computes something else than the Brevitas network.
    """
    return export(run, candidate, graph_format, Path(folder))
