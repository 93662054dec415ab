"""A search that trains what it promotes, from the command line's point of view: a small untrained base, seconds of work."""

import json
from pathlib import Path
from typing import Any

import fast_bss_eval
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hwsearch import executor
from hwsearch.data.dataset import load_mixture, open_dataset
from hwsearch.errors import UserError
from hwsearch.executor import LocalExecutor
from hwsearch.experiment import Fidelity, Split, WorkersConfig
from hwsearch.search.plan import trainings
from hwsearch.search.progress import SearchProgress, SearchSummary
from hwsearch.sensitivity import work
from hwsearch.separator.trained import load_trained
from hwsearch.workflow.caller import Listener, Resources
from hwsearch.workflow.checks import check
from hwsearch.workflow.evaluate import candidate_system
from hwsearch.workflow.runs import open_candidate, read_run
from hwsearch.workflow.search import search
from hwsearch.workflow.training import prepare
from hwsearch.workspace import Workspace
from tests.pretended import pretended_cuda
from tests.sensitivity.workspaces import BASE, SEARCH, build, make_experiment
from tests.tiny import read_events

Promoted = tuple[Workspace, SearchSummary, dict[str, tuple[int, int]]]
QAT = {"examples": 4, "batch_size": 2, "segment_seconds": 0.5, "steps": 2}


def si_snr_db(estimate: NDArray[np.float32], target: NDArray[np.float32]) -> float:
    """By another library."""
    return float(fast_bss_eval.si_sdr(target[None].astype(float), estimate[None].astype(float), zero_mean=True)[0])


def workspace_of(runs: Path, name: str = "trained", device: str = "cpu", **search: Any) -> Workspace:
    wanted = {**SEARCH, "trials": 8, "targets": ["bitfusion"], "priors": ["output-noise-ratio"], **search}
    nas = {"steps": 2, "cost_weights": [0.5, 20.0]}
    quantization = {"calibration_mixtures": 2, "weight_scale_method": "max"}
    sections = {
        "quantization": quantization,
        "qat": QAT,
        "nas": nas,
        "search": wanted,
        "workers": {"device": device, "gpus": 0.5},
    }
    return Workspace(runs, make_experiment(name=name, base=str(runs / BASE), **sections))


class Last(Listener):
    """Keeps the last that was told of each step."""

    def __init__(self) -> None:
        self.told: dict[str, tuple[int, int]] = {}

    def advanced(self, what: str, done: int, total: int) -> None:
        self.told[what] = done, total

    def scored(self, progress: SearchProgress) -> None:
        self.told[progress.fidelity.value] = progress.scored, progress.trials


def run(workspace: Workspace, workers: int = 0) -> tuple[SearchSummary, dict[str, tuple[int, int]]]:
    """Search in this process; also the last that was told of each step."""
    listener = Last()
    return search(workspace, Resources(1, workers), listener), listener.told


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("pipeline"))


PROMOTIONS = [{"fidelity": "short-qat", "keep": 2}]


@pytest.fixture(scope="module")
def promoted(runs: Path) -> Promoted:
    workspace = workspace_of(runs, promotions=PROMOTIONS)
    check(workspace, may_train=False)
    return workspace, *run(workspace)


def test_promoted_candidates_are_trained_and_kept(promoted: Promoted) -> None:
    workspace, summary, told = promoted
    assert trainings(workspace.experiment)
    assert summary.scored == 8
    trained = summary.promoted[Fidelity.SHORT_QAT]
    assert told["training mixtures"][0] == told["training mixtures"][1]
    assert told["sensitivities"][0] == told["sensitivities"][1]
    assert told["short-qat"] == (trained, trained)
    opened = read_run(workspace.folder)
    assert opened.table.fidelity is Fidelity.SHORT_QAT
    assert len(opened.table) == len(opened.table.weights) == trained
    assert {path.name for path in (workspace.folder / "trained").iterdir()} == set(opened.table.weights.values())
    assert len(read_run(workspace.folder, Fidelity.POST_TRAINING).table) == 8


def test_a_trained_candidate_separates_as_it_was_scored(promoted: Promoted) -> None:
    workspace, _, _ = promoted
    opened, prepared = read_run(workspace.folder), prepare(workspace)
    number = int(opened.table.candidate[-1])
    candidate = open_candidate(opened, prepared, number)
    system = candidate_system(candidate.base, candidate.configuration.allocation, candidate.state)
    found = []
    for mixture in open_dataset(workspace.data_folder, Split.VALIDATION):
        sound, target = load_mixture(workspace.data_folder, mixture)
        estimate = system(sound, mixture.target.doa_deg)
        found.append(si_snr_db(estimate, target) - si_snr_db(sound[0], target))
    recorded = opened.table.columns["si_snr_improvement_db"][opened.row(number)]
    assert recorded == pytest.approx(np.mean(found), abs=0.02)
    plain = read_run(workspace.folder, Fidelity.POST_TRAINING)
    assert open_candidate(plain, prepared, number).state is None


def test_training_is_no_part_of_what_goes_on(promoted: Promoted) -> None:
    workspace, _, _ = promoted
    before = {path: path.stat().st_mtime_ns for path in (workspace.folder / "trained").iterdir()}
    record = (workspace.folder / "record.jsonl").read_bytes()
    summary, told = run(workspace)
    assert summary.scored == 8
    assert "sensitivities" not in told
    assert {path: path.stat().st_mtime_ns for path in (workspace.folder / "trained").iterdir()} == before
    assert (workspace.folder / "record.jsonl").read_bytes() == record


