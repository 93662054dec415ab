from collections.abc import Callable
from pathlib import Path

import pytest

from hwsearch.workspace import Workspace
from tests.sensitivity.workspaces import build, workspace_maker


@pytest.fixture(scope="session")
def data_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all runs with nothing but data in it; tests must not change it."""
    return build(tmp_path_factory.mktemp("sensitivity-data"))


@pytest.fixture
def workspace(data_runs: Path, tmp_path: Path) -> Callable[..., Workspace]:
    """Makes a workspace, with sections of the experiment changed."""
    return workspace_maker(data_runs, tmp_path)
