"""Scoring at fidelities that train: weights are written once and found again, and full precision is never trained."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import fast_bss_eval
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from hwsearch.data.dataset import load_mixture, open_dataset
from hwsearch.experiment import Fidelity, Split
from hwsearch.search import scoring
from hwsearch.search.scoring import ScorerFactory, ScoringJob, TrainedFile, trained_name
from hwsearch.separator.allocation import BitAllocation
from hwsearch.separator.configuration import Configuration
from hwsearch.separator.prepare import prepare_base
from hwsearch.separator.trained import TrainedState, load_trained, trained_network
from hwsearch.training.pool import build_pool
from hwsearch.training.qat import TrainingOptions, train_quantized
from hwsearch.workspace import Workspace
from tests.sensitivity.workspaces import BASE, build, make_experiment
from tests.separator.small import RELU, uniform

SHORT, FULL = Fidelity.SHORT_QAT, Fidelity.FULL_QAT
FOUR = uniform(RELU, 4, 8)
QUALITY = "si_snr_improvement_db"


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> ScorerFactory:
    """Of a small untrained base with three validation mixtures and four to train on."""
    runs = build(tmp_path_factory.mktemp("trained"))
    qat = {"examples": 4, "batch_size": 2, "segment_seconds": 0.5, "steps": 4, "full_steps": 6, "learning_rate": 1e-3}
    experiment = make_experiment(base=str(runs / BASE), qat=qat)
    workspace = Workspace(runs, experiment)
    pool = build_pool(workspace, 1, lambda done, total: None)
    return ScorerFactory(experiment, workspace.base_path, workspace.data_folder, runs / "calibration.json", pool)


Score = Callable[[ScoringJob], Mapping[str, float]]


@pytest.fixture(scope="module")
def score(factory: ScorerFactory) -> Score:
    return factory()


def job(
    folder: Path, allocation: BitAllocation = FOUR, fidelity: Fidelity = SHORT, start: TrainedFile | None = None
) -> ScoringJob:
    name = trained_name("e", Configuration(allocation), fidelity, None if start is None else start.path.name)
    return ScoringJob(Configuration(allocation), fidelity, folder / name, start)


def si_snr_db(estimate: NDArray[np.float32], target: NDArray[np.float32]) -> float:
    """By another library."""
    return float(fast_bss_eval.si_sdr(target[None].astype(float), estimate[None].astype(float), zero_mean=True)[0])


def brevitas_improvement(factory: ScorerFactory, made: ScoringJob) -> float:
    """Mean over the validation set of the trained Brevitas network, SI-SNR by another library."""
    prepared = prepare_base(factory.experiment, factory.base, factory.data_folder, factory.calibration)
    assert made.output is not None
    network = trained_network(prepared, load_trained(made.output, prepared, made.configuration.allocation))
    found = []
    for mixture in open_dataset(factory.data_folder, Split.VALIDATION):
        sound, target = load_mixture(factory.data_folder, mixture)
        with torch.no_grad():
            direction = torch.tensor([mixture.target.doa_deg])
            estimate = prepared.separator.separate(torch.from_numpy(sound)[None], direction, network)[0].numpy()
        found.append(si_snr_db(estimate, target) - si_snr_db(sound[0], target))
    return float(np.mean(found))


def test_a_trained_candidate_scores_what_its_brevitas_network_does(factory: ScorerFactory, score: Score, tmp_path: Path) -> None:
    made = job(tmp_path)
    found = score(made)
    assert found[QUALITY] == pytest.approx(brevitas_improvement(factory, made), abs=0.02)
    assert found["utterances"] == 3.0
    assert found[QUALITY] != score(ScoringJob(Configuration(FOUR), Fidelity.POST_TRAINING))[QUALITY]
    assert [path.name for path in tmp_path.iterdir()] == [trained_name("e", Configuration(FOUR), SHORT, None)]


def test_a_second_attempt_finds_the_weights_and_trains_no_more(factory: ScorerFactory, score: Score, tmp_path: Path) -> None:
    """A worker that died behind the training left its weights: without training mixtures they can only be found."""
    made = job(tmp_path)
    first = score(made)
    content, written = made.output.read_bytes(), made.output.stat().st_mtime_ns
    again = replace(factory, pool=None)()
    assert again(made) == pytest.approx(first, abs=1e-6)
    assert (made.output.read_bytes(), made.output.stat().st_mtime_ns) == (content, written)
    with pytest.raises(ValueError, match="wants training mixtures"):
        again(job(tmp_path, uniform(RELU, 3, 8)))


def test_the_same_job_trains_the_same_weights_on_any_worker(factory: ScorerFactory, score: Score, tmp_path: Path) -> None:
    files = []
    for name, scorer in (("a", score), ("b", factory())):
        (tmp_path / name).mkdir()
        made = job(tmp_path / name)
        scorer(made)
        files.append(load_file(made.output))
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])


def test_fidelities_train_for_as_long_as_the_experiment_says(factory: ScorerFactory, score: Score, tmp_path: Path) -> None:
    prepared = prepare_base(factory.experiment, factory.base, factory.data_folder, factory.calibration)
    short, full = job(tmp_path), job(tmp_path, fidelity=FULL)
    score(short), score(full)
    warm = job(tmp_path, fidelity=FULL, start=TrainedFile(short.output, short.configuration))
    score(warm)
    steps = [load_trained(made.output, prepared, FOUR).steps for made in (short, full, warm)]
    assert steps == [4, 6, 10]
    assert len({made.output for made in (short, full, warm)}) == 3


def test_a_long_training_takes_the_state_that_is_best_on_the_validation_set(
    score: Score, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its judge gives what the scorer finds; a short training has none."""
    seen: list[tuple[TrainingOptions, TrainedState]] = []

    def watched(*arguments: Any, options: TrainingOptions, **named: Any) -> TrainedState:
        state = train_quantized(*arguments, options=options, **named)
        seen.append((options, state))
        return state

    monkeypatch.setattr(scoring, "train_quantized", watched)
    for made in (job(tmp_path), job(tmp_path, fidelity=FULL)):
        found = score(made)[QUALITY]
        options, state = seen[-1]
        assert options.checkpoint == made.checkpoint
        assert (options.judge is None) == (made.fidelity is SHORT)
        if options.judge is not None:
            assert options.judge(state) == pytest.approx(found, abs=1e-6)


