"""Where an experiment's files lie."""

import json
from pathlib import Path

import pytest

from hwsearch.errors import UserError
from hwsearch.experiment import Experiment, parse_experiment
from hwsearch.files.seals import write_sealed_json
from hwsearch.separator.base import EMBEDDED_BASE
from hwsearch.workspace import Workspace, open_run
from tests.tiny import tiny_content


def experiment(**changes: object) -> Experiment:
    return parse_experiment({**tiny_content(), **changes}, source="here")


def test_everything_lies_below_the_folder_of_all_runs(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, experiment())
    assert workspace.folder == tmp_path / "tiny"
    assert workspace.corpora_folder == tmp_path / "corpora"
    assert workspace.data_folder.parent == tmp_path / "data"


def test_experiments_with_the_same_data_and_seed_share_them(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, experiment())
    assert Workspace(tmp_path, experiment(name="other", search={"trials": 3})).data_folder == workspace.data_folder
    assert Workspace(tmp_path, experiment(seed=4)).data_folder != workspace.data_folder


def test_the_base_is_the_embedded_one_a_named_file_or_the_one_trained_here(tmp_path: Path) -> None:
    assert Workspace(tmp_path, experiment(base="embedded")).base_path == EMBEDDED_BASE
    assert Workspace(tmp_path, experiment(base="some/base.safetensors")).base_path == Path("some/base.safetensors")
    assert Workspace(tmp_path, experiment(base=None)).base_path == tmp_path / "tiny" / "base.safetensors"


def test_a_run_folder_remembers_its_experiment(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, experiment(seed=5))
    workspace.describe()
    assert open_run(workspace.folder) == workspace.experiment


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match=f"{folder}: not a run folder"):
            open_run(folder)
    write_sealed_json(tmp_path / "experiment.json", {**tiny_content(), "colour": "red"})
    with pytest.raises(UserError, match=r"experiment\.json: unknown key 'colour'"):
        open_run(tmp_path)
    (tmp_path / "experiment.json").write_text("[1]")
    with pytest.raises(UserError, match=r"experiment\.json: the file is \[1\]; wanted a table"):
        open_run(tmp_path)


def test_an_experiment_without_a_digest_as_earlier_versions_wrote_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "experiment.json").write_text(json.dumps(tiny_content()))
    assert open_run(tmp_path) == experiment()


def test_an_edited_experiment_of_a_run_is_refused(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, experiment(seed=5))
    workspace.describe()
    path = workspace.folder / "experiment.json"
    path.write_text(path.read_text().replace('"seed": 5', '"seed": 6'))
    with pytest.raises(UserError, match=r"experiment\.json: changed since it was written .*; start the experiment's search"):
        open_run(workspace.folder)
