"""The measured sensitivity is what the scorer says of the allocation with one site quantized."""

import math
from dataclasses import replace

import fast_bss_eval
import numpy as np
import pytest
import torch

from hwsearch.errors import UserError
from hwsearch.sensitivity.choices import SiteChoices, make_choices
from hwsearch.sensitivity.measured import OneSiteScores, measured_si_snr
from hwsearch.sensitivity.mixture import AnalysedMixture
from hwsearch.sensitivity.one_site import full_precision_output, one_site_masks, score_sites
from hwsearch.sensitivity.table import over_mixtures
from hwsearch.separator.fast import FastNetwork
from tests.sensitivity.small import WIDTHS, broken_base, candidates, only, small_base, small_mixture
from tests.separator.small import KINDS, RELU, all_sites


def measure(choices: SiteChoices, mixture: AnalysedMixture) -> OneSiteScores:
    full_precision = measured_si_snr(full_precision_output(choices.base.separator, mixture))[0]
    return OneSiteScores(full_precision, score_sites(choices, mixture, [measured_si_snr])[0])


@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_those_of_the_scorer_at_one_site_allocations(kind):
    config = KINDS[kind]
    base = small_base(config)
    mixture = small_mixture(base)
    choices = make_choices(base, candidates(all_sites(config), WIDTHS))
    scorer = FastNetwork(base.graph, base.calibration, base.quantization)
    for site, masks in one_site_masks(choices, mixture):
        for bits, mask in zip(choices.of(site), masks, strict=True):
            wanted = scorer.mask_function(only(config, site, bits))(mixture.analysis.normalised)[0]
            torch.testing.assert_close(mask, wanted, rtol=1e-4, atol=1e-4)


def test_the_loss_is_the_scorers_difference_of_si_snr():
    """SI-SNR by another library."""
    base = small_base()
    mixture = small_mixture(base)
    choices = make_choices(base, candidates(all_sites(RELU), WIDTHS))
    scorer = FastNetwork(base.graph, base.calibration, base.quantization)

    def si_snr(site: str, bits: int) -> float:
        mask = scorer.mask_function(only(RELU, site, bits))(mixture.analysis.normalised)
        estimate = base.separator.synthesise(mixture.analysis, mask, mixture.target.shape[-1])
        return float(fast_bss_eval.si_sdr(mixture.target.double(), estimate.double(), zero_mean=True))

    found = measure(choices, mixture)
    full = si_snr("mask_head.output", 32)
    assert found.full_precision == pytest.approx(full, abs=1e-4)
    for row, site in enumerate(choices.sites):
        for column, bits in enumerate(choices.widths):
            if bits in choices.of(site):
                score = si_snr(site, bits)
                assert found.lost_db[row, column] == pytest.approx(full - score, abs=2e-3), (site, bits)
                added = 10 ** (-score / 10) - 10 ** (-full / 10)
                assert found.noise_added[row, column] == pytest.approx(added, rel=2e-3, abs=1e-3)
                assert found.noise_ratio[row, column] == pytest.approx(added / 10 ** (-full / 10), rel=2e-3, abs=1e-3)
            else:
                assert math.isnan(found.lost_db[row, column])


def test_floating_point_loses_nothing_and_two_bits_lose_most():
    """On targets that the full-precision network all but reaches, as if it were trained."""
    base = small_base()
    choices = make_choices(base, candidates(("input_proj.weight", "mask_head.weight"), WIDTHS))
    scores = []
    for seed in range(3, 9):
        mixture = small_mixture(base, seed)
        with torch.no_grad():
            reached = base.separator.synthesise(mixture.analysis, mixture.output, mixture.target.shape[-1])
        target = reached + 0.1 * reached.std() * torch.randn(reached.shape, generator=torch.Generator().manual_seed(seed))
        scores.append(measure(choices, replace(mixture, target=target)))
    table = over_mixtures("measured", choices.sites, choices.widths, [found.lost_db for found in scores])
    np.testing.assert_allclose(table.value[:, -1], 0.0, atol=1e-5)
    assert (table.value[:, 0] > 3 * table.standard_error[:, 0]).all()
    assert (table.value[:, 0] > table.value[:, 1]).all()


def test_an_output_that_is_no_number_is_named():
    base = broken_base()
    choices = make_choices(base, candidates(("features",), (4,)))
    with pytest.raises(UserError, match="mixture 'noise-3', in full precision: SI-SNR has no value"):
        measure(choices, small_mixture(base))


def test_a_site_whose_output_falls_silent_is_named():
    base = small_base()
    mixture = small_mixture(base)
    silent = {**mixture.tensors, "blocks.1.add.output": torch.full_like(mixture.tensors["blocks.1.add.output"], math.nan)}
    choices = make_choices(base, candidates(("blocks.1.add.output",), (4,)))
    with pytest.raises(UserError, match=r"mixture 'noise-3', with 'blocks\.1\.add\.output' alone quantized: SI-SNR has no value"):
        measure(choices, replace(mixture, tensors=silent))
