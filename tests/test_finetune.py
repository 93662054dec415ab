"""`hwsearch finetune` on a small untrained base: a kill loses nothing, and what it finds is known to the other commands."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hwsearch.experiment import Fidelity
from hwsearch.search.record import FolderLock
from hwsearch.separator.trained import load_trained
from hwsearch.training import qat
from hwsearch.workflow import finetune as workflow
from hwsearch.workflow.caller import Resources
from hwsearch.workflow.runs import read_run
from hwsearch.workflow.search import search
from hwsearch.workflow.training import prepare
from hwsearch.workspace import Workspace
from tests.sensitivity.workspaces import BASE, SEARCH, build, make_experiment
from tests.tiny import Answer, hwsearch, read_events, refusal, snapshot

STEPS = 12


def workspace_of(runs: Path, name: str = "small", **sections: Any) -> Workspace:
    wanted = {**SEARCH, "trials": 5, "strategy": "uniform", "promotions": [{"fidelity": "short-qat", "keep": 1}]}
    settings = {
        "quantization": {"calibration_mixtures": 2, "weight_scale_method": "max"},
        "qat": {"examples": 4, "batch_size": 2, "segment_seconds": 0.5, "steps": 2, "finetune_steps": STEPS},
        "search": wanted,
    }
    return Workspace(runs, make_experiment(name=name, base=str(runs / BASE), **{**settings, **sections}))


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with one that has searched."""
    runs = build(tmp_path_factory.mktemp("searched"))
    assert search(workspace_of(runs), Resources(1, 0)).scored
    return runs


@pytest.fixture
def workspace(searched: Path, tmp_path: Path) -> Workspace:
    """A copy of its own; the data are shared."""
    shutil.copytree(searched / "small", tmp_path / "small")
    for shared in ("data", "corpora"):
        (tmp_path / shared).symlink_to(searched / shared)
    return Workspace(tmp_path, workspace_of(searched).experiment)


def finetune(workspace: Workspace, *options: object) -> Answer:
    return hwsearch("finetune", workspace.folder, "--workers", 0, "--processes", 1, *options)


def finetuned(workspace: Workspace) -> dict[int, dict[str, Any]]:
    return {event["candidate"]: event for event in read_events(workspace.folder) if event["fidelity"] == "finetuned"}


def parameters(workspace: Workspace, number: int) -> dict[str, torch.Tensor]:
    run = read_run(workspace.folder, Fidelity.FINETUNED)
    path = workspace.folder / "trained" / run.table.weights[number]
    return dict(load_trained(path, prepare(workspace), run.configuration(number).allocation).parameters)


def test_candidates_are_trained_further_and_known_to_other_commands(workspace: Workspace, tmp_path: Path) -> None:
    answer = finetune(workspace, "--candidate", 2, "--candidate", 1)
    assert answer.code == 0, answer.stderr
    found = finetuned(workspace)
    assert set(found) == {0, 1, 2}
    short = {event["candidate"]: event for event in read_events(workspace.folder) if event["fidelity"] == "short-qat"}
    for number in (1, 2):
        own = short.get(number)
        assert found[number]["start"] == (None if own is None else number)
        assert found[number]["metrics"]["training_steps"] == STEPS + (0 if own is None else own["metrics"]["training_steps"])
        after = found[number]["metrics"]["si_snr_improvement_db"]
        (line,) = [line for line in answer.stdout.splitlines() if line.startswith(f"candidate {number}: ")]
        assert line.endswith(f"dB at 'short-qat', {after:.2f} dB finetuned")
    assert answer.stdout.splitlines()[-1].endswith(f"pareto {workspace.folder} --fidelity finetuned")
    assert "candidates, finetuned: 2/2" in answer.stderr
    shown = hwsearch("pareto", workspace.folder, "--fidelity", "finetuned", "--all", "--format", "json")
    assert {row["candidate"] for row in json.loads(shown.stdout)} == {1, 2}
    assert "finetuned" in hwsearch("status", workspace.folder).stdout
    exported = hwsearch(
        "export", workspace.folder, "--candidate", 1, "--fidelity", "finetuned", "--output", tmp_path / "exported"
    )
    assert exported.code == 0, exported.stderr
    again = finetune(workspace, "--candidate", 1, "--steps", 99)
    assert again.code == 0
    assert again.stderr.splitlines() == ["candidate 1 is finetuned already"]
    assert again.stdout.splitlines()[0] in answer.stdout
    assert finetuned(workspace) == found


