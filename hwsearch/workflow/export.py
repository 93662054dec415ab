"""The export of a candidate."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hwsearch.data.dataset import Mixture, load_mixture, open_dataset
from hwsearch.data.example import Example
from hwsearch.experiment import Fidelity, Split
from hwsearch.export.folder import check_output
from hwsearch.extensions import EXPORTERS
from hwsearch.workflow.checks import check_provenance
from hwsearch.workflow.runs import Run, open_candidate
from hwsearch.workflow.training import prepare
from hwsearch.workspace import Workspace

if TYPE_CHECKING:
    from hwsearch.export.description import Processors
    from hwsearch.export.verify import VerificationReport

VERIFICATION_MIXTURES = 4
"""Test mixtures on which an exported file is compared with the Brevitas network."""


def export(run: Run, candidate: int, graph_format: str, output: Path, processors: "Processors" = "any") -> "VerificationReport":
    """Export a candidate. The folder appears once the file was verified on test mixtures.

    An ONNX file stores its weights for `processors`.

    Raises:
        UserError: the output may not be written, a package of the format is missing, there is no such candidate, the base or
            the data are not those of the search, or the file computes something else than the Brevitas network.
    """
    check_output(output)
    EXPORTERS.load(graph_format).check()
    # Brevitas and the exporters take as long to load as all the rest; only this needs them.
    from hwsearch.export.candidate import export_candidate

    workspace = run.workspace
    run.row(candidate)
    check_provenance(workspace)
    opened = open_candidate(run, prepare(workspace), candidate)
    examples = [
        Example(*load_mixture(workspace.data_folder, mixture), mixture.doa_deg)
        for mixture in evaluation_mixtures(workspace)[:VERIFICATION_MIXTURES]
    ]
    fidelity = Fidelity.POST_TRAINING if opened.state is None else run.table.fidelity
    candidate_state = opened.configuration.allocation if opened.state is None else opened.state
    structure = opened.configuration.kept
    return export_candidate(opened.base, candidate_state, examples, output, graph_format, fidelity, processors, structure)


def evaluation_mixtures(workspace: Workspace) -> Sequence[Mixture]:
    """Return the test mixtures, or the validation mixtures if the experiment makes no others."""
    split = Split.TEST if workspace.experiment.data.fixed_count(Split.TEST) else Split.VALIDATION
    return open_dataset(workspace.data_folder, split)


def example_recording(workspace: Workspace) -> tuple[Path, float | None]:
    """Return a recording to try an exported file on, and the target's direction if the network uses it."""
    mixture = evaluation_mixtures(workspace)[0]
    directed = workspace.experiment.separator.spectral is not None
    return workspace.data_folder / mixture.mixture_path, mixture.doa_deg if directed else None
