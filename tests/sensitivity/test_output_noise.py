"""The output noise is the power by which one quantized site moves the estimate, over the noise that SI-SNR finds in it anyway."""

import math
from dataclasses import replace

import fast_bss_eval
import numpy as np
import pytest
import torch

from hwsearch.errors import UserError
from hwsearch.sensitivity.choices import SiteChoices, make_choices
from hwsearch.sensitivity.mixture import AnalysedMixture
from hwsearch.sensitivity.one_site import score_sites
from hwsearch.sensitivity.output_noise import output_noise
from hwsearch.separator.fast import FastNetwork
from tests.sensitivity.small import broken_base, candidates, only, small_base, small_mixture
from tests.separator.small import RELU, all_sites


def noises(choices: SiteChoices, mixture: AnalysedMixture) -> np.ndarray:
    return score_sites(choices, mixture, [output_noise(choices.base.separator, mixture)])[0]


def test_it_is_the_moved_power_over_the_noise_power_that_another_librarys_si_snr_means():
    base = small_base()
    mixture = small_mixture(base)
    choices = make_choices(base, candidates(all_sites(RELU)))
    scorer = FastNetwork(base.graph, base.calibration, base.quantization)

    def estimate(site: str, bits: int) -> np.ndarray:
        mask = scorer.mask_function(only(RELU, site, bits))(mixture.analysis.normalised)
        return base.separator.synthesise(mixture.analysis, mask, mixture.target.shape[-1])[0].double().numpy()

    full = estimate("mask_head.output", 32)
    si_snr = float(fast_bss_eval.si_sdr(mixture.target.double().numpy(), full[None], zero_mean=True)[0])
    # Signal and noise of SI-SNR are at right angles and make up the estimate.
    noise = np.square(full - full.mean()).sum() / (1 + 10 ** (si_snr / 10))
    found = noises(choices, mixture)
    for row, site in enumerate(choices.sites):
        for column, bits in enumerate(choices.widths):
            if bits not in choices.of(site):
                assert math.isnan(found[row, column])
                continue
            moved = estimate(site, bits) - full
            wanted = np.square(moved - moved.mean()).sum() / noise
            assert found[row, column] == pytest.approx(wanted, rel=2e-3, abs=1e-7), (site, bits)


def test_it_is_never_negative_and_falls_with_the_width():
    base = small_base()
    choices = make_choices(base, candidates(all_sites(RELU), (4, 8, 32)))
    found = noises(choices, small_mixture(base))
    assert (found >= 0).all()
    assert (found[:, 0] > found[:, 1]).all()
    np.testing.assert_allclose(found[:, 2], 0.0, atol=1e-9)


def test_an_output_that_is_no_number_is_named():
    base = broken_base()
    choices = make_choices(base, (("features", (4,)),))
    with pytest.raises(UserError, match="mixture 'noise-3', in full precision: the power of the estimate's error is nan"):
        noises(choices, small_mixture(base))


def test_a_silent_target_is_named():
    base = small_base()
    mixture = small_mixture(base)
    choices = make_choices(base, (("features", (4,)),))
    with pytest.raises(UserError, match="mixture 'noise-3', in full precision"):
        noises(choices, replace(mixture, target=torch.zeros_like(mixture.target)))


def test_a_site_whose_output_is_no_number_is_named():
    base = small_base()
    mixture = small_mixture(base)
    broken = {**mixture.tensors, "blocks.1.add.output": torch.full_like(mixture.tensors["blocks.1.add.output"], math.nan)}
    choices = make_choices(base, (("blocks.1.add.output", (4,)),))
    with pytest.raises(
        UserError, match=r"mixture 'noise-3', with 'blocks\.1\.add\.output' alone quantized: the estimate is not finite"
    ):
        noises(choices, replace(mixture, tensors=broken))
