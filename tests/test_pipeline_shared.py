"""A search whose candidates have the weights of the shared network: a small untrained base, seconds of work."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hwsearch.data.dataset import load_mixture, open_dataset
from hwsearch.errors import UserError
from hwsearch.executor.portable import contents, moved, unpack
from hwsearch.experiment import FLOAT_BITS, Experiment, Fidelity, Split
from hwsearch.search.identity import search_digest
from hwsearch.search.progress import SearchSummary
from hwsearch.search.scoring import ScorerFactory, ScoringJob
from hwsearch.separator.allocation import uniform
from hwsearch.separator.configuration import Configuration
from hwsearch.separator.shared import load_shared
from hwsearch.separator.trained import trained_network
from hwsearch.view.dry_run import print_plan
from hwsearch.workflow.caller import Resources
from hwsearch.workflow.checks import check, check_searched
from hwsearch.workflow.dry_run import dry_run
from hwsearch.workflow.evaluate import candidate_system
from hwsearch.workflow.runs import open_candidate, read_run
from hwsearch.workflow.search import search
from hwsearch.workflow.training import prepare
from hwsearch.workflow.training_time import TrainingTimes
from hwsearch.workspace import Workspace
from tests.sensitivity.workspaces import BASE, build, make_experiment
from tests.test_pipeline_trained import QAT, Last, si_snr_db
from tests.test_shared_command import SHARED, SPACE
from tests.tiny import read_events

QUALITY = "si_snr_improvement_db"
Searched = tuple[Workspace, SearchSummary, Last]


def experiment_of(runs: Path, name: str = "shared", **search: Any) -> Experiment:
    quantization = {"calibration_mixtures": 2, "weight_scale_method": "max"}
    wanted = {**SPACE, "priors": ["output-noise-ratio"], "fidelity": "shared", **search}
    return make_experiment(name=name, base=str(runs / BASE), quantization=quantization, qat=QAT, shared=SHARED, search=wanted)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="module")
def searched(runs: Path) -> Searched:
    workspace, told = Workspace(runs, experiment_of(runs, promotions=[{"fidelity": "short-qat", "keep": 2}])), Last()
    check(workspace, may_train=False)
    return workspace, search(workspace, Resources(1, 0), told), told


def mean_improvement(workspace: Workspace, separate: Any) -> float:
    """Mean over the validation set, SI-SNR by another library."""
    found = []
    for mixture in open_dataset(workspace.data_folder, Split.VALIDATION):
        sound, target = load_mixture(workspace.data_folder, mixture)
        found.append(si_snr_db(separate(sound, mixture.target.doa_deg), target) - si_snr_db(sound[0], target))
    return float(np.mean(found))


def test_candidates_are_scored_on_the_shared_network_and_trained_from_it(searched: Searched) -> None:
    workspace, summary, told = searched
    assert told.told["shared network"] == (6, 6)
    assert told.told["shared"] == (8, 8)
    trained = summary.promoted[Fidelity.SHORT_QAT]
    assert told.told["short-qat"] == (trained, trained)
    steps = {fidelity: read_run(workspace.folder, fidelity).table.columns["training_steps"] for fidelity in summary.promoted}
    assert set(steps[Fidelity.SHORT_QAT].tolist()) == {8.0}  # those of the shared network, and two of its own
    assert set(read_run(workspace.folder, Fidelity.SHARED).table.columns["training_steps"].tolist()) == {6.0}


def test_a_candidate_is_the_brevitas_network_of_the_shared_weights(searched: Searched) -> None:
    workspace, _, _ = searched
    run, prepared = read_run(workspace.folder, Fidelity.SHARED), prepare(workspace)
    number = int(run.table.candidate[-1])
    opened = open_candidate(run, prepared, number)
    allocation = opened.configuration.allocation
    assert opened.state is not None
    shared = load_shared(workspace.shared_path, prepared, {})
    network = trained_network(prepared, shared.at(allocation))

    def separate(sound: Any, doa_deg: float) -> Any:
        with torch.no_grad():
            return prepared.separator.separate(torch.from_numpy(sound)[None], torch.tensor([doa_deg]), network)[0].numpy()

    recorded = run.table.columns[QUALITY][run.row(number)]
    assert recorded == pytest.approx(mean_improvement(workspace, separate), abs=0.03)
    system = candidate_system(opened.base, allocation, opened.state)
    assert recorded == pytest.approx(mean_improvement(workspace, system), abs=0.02)


def test_full_precision_stays_that_of_the_base(searched: Searched) -> None:
    workspace, _, _ = searched
    references = {event["metrics"][QUALITY] for event in read_events(workspace.folder) if event["candidate"] == 0}
    base = prepare(workspace).separator

    def separate(sound: Any, doa_deg: float) -> Any:
        with torch.no_grad():
            return base(torch.from_numpy(sound)[None], torch.tensor([doa_deg]))[0].numpy()

    wanted = mean_improvement(workspace, separate)
    assert all(found == pytest.approx(wanted, abs=0.02) for found in references)


def test_sensitivities_are_those_of_the_shared_network(searched: Searched, runs: Path) -> None:
    workspace, _, _ = searched
    assert "shared network" in json.loads((workspace.folder / "sensitivity" / "key.json").read_text())["parts"]
    table = workspace.folder / "sensitivity" / "output-noise-ratio.json"
    plain = Workspace(runs, experiment_of(runs, "plain", fidelity="post-training"))
    check(plain, may_train=False)
    search(plain, Resources(1, 0))
    found, other = (json.loads((each.folder / table.relative_to(workspace.folder)).read_text()) for each in (workspace, plain))
    assert found["sites"] == other["sites"]
    assert found != other
    assert not plain.shared_path.exists()


def test_subset_integers_and_repeated_scores_agree(searched: Searched, runs: Path) -> None:
    """The layers on the input are kept for the base and for the shared network apart, whatever was scored before."""
    workspace, _, _ = searched
    experiment = experiment_of(runs, validation_mixtures=2, integer_kernels=True)
    factory = ScorerFactory.of(Workspace(runs, experiment), None)
    score, sites = factory(), prepare(workspace).sites
    eight = Configuration(uniform(sites, 8, 8))
    first = score(ScoringJob(eight, Fidelity.SHARED_SUBSET))
    plain = score(ScoringJob(eight, Fidelity.SUBSET))
    exact = score(ScoringJob(Configuration(uniform(sites, FLOAT_BITS, FLOAT_BITS)), Fidelity.SHARED_SUBSET))
    assert score(ScoringJob(eight, Fidelity.SHARED_SUBSET)) == first
    assert first["utterances"] == 2.0
    assert first[QUALITY] != plain[QUALITY]
    assert exact["training_steps"] == plain["training_steps"] == 0.0
    whole = score(ScoringJob(eight, Fidelity.SHARED))
    assert whole["utterances"] == 3.0
    integer_free = ScorerFactory.of(Workspace(runs, experiment_of(runs, validation_mixtures=2)), None)()
    assert integer_free(ScoringJob(eight, Fidelity.SHARED_SUBSET))[QUALITY] == pytest.approx(first[QUALITY], abs=0.2)


def test_the_network_travels_to_workers_without_the_file_system(searched: Searched, tmp_path: Path) -> None:
    workspace, _, _ = searched
    factory = ScorerFactory.of(workspace, None)
    unpack(contents(factory.files()), tmp_path)
    job = ScoringJob(Configuration(uniform(prepare(workspace).sites, 2, 8)), Fidelity.SHARED)
    assert factory.below(tmp_path)()(job) == factory()(job)
    assert factory.below(tmp_path).shared == moved(workspace.shared_path.resolve(), tmp_path)


def test_the_same_command_again_trains_nothing(searched: Searched) -> None:
    workspace, _, _ = searched
    again = Last()
    search(workspace, Resources(1, 0), again)
    assert "shared network" not in again.told


def test_a_shared_network_that_changed_is_refused(searched: Searched) -> None:
    workspace, _, _ = searched
    check_searched(workspace)
    before = workspace.shared_path.read_bytes()
    workspace.shared_path.write_bytes(before + b"x")
    try:
        with pytest.raises(UserError, match=r"shared-network.safetensors: changed since the search"):
            check_searched(workspace)
        with pytest.raises(UserError, match="its search was made with another shared_sha256"):
            check(workspace, may_train=False)
    finally:
        workspace.shared_path.write_bytes(before)


def test_a_dry_run_says_that_the_network_is_missing(runs: Path) -> None:
    workspace = Workspace(runs, experiment_of(runs, "dry"))
    plan = dry_run(workspace, 0, may_train=False)
    assert "the shared network, which the command trains" in plan.missing
    assert plan.measured is not None
    assert plan.measured.shared_seconds > 0
    assert not workspace.folder.exists()
    assert [(rung.fidelity, rung.candidates) for rung in plan.rungs] == [(Fidelity.SHARED, 8), (Fidelity.POST_TRAINING, 8)]


def test_a_dry_run_estimates_the_training_of_the_network(
    searched: Searched, runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Six steps, and three reports of two uniform allocations."""
    monkeypatch.setattr("hwsearch.workflow.dry_run.time_training", lambda *_: TrainingTimes(candidate=2.0, shared=10.0))
    plan = dry_run(Workspace(runs, experiment_of(runs, "dry")), 0, may_train=False)
    assert plan.measured is not None
    assert plan.measured.shared_seconds == pytest.approx(60.0 + 3 * 2 * plan.measured.seconds_each)
    print_plan(plan)
    assert "shared:   about 1 min" in capsys.readouterr().out
    there = dry_run(searched[0], 0, may_train=False)
    assert there.measured is not None
    assert there.measured.shared_seconds == 0
    assert there.measured.step_seconds == 2.0


def test_the_section_shared_counts_only_for_a_search_that_uses_it(runs: Path) -> None:
    used = experiment_of(runs)
    for experiment, same in ((used, False), (experiment_of(runs, fidelity="post-training"), True)):
        shared = experiment.shared.model_copy(update={"steps": 99})
        changed = experiment.model_copy(update={"shared": shared})
        assert (search_digest(changed) == search_digest(experiment)) is same


@pytest.mark.parametrize(("fidelity", "other"), [("shared", "post-training"), ("post-training", "shared")])
def test_promotions_to_the_other_kind_are_refused(runs: Path, fidelity: str, other: str) -> None:
    with pytest.raises(UserError, match=f"promotions to '{other}' do not go with fidelity '{fidelity}'"):
        experiment_of(runs, fidelity=fidelity, promotions=[{"fidelity": other, "keep": 1}])
