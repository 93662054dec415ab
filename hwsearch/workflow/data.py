"""An experiment's rooms and mixtures."""

from hwsearch.data.build import build_data
from hwsearch.search.driver_account import Step
from hwsearch.workflow.listener import SILENT, Listener
from hwsearch.workspace import Workspace


def build(workspace: Workspace, processes: int, listener: Listener = SILENT) -> None:
    """Build what is missing of the experiment's data.

    Raises:
        UserError: an unusable corpus, recording, room or folder.
    """
    folder, progress = workspace.data_folder, listener.progress(Step.DATA.value)
    build_data(workspace.experiment, folder, workspace.corpora_folder, processes, progress)
    listener.said(f"data: {folder}")
