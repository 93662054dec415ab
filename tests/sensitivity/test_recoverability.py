"""What training leaves of a site's loss, against training and scoring by hand."""

import fast_bss_eval
import numpy as np
import pytest
import torch

from hwsearch.errors import UserError
from hwsearch.experiment import QatConfig
from hwsearch.sensitivity.recoverability import score_trained
from hwsearch.sensitivity.scores import noise_ratio
from hwsearch.separator.fast import FastNetwork
from tests.sensitivity.small import only, small_mixture
from tests.sensitivity.workspaces import make_experiment
from tests.separator.small import RELU
from tests.training.pools import small_base, small_pool

EXPERIMENT = make_experiment()


def si_snr(base, mixture, allocation) -> float:
    """Without training, by another library."""
    mask = FastNetwork(base.graph, base.calibration, base.quantization).mask_function(allocation)(mixture.analysis.normalised)
    estimate = base.separator.synthesise(mixture.analysis, mask, mixture.target.shape[-1])
    return float(fast_bss_eval.si_sdr(mixture.target.double(), estimate.double(), zero_mean=True))


def with_qat(**settings: float) -> object:
    return EXPERIMENT.model_copy(update={"qat": QatConfig(**{**EXPERIMENT.qat.model_dump(), **settings})})


@pytest.mark.parametrize("candidate", [(), (("mask_head.weight", (2,)),), (("input_proj.output", (4,)),)])
def test_training_that_all_but_stands_still_leaves_the_untrained_score_of_that_site_alone(candidate) -> None:
    base = small_base()
    mixtures = [small_mixture(base, seed) for seed in (3, 4)]
    still = with_qat(learning_rate=1e-12, scale_learning_rate=1e-12)
    site, bits = (candidate[0][0], candidate[0][1][0]) if candidate else ("mask_head.output", 32)
    wanted = [si_snr(base, mixture, only(RELU, site, bits)) for mixture in mixtures]
    found = score_trained(base, mixtures, candidate, small_pool(), still)
    np.testing.assert_allclose(found, wanted, atol=2e-3)


def test_training_moves_the_score_and_is_the_same_every_time() -> None:
    base = small_base()
    mixtures = [small_mixture(base)]
    candidate = (("mask_head.weight", (2,)),)
    first, second = (score_trained(base, mixtures, candidate, small_pool(), EXPERIMENT) for _ in range(2))
    assert first == second
    assert abs(first[0] - si_snr(base, mixtures[0], only(RELU, "mask_head.weight", 2))) > 1e-3


def test_the_ratio_is_the_noise_added_over_the_noise_there_was() -> None:
    rng = np.random.default_rng(0)
    target, noise, more = rng.normal(size=(3, 100_000))
    full, lost = (
        float(fast_bss_eval.si_sdr(torch.from_numpy(target[None]), torch.from_numpy((target + 0.1 * error)[None])))
        for error in (noise, noise + 0.5 * more)
    )
    assert noise_ratio(np.array([full - lost]))[0] == pytest.approx(0.25, abs=0.01)


def test_training_that_diverges_names_the_site() -> None:
    base = small_base()
    pool = small_pool()
    broken = type(pool)(**{**vars(pool), "target": torch.full_like(pool.target, float("nan"))})
    with pytest.raises(UserError, match=r"training with 'mask_head\.weight' at 2 bits quantized: the loss became nan"):
        score_trained(base, [small_mixture(base)], (("mask_head.weight", (2,)),), broken, EXPERIMENT)
