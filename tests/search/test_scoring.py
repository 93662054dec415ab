"""The quality of an allocation, against the separator itself and SI-SNR of another library."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import fast_bss_eval
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from hwsearch.data.arrays import ARRAYS
from hwsearch.experiment import Fidelity, SeparatorConfig, Split
from hwsearch.search.mixture_batches import SILENT_DB
from hwsearch.search.scoring import ScorerFactory, ScoringJob, first_fidelity
from hwsearch.separator.allocation import BitAllocation
from hwsearch.separator.base import EMBEDDED_BASE, load_base, save_base
from hwsearch.separator.configuration import Configuration
from hwsearch.separator.prepare import PreparedBase, prepare_base
from hwsearch.separator.quantized import build_quantized
from hwsearch.separator.separator import MaskFunction, build_separator
from tests.separator.small import uniform
from tests.tiny import Tiny
from tests.travel import LONGEST, travelled

Score = Callable[[BitAllocation], Mapping[str, float]]
PLAIN = Fidelity.POST_TRAINING
CONFIG = SeparatorConfig()
FULL_PRECISION = uniform(CONFIG, 32, 32)


@pytest.fixture(scope="module")
def score(tiny: Tiny) -> Score:
    scorer = tiny.scorer_factory()
    return lambda allocation: scorer(ScoringJob(Configuration(allocation), PLAIN))


@pytest.fixture(scope="module")
def prepared(tiny: Tiny) -> PreparedBase:
    workspace = tiny.workspace
    cache = workspace.folder / "calibration.json"
    return prepare_base(workspace.experiment, workspace.base_path, workspace.data_folder, cache)


def si_snr_db(estimate: NDArray[np.float32], target: NDArray[np.float32]) -> float:
    return float(fast_bss_eval.si_sdr(target[None].astype(float), estimate[None].astype(float), zero_mean=True)[0])


def improvements(tiny: Tiny, mask: MaskFunction | None) -> NDArray[np.float64]:
    """SI-SNR improvement of every validation mixture, by the embedded base as it is, or with another mask network."""
    separator, _ = load_base(EMBEDDED_BASE)
    found = []
    for mixture, sound, target in tiny.mixtures(Split.VALIDATION):
        with torch.no_grad():
            direction = torch.tensor([mixture.target.doa_deg])
            estimate = separator.separate(torch.from_numpy(sound)[None], direction, mask or separator.network)[0].numpy()
        found.append(si_snr_db(estimate, target) - si_snr_db(sound[0], target))
    return np.array(found)


def half_width(values: NDArray[np.float64]) -> float:
    """Of the 95 % interval of the mean: t(n - 1) times the standard error."""
    spread = np.sqrt(((values - values.mean()) ** 2).sum() / (len(values) - 1))
    return float(stats.t.ppf(0.975, len(values) - 1) * spread / np.sqrt(len(values)))


def test_full_precision_scores_what_the_float_separator_does(tiny: Tiny, score: Score) -> None:
    wanted = improvements(tiny, None)
    found = score(FULL_PRECISION)
    assert found["si_snr_improvement_db"] == pytest.approx(wanted.mean(), abs=1e-3)
    assert found["si_snr_improvement_ci95_db"] == pytest.approx(half_width(wanted), abs=1e-3)
    assert found["drop_ci95_db"] == 0.0
    assert found["utterances"] == len(wanted) == 3


@pytest.mark.parametrize(("weights", "activations"), [(8, 8), (4, 8), (2, 4), (6, 32)])
def test_an_allocation_scores_what_its_brevitas_network_does(
    tiny: Tiny, score: Score, prepared: PreparedBase, weights: int, activations: int
) -> None:
    allocation = uniform(CONFIG, weights, activations)
    network = build_quantized(prepared.graph, allocation, prepared.calibration, prepared.quantization, prepared.weights)
    wanted, full = improvements(tiny, network), improvements(tiny, None)
    found = score(allocation)
    assert found["si_snr_improvement_db"] == pytest.approx(wanted.mean(), abs=0.05)
    assert found["si_snr_improvement_ci95_db"] == pytest.approx(half_width(wanted), abs=0.1)
    assert found["drop_ci95_db"] == pytest.approx(half_width(full - wanted), abs=0.1)


def test_an_allocation_is_scored_alike_whatever_was_scored_before(tiny: Tiny, score: Score) -> None:
    """The record holds what the driver's own scorer found, in its order."""
    for event in (tiny.events()[0], *tiny.events()[:12:-9]):
        assert score(BitAllocation.of(event["allocation"])) == event["metrics"]


def test_only_the_mixtures_asked_for_are_scored(tiny: Tiny) -> None:
    factory = tiny.scorer_factory
    experiment = factory.experiment
    one = experiment.model_copy(update={"search": experiment.search.model_copy(update={"validation_mixtures": 1})})
    scorer, whole = replace(factory, experiment=one)(), factory()
    assert first_fidelity(one) is Fidelity.SUBSET
    assert first_fidelity(experiment) is PLAIN
    assert scorer(ScoringJob(Configuration(FULL_PRECISION), Fidelity.SUBSET)) == {
        "si_snr_improvement_db": pytest.approx(improvements(tiny, None)[0], abs=1e-3),
        "utterances": 1.0,
        "training_steps": 0.0,
    }
    # The same worker then scores on the whole set, and on the subset again, as one that does only that.
    four = Configuration(uniform(CONFIG, 4, 8))
    plain = ScoringJob(four, PLAIN)
    before = scorer(ScoringJob(four, Fidelity.SUBSET))
    assert scorer(plain) == pytest.approx(whole(plain), abs=1e-4)
    assert scorer(ScoringJob(four, Fidelity.SUBSET)) == before
    assert before["utterances"] == 1.0


def test_silence_is_worth_less_than_any_mixture(tiny: Tiny, tmp_path: Path) -> None:
    """A base whose mask is zero throughout, with no beam to start from, makes no sound; its score is finite."""
    _, description = load_base(EMBEDDED_BASE)
    config = CONFIG.model_copy(update={"beam": False})
    mute = build_separator(config, ARRAYS[description.array], description.sample_rate)
    torch.nn.init.zeros_(mute.network.mask_head.weight)
    torch.nn.init.zeros_(mute.network.mask_head.bias)
    save_base(tmp_path / "mute.safetensors", mute, description.model_copy(update={"separator": config}))
    factory = tiny.scorer_factory
    experiment = factory.experiment.model_copy(update={"separator": config})
    mute_factory = ScorerFactory(experiment, tmp_path / "mute.safetensors", factory.data_folder, tmp_path / "calibration.json")
    mixtures = [si_snr_db(sound[0], target) for _, sound, target in tiny.mixtures(Split.VALIDATION)]
    assert max(mixtures) > SILENT_DB
    found = mute_factory()(ScoringJob(Configuration(FULL_PRECISION), PLAIN))
    assert found["si_snr_improvement_db"] == pytest.approx(np.mean(SILENT_DB - np.array(mixtures)), abs=1e-3)


def test_a_factory_travels_light(tiny: Tiny) -> None:
    assert len(ForkingPickler.dumps(tiny.scorer_factory)) < LONGEST
    assert travelled(tiny.scorer_factory) == tiny.scorer_factory