def test_weights_that_are_gone_are_named(runs: Path, promoted: Promoted) -> None:
    workspace, _, _ = promoted
    opened, prepared = read_run(workspace.folder), prepare(workspace)
    number, name = next(iter(opened.table.weights.items()))
    path = workspace.folder / "trained" / name
    content = path.read_bytes()
    for damaged in (None, content[:-9], b"no weights"):
        path.unlink()
        if damaged is not None:
            path.write_bytes(damaged)
        try:
            with pytest.raises(UserError) as refused:
                open_candidate(opened, prepared, number)
        finally:
            path.write_bytes(content)
        assert str(path) in str(refused.value)
        assert "\n" not in str(refused.value)
    state = load_trained(path, prepared, opened.configuration(number).allocation)
    assert all(torch.isfinite(tensor).all() for tensor in state.parameters.values() if tensor.is_floating_point())


def test_the_strategy_nas_scores_what_the_differentiable_search_finds(runs: Path) -> None:
    workspace = workspace_of(runs, "nas", strategy="nas", trials=30)
    summary, told = run(workspace)
    assert told["differentiable search"][0] == told["differentiable search"][1] > 0
    table = read_run(workspace.folder).table
    assert set(table.strategy.tolist()) <= {"uniform", "ends-at-8", "nas"}
    assert "sensitivities" not in told
    assert not summary.interrupted
    again, told = run(workspace)  # what was found is kept
    assert "differentiable search" not in told or told["differentiable search"][0] == told["differentiable search"][1]
    assert again.scored == summary.scored


@pytest.mark.parametrize("search_section", [{}, {"strategy": "kl"}, {"sampler": "random"}])
def test_where_no_site_is_free_the_one_allocation_is_scored(runs: Path, tmp_path: Path, search_section: dict[str, Any]) -> None:
    experiment = workspace_of(runs, allowed={"*": [8]}, **search_section).experiment
    for shared in ("data", "corpora"):
        (tmp_path / shared).symlink_to(runs / shared)
    summary, told = run(Workspace(tmp_path, experiment))
    assert summary.scored == 1
    assert "sensitivities" not in told
    assert set(read_run(tmp_path / "trained").table.configuration(0).allocation.by_site.values()) == {8}


@pytest.mark.parametrize(
    ("search_section", "why"),
    [
        ({"promotions": PROMOTIONS}, "fidelity 'short-qat' trains"),
        ({"priors": ["recoverability"]}, "recoverability trains with each site quantized"),
        ({"strategy": "nas"}, "the differentiable search trains"),
        ({"nas": True}, "the differentiable search trains"),
    ],
)
def test_what_trains_is_refused_before_any_work_where_there_is_nothing_to_train_on(
    runs: Path, tmp_path: Path, search_section: dict[str, Any], why: str
) -> None:
    workspace = workspace_of(runs, **search_section)
    content = workspace.experiment.model_dump(mode="json")
    content["data"]["rooms"]["count"] = {"validation": 1}
    no_rooms = type(workspace.experiment).model_validate(content)
    content["data"]["rooms"]["count"] = {"train": 1, "validation": 1}
    content["data"]["corpora"][0]["splits"] = {"validation": 1.0}
    no_speech = type(workspace.experiment).model_validate(content)
    for experiment, start, end in (
        (no_rooms, "data.rooms.count: no 'train'; ", "wanted rooms to train in"),
        (no_speech, "data.corpora: none has a share 'train'; ", "wanted speech for it"),
    ):
        with pytest.raises(UserError) as refused:
            check(Workspace(tmp_path, experiment), may_train=False)
        assert str(refused.value) == f"{start}{why}, {end}"
    assert not list(tmp_path.iterdir())


def test_a_cost_of_the_differentiable_search_that_there_is_not_is_refused_before_any_work(runs: Path, tmp_path: Path) -> None:
    workspace = workspace_of(runs, strategy="nas")
    changed = workspace.experiment.model_copy(update={"nas": workspace.experiment.nas.model_copy(update={"cost": "weight"})})
    with pytest.raises(UserError, match=r"nas\.cost is 'weight'; wanted one of size_bytes"):
        check(Workspace(tmp_path, changed), may_train=False)
    assert not list(tmp_path.iterdir())


def test_a_search_on_a_gpu_is_that_on_the_processor(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From sensitivities to trained candidates; on a pretended one, which rounds as the processor does."""
    monkeypatch.setattr(work, "through_onednn", lambda graph: graph)  # kernels of the processor alone
    priors = ["curvature", "recoverability"]
    wanted: dict[str, Any] = {"priors": priors, "nas": True, "trials": 6, "promotions": PROMOTIONS}
    here, there = (workspace_of(runs, f"on-{device}", device, **wanted) for device in ("cpu", "cuda"))
    run(here)
    shares = []

    def in_this_process(factory: Any, workers: int, *, each: WorkersConfig, **_: Any) -> LocalExecutor[Any, Any]:
        shares.append((each.device, each.gpus))
        return LocalExecutor(factory)

    monkeypatch.setattr(executor, "RayExecutor", in_this_process)
    with pretended_cuda() as operations:
        run(there, workers=2)
    assert shares == 3 * [("cuda", 0.5)]  # sensitivities, differentiable search, candidates
    assert operations["convolution"] > 100
    assert operations["convolution_backward"] > 10
    for path in (*(Path("sensitivity") / f"{prior}.json" for prior in priors), Path("nas.json")):
        found = [json.loads((workspace.folder / path).read_text()) for workspace in (here, there)]
        assert found[0].get("results", found[0]) == found[1].get("results", found[1]), path
    kept = ("allocation", "fidelity", "metrics", "costs", "strategy")
    scored = [[{key: one[key] for key in kept} for one in read_events(workspace.folder)] for workspace in (here, there)]
    assert scored[0] == scored[1]
    assert {one["fidelity"] for one in scored[0]} == {"post-training", "short-qat"}
