"""`hwsearch train-shared`: one training for all allocations of an experiment, kept in the run folder."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hwsearch.errors import UserError
from hwsearch.search.space import build_space
from hwsearch.search.structure import structure_values
from hwsearch.separator.shared import load_shared
from hwsearch.separator.untrained import untrained_sites
from hwsearch.training import shared as shared_training
from hwsearch.workflow.caller import Listener
from hwsearch.workflow.shared import CHECKPOINT_FILE, train_shared_network
from hwsearch.workflow.training import prepare
from hwsearch.workspace import Workspace
from tests.pretended import pretended_cuda
from tests.sensitivity.workspaces import BASE, SEARCH, build, make_experiment
from tests.tiny import hwsearch, refusal, write_tiny

SHARED = {"steps": 6, "batch_size": 2, "report_steps": 4}
SPACE = {**SEARCH, "weight_bits": (2, 8), "trials": 8, "targets": ["bitfusion"]}
TRAINABLE = (
    ("{ validation = 0.5, test = 0.5 }", "{ train = 0.4, validation = 0.3, test = 0.3 }"),
    ("{ validation = 2, test = 2 }", "{ train = 1, validation = 1, test = 1 }"),
)


def workspace_of(runs: Path, name: str = "shared", **sections: Any) -> Workspace:
    quantization = {"calibration_mixtures": 2, "weight_scale_method": "max"}
    given = {"shared": SHARED, "quantization": quantization, "search": SPACE, **sections}
    return Workspace(runs, make_experiment(name=name, base=str(runs / BASE), **given))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("shared"))


class Told(Listener):
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.steps: list[tuple[int, int]] = []

    def advanced(self, what: str, done: int, total: int) -> None:
        if what == "shared network":
            self.steps.append((done, total))

    def said(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture(scope="module")
def trained(runs: Path) -> tuple[Workspace, Told]:
    workspace, told = workspace_of(runs), Told()
    train_shared_network(workspace, 1, told)
    return workspace, told


def test_it_trains_reports_and_keeps_the_network(trained: tuple[Workspace, Told]) -> None:
    workspace, told = trained
    assert told.steps == [(step, 6) for step in range(1, 7)]
    reports = [line.split(":")[0] for line in told.lines if "SI-SNR" in line]
    assert reports == [f"shared network, step {step}/6" for step in (0, 4, 6)]
    assert "at 2 bits" in told.lines[-2]
    assert "at 8 bits" in told.lines[-2]
    widths = dict(build_space(workspace.experiment.search, untrained_sites(workspace.experiment)).widths)
    state = load_shared(workspace.shared_path, prepare(workspace), widths)
    assert (state.steps, state.widths) == (6, widths)
    assert not (workspace.folder / CHECKPOINT_FILE).exists()


def test_the_same_call_again_changes_nothing(trained: tuple[Workspace, Told]) -> None:
    workspace, _ = trained
    before, told = workspace.shared_path.read_bytes(), Told()
    train_shared_network(workspace, 1, told)
    assert told.steps == []
    assert workspace.shared_path.read_bytes() == before


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"shared": {**SHARED, "steps": 7}}, r"trained by an experiment 'shared' whose data, search space, \[shared\] or"),
        (
            {"search": {**SPACE, "allowed": {"*.weight": (3, 8)}, "trials": 99}},
            "of another search space: it has .* wanted 3 bits",
        ),
        ({"quantization": {"calibration_mixtures": 1}}, "of another network or .quantization."),
    ],
    ids=["steps", "space", "quantization"],
)
def test_a_network_of_another_experiment_is_refused(
    trained: tuple[Workspace, Told], runs: Path, sections: dict[str, Any], message: str
) -> None:
    before = trained[0].shared_path.read_bytes()
    with pytest.raises(UserError, match=message) as refused:
        train_shared_network(workspace_of(runs, **sections), 1)
    assert str(refused.value).startswith(str(trained[0].shared_path))
    assert "\n" not in str(refused.value)
    assert trained[0].shared_path.read_bytes() == before


def test_the_device_of_the_workers_trains(trained: tuple[Workspace, Told], runs: Path) -> None:
    workers, search = {"device": "cuda", "gpus": 0.5}, {**SPACE, "validation_mixtures": 1}
    workspace = workspace_of(runs, "elsewhere", workers=workers, search=search, shared={**SHARED, "steps": 1})
    with pretended_cuda() as operations:
        train_shared_network(workspace, 1)
    assert operations["hardtanh_backward"] > 10
    assert load_file(workspace.shared_path).keys() == load_file(trained[0].shared_path).keys()


@pytest.mark.parametrize("trunk", [(8,), (16,)])
def test_structures_are_trained_and_reported(runs: Path, trunk: tuple[int, ...]) -> None:
    structure = {"*.kept": [0], "*.channels": [0.25, 0.5]}
    search = {**SPACE, "trunk_bits": trunk, "structure": structure}
    workspace, told = workspace_of(runs, f"structures-{trunk[0]}", search=search), Told()
    train_shared_network(workspace, 1, told)
    base = prepare(workspace)
    values = structure_values(workspace.experiment.search.structure, base.options)
    state = load_shared(workspace.shared_path, base, {}, values)
    assert state.structure == values
    assert state.orders.keys() == {name for name in values if not name.endswith(".kept")}
    for name in ("0.5 of channels", "0.25 of channels", "half of blocks"):
        assert f"at 8 bits, {name}" in told.lines[-2]
    again = Told()
    train_shared_network(workspace, 1, again)
    assert again.steps == []
    fewer = workspace_of(runs, workspace.experiment.name, search={**search, "structure": {"*.channels": [0.75]}})
    with pytest.raises(UserError, match=r"another search space: it keeps '.*' at \[.*\]; wanted \d+, too"):
        train_shared_network(fewer, 1)


def test_structures_are_trained_on_the_device_of_the_workers(runs: Path) -> None:
    workers = {"device": "cuda", "gpus": 0.5}
    search = {**SPACE, "validation_mixtures": 1, "structure": {"*.kept": [0], "*.channels": [0.25, 0.5]}}
    workspace = workspace_of(runs, "structures-elsewhere", workers=workers, search=search, shared={**SHARED, "steps": 2})
    with pretended_cuda() as operations:
        train_shared_network(workspace, 1)
    assert operations["index_select"] > 10


def test_a_diverging_loss_is_one_line(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_training, "distilled_loss", lambda *_: torch.tensor(torch.nan))
    workspace = workspace_of(runs, "diverging")
    with pytest.raises(UserError, match="the loss became nan at step 1 of 6 of the shared network"):
        train_shared_network(workspace, 1)
    assert not workspace.shared_path.exists()


def test_an_experiment_without_a_training_split_is_refused(tmp_path: Path) -> None:
    file = write_tiny(tmp_path / "tiny.toml")
    message = refusal(hwsearch("train-shared", file, "--runs-dir", tmp_path / "runs"))
    assert message == "data.rooms.count: no 'train'; the shared network trains, wanted rooms to train in"
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_killed_command_goes_on_with_the_same_bits(runs: Path) -> None:
    """Killed by SIGKILL between two steps, in a process of its own. The short form is in `tests/training`."""
    workspace = workspace_of(runs, "killed")
    code = (
        "import os, signal, sys; from pathlib import Path; from tests.test_shared_command import *\n"
        "class Kill(Listener):\n"
        "    def advanced(self, what, done, total):\n"
        "        if what == 'shared network' and done == 5: os.kill(os.getpid(), signal.SIGKILL)\n"
        "torch.set_num_threads(1); shared_training.CHECKPOINT_STEPS = 2\n"
        "train_shared_network(workspace_of(Path(sys.argv[1]), 'killed'), 1, Kill())"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(runs)], cwd=Path(__file__).parents[1], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert (workspace.folder / CHECKPOINT_FILE).exists()
    told = Told()
    train_shared_network(workspace, 1, told)
    assert told.steps[0] == (5, 6)
    whole = workspace_of(runs, "whole")
    train_shared_network(whole, 1)
    found, wanted = load_file(workspace.shared_path), load_file(whole.shared_path)
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_the_command_says_where_the_network_is(tmp_path: Path) -> None:
    sections = "[shared]\nsteps = 2\nbatch_size = 1\nreport_steps = 9\n[qat]\nexamples = 2\nsegment_seconds = 0.5\n[search]\n"
    narrow = ("validation_mixtures = 3\n", "validation_mixtures = 1\nweight_bits = [2, 8]\n")
    plain = 'calibration_mixtures = 1\nrounding = "nearest"\nweight_scale_method = "max"\ncentre_trunk = false\n'
    changes = ("[search]\n", sections), narrow, ("calibration_mixtures = 2\n", f"{plain}bias_correction = false\n")
    file = write_tiny(tmp_path / "tiny.toml", *TRAINABLE, *changes)
    answer = hwsearch("train-shared", file, "--runs-dir", tmp_path / "runs", "--processes", 1)
    assert answer.code == 0, answer.stderr
    path = tmp_path / "runs" / "tiny" / "shared-network.safetensors"
    assert f"shared network: {path}\n" in answer.stderr
    assert path.is_file()