def test_a_finetuning_that_was_killed_gives_the_same_weights(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Workspace(workspace.runs / "other", workspace.experiment)
    shutil.copytree(workspace.folder, other.folder)
    for shared in ("data", "corpora"):
        (other.runs / shared).symlink_to(workspace.runs / shared)
    assert finetune(other, "--candidate", 1).code == 0
    monkeypatch.setattr(qat, "CHECKPOINT_STEPS", 4)
    examples = []
    loss = qat.distilled_loss

    def dying(*arguments: Any) -> torch.Tensor:
        examples.append(arguments[4])
        if len(examples) == 7:
            raise SystemExit(9)
        return loss(*arguments)

    monkeypatch.setattr(qat, "distilled_loss", dying)
    assert finetune(workspace, "--candidate", 1).code == 9
    assert 1 not in finetuned(workspace)
    assert len(list((workspace.folder / "trained").glob("*.checkpoint"))) == 1
    answer = finetune(workspace, "--candidate", 1)
    assert answer.code == 0, answer.stderr
    assert len(examples) == 7 + STEPS - 4
    assert not list((workspace.folder / "trained").glob("*.checkpoint"))
    ours, theirs = parameters(workspace, 1), parameters(other, 1)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_an_interrupted_finetuning_goes_on(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    loss = qat.distilled_loss

    def counted(*arguments: Any) -> torch.Tensor:
        seen.append(arguments[4])
        return loss(*arguments)

    def look() -> None:
        if len(seen) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(qat, "distilled_loss", counted)
    with monkeypatch.context() as patch:
        patch.setattr(qat, "checkpoint", look)
        answer = finetune(workspace, "--candidate", 1)
    assert answer.code == 130
    assert answer.stderr.splitlines()[-1] == "hwsearch: interrupted; the same command goes on where it stopped"
    assert finetune(workspace, "--candidate", 1).code == 0
    assert len(seen) == STEPS
    assert set(finetuned(workspace)) == {0, 1}


def test_a_diverging_loss_is_one_line_and_may_be_tried_again(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(qat, "distilled_loss", lambda *_: torch.tensor(torch.nan))
        said = refusal(finetune(workspace, "--candidate", 1))
    assert said.startswith("candidate 1 was not finetuned: TrainingDivergedError: the loss became nan at training step 1 of 12; ")
    assert "wanted a lower qat.learning_rate" in said
    assert set(finetuned(workspace)) == {0}
    assert finetune(workspace, "--candidate", 1).code == 0


@pytest.fixture
def untouched(workspace: Workspace) -> Iterator[Workspace]:
    """A run in which nothing may change."""
    before = snapshot(workspace.folder)
    yield workspace
    after = snapshot(workspace.folder)
    after.pop("search.lock", None), before.pop("search.lock", None)
    assert after == before


def test_candidates_that_are_not_there_are_refused(untouched: Workspace) -> None:
    folder = untouched.folder
    said = refusal(finetune(untouched, "--candidate", 1, "--candidate", 99))
    assert said == f"{folder}: no candidate 99; 'hwsearch pareto {folder}' lists them"
    assert "--candidate" in refusal(finetune(untouched))
    assert "--steps" in refusal(finetune(untouched, "--candidate", 1, "--steps", 0))
    assert "not a run folder" in refusal(hwsearch("finetune", untouched.runs, "--candidate", 1))


def test_a_candidate_that_was_not_scored_is_refused(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    path = workspace.folder / "record.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    last = max(number for number, line in enumerate(lines) if b'"event":"asked"' in line)
    path.write_bytes(b"".join(lines[: last + 1]))
    number = json.loads(lines[last])["candidate"]
    content = path.read_bytes()
    said = refusal(finetune(workspace, "--candidate", number))
    assert said == f"{workspace.folder}: candidate {number} is not scored yet; wanted one that was scored"
    assert path.read_bytes() == content


def test_a_run_that_a_driver_holds_is_refused(workspace: Workspace) -> None:
    before = (workspace.folder / "record.jsonl").read_bytes()
    with FolderLock(workspace.folder):
        assert "is searching here" in refusal(finetune(workspace, "--candidate", 1))
    assert (workspace.folder / "record.jsonl").read_bytes() == before


def test_an_experiment_without_training_split_is_refused(untouched: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    content = untouched.experiment.model_dump(mode="json")
    content["data"]["rooms"]["count"] = {"validation": 1}
    experiment = type(untouched.experiment).model_validate(content)
    monkeypatch.setattr("hwsearch.workflow.runs.open_run", lambda folder: experiment)
    said = refusal(finetune(untouched, "--candidate", 1))
    assert said == "data.rooms.count: no 'train'; finetuning trains, wanted rooms to train in"


def test_the_number_of_steps_is_no_part_of_what_a_search_is(workspace: Workspace) -> None:
    """A run of an experiment that differs in it alone goes on."""
    content = workspace.experiment.model_dump(mode="json")
    content["qat"]["finetune_steps"] = 7
    changed = Workspace(workspace.runs, type(workspace.experiment).model_validate(content))
    changed.describe()
    found = workflow.finetune(changed, [1], resources=Resources(1, 0))
    assert [each.candidate for each in found] == [1]
    before = {event["candidate"]: event for event in read_events(workspace.folder) if event["fidelity"] == "short-qat"}
    steps = before[1]["metrics"]["training_steps"] if 1 in before else 0
    assert finetuned(changed)[1]["metrics"]["training_steps"] == steps + 7
