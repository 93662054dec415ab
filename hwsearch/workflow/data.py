"""An experiment's rooms and mixtures."""

from hwsearch.data.build import DataSet, build_data
from hwsearch.search.driver_account import Step
from hwsearch.workflow.listener import SILENT, Listener
from hwsearch.workspace import Workspace


def build(workspace: Workspace, processes: int, listener: Listener = SILENT) -> DataSet:
    """Build what is missing of the experiment's data.

    Raises:
        UserError: an unusable corpus, recording, room or folder.
    """
    experiment = workspace.experiment
    built = build_data(experiment, workspace.data_folder, workspace.corpora_folder, processes, listener.progress(Step.DATA.value))
    listener.said(f"data: {built.folder}")
    return built
