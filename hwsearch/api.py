"""The workflow for a Python program: open a run, run a search, query its front, export a candidate.

Nothing is printed. A user's mistake raises `hwsearch.UserError`, whose text is the line that the command line prints.
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

__all__ = ["Listener", "Resources", "Run", "export_candidate", "open_run", "query_front", "run_search"]

if TYPE_CHECKING:
    from hwsearch.export.verify import VerificationReport


def open_run(folder: str | Path, fidelity: str | None = None) -> Run:
    """Open the run folder of a search that has begun, also while it runs.

    >>> run = open_run("runs/tiny")
    >>> run.workspace.experiment.name
    'tiny'
    >>> len(run.table)
    60

    Args:
        folder: such as runs/quickstart.
        fidelity: how candidates were scored, such as "post-training"; None: the highest that the search used.

    Raises:
        UserError: not a run folder, a damaged record, or nothing scored at that fidelity.
    """
    return read_run(Path(folder), None if fidelity is None else Fidelity(fidelity))


def run_search(
    experiment: str | Path,
    runs: str | Path = "runs",
    resources: Resources = DEFAULTS,
    listener: Listener = SILENT,
    changes: Mapping[str, Any] | None = None,
) -> Run:
    """Build the data, train the base if there is none, search, and open the run; the same call continues an interrupted search.

    >>> run = run_search("tiny.toml", resources=Resources(workers=0))
    >>> run.workspace.folder
    PosixPath('runs/tiny')

    Args:
        experiment: the experiment file.
        runs: folder of all runs.
        resources: processes, and workers on Ray; `Resources(workers=0)` computes in this process.
        listener: hears how the steps get on.
        changes: keys of the file's section `search` to replace, such as {"trials": 200}.

    Raises:
        UserError: an experiment that cannot be run, before any work; what goes wrong later.
    """
    workspace = Workspace(Path(runs), with_search(load_experiment(Path(experiment)), dict(changes or {})))
    search(workspace, resources, listener, may_train=True)
    return read_run(workspace.folder)


def query_front(run: Run, *conditions: str, sort: str | None = None) -> CandidateTable:
    """The candidates that meet every condition, of these the non-dominated ones; the smallest comes first.

    >>> front = query_front(open_run("runs/tiny"), "size_bytes<=120000", sort="si_snr_improvement_db:desc")
    >>> bool((front.columns["size_bytes"] <= 120000).all())
    True
    >>> allocation = front.allocation(0)
    >>> sorted(allocation.by_site) == sorted(front.sites)
    True

    Args:
        run: an open run.
        conditions: as `hwsearch pareto --where` takes them.
        sort: a column, with ":desc" behind it for descending.

    Raises:
        UserError: a condition that cannot be read, or an unknown column.
    """
    order = None if sort is None else parse_order(sort)
    return query(run.table, [parse_condition(text) for text in conditions], order)


def export_candidate(run: Run, candidate: int, folder: str | Path, graph_format: str = "onnx") -> "VerificationReport":
    """Export a candidate; the folder appears once its file was verified against the Brevitas network on test mixtures.

    >>> run = open_run("runs/tiny")
    >>> smallest = int(query_front(run).candidate[0])
    >>> report = export_candidate(run, smallest, "exported")
    >>> report.quantized_values > 0 and Path("exported/model.onnx").is_file()
    True

    Args:
        run: an open run.
        candidate: its number.
        folder: to write; an earlier export there is replaced.
        graph_format: "onnx" for ONNX Runtime, "qonnx" for FINN.

    Raises:
        UserError: a folder that may not be written, no such candidate, a base or data other than the search's, or a file that
            does not compute what the Brevitas network does.
    """
    return export(run, candidate, graph_format, Path(folder))