def test_a_warm_start_may_be_of_another_allocation(score: Score, tmp_path: Path) -> None:
    wide, narrow = job(tmp_path), uniform(RELU, 3, 8)
    score(wide)
    cold, warm = job(tmp_path, narrow), job(tmp_path, narrow, start=TrainedFile(wide.output, wide.configuration))
    score(cold), score(warm)
    files = [load_file(made.output) for made in (cold, warm)]
    assert not torch.equal(files[0]["mask_head.weight"], files[1]["mask_head.weight"])


@pytest.mark.parametrize("fidelity", [SHORT, FULL])
def test_full_precision_is_never_trained(score: Score, tmp_path: Path, fidelity: Fidelity) -> None:
    """What candidates are compared with stays the same at every fidelity, whether or not the job names a file."""
    full = uniform(RELU, 32, 32)
    plain = score(ScoringJob(Configuration(full), Fidelity.POST_TRAINING))
    assert score(ScoringJob(Configuration(full), fidelity)) == plain
    assert score(job(tmp_path, full, fidelity)) == plain
    assert list(tmp_path.iterdir()) == []
    assert plain["drop_ci95_db"] == 0.0


def test_a_job_that_trains_wants_a_place_for_its_weights(score: Score) -> None:
    with pytest.raises(ValueError, match="wants a place for its weights"):
        score(ScoringJob(Configuration(FOUR), SHORT))


def test_weights_are_named_by_all_that_makes_them() -> None:
    names = {
        trained_name("e", Configuration(allocation, structure), fidelity, start)
        for allocation in (FOUR, uniform(RELU, 3, 8))
        for structure in ((), (("blocks.0.expand.channels", 8),), (("blocks.0.expand.channels", 4),))
        for fidelity in (SHORT, FULL)
        for start in (None, "a.safetensors", "b.safetensors")
    }
    assert len(names) == 36
    same = Configuration(uniform(RELU, 4, 8))
    assert trained_name("e", Configuration(FOUR), SHORT, None) == trained_name("e", same, SHORT, None)
    assert all(name.removesuffix(".safetensors").isalnum() for name in names)
