"""Scores of the output with one site quantized, against the scorer's own passes and other libraries."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

import fast_bss_eval
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special
from torch.distributions import Bernoulli, kl_divergence

from hwsearch.errors import UserError
from hwsearch.sensitivity.choices import SiteChoices, make_choices
from hwsearch.sensitivity.mixture import AnalysedMixture
from hwsearch.sensitivity.one_site import OneSiteOutput, Score, full_precision_output, one_site_masks, score_sites
from hwsearch.sensitivity.scores import (
    bernoulli_kl,
    measured_losses,
    measured_si_snr,
    output_divergence,
    output_noise,
    paper_kl,
)
from hwsearch.sensitivity.table import over_mixtures
from hwsearch.separator.fast import FastNetwork
from tests.sensitivity.small import WIDTHS, broken_base, candidates, only, small_base, small_mixture
from tests.separator.small import KINDS, RELU, all_sites

LOGITS = st.lists(st.floats(-20, 20), min_size=4, max_size=4).map(lambda values: torch.tensor(values, dtype=torch.float64))
KL = partial(output_divergence, divergence=bernoulli_kl)
PAPER_KL = partial(output_divergence, divergence=paper_kl)


def score(choices: SiteChoices, mixture: AnalysedMixture, make: Callable[[OneSiteOutput], Score]) -> np.ndarray:
    full = full_precision_output(choices.base.separator, mixture)
    return score_sites(choices, mixture, [make(full)])[0]


def measure(choices: SiteChoices, mixture: AnalysedMixture) -> dict[str, np.ndarray]:
    full = measured_si_snr(full_precision_output(choices.base.separator, mixture))[0]
    return measured_losses(full, score(choices, mixture, lambda _: measured_si_snr))


@given(LOGITS, LOGITS)
@settings(deadline=None)
def test_the_bernoulli_divergence_is_torchs_and_the_printed_form_lacks_its_second_term(p, q):
    """The second term is scipy's relative entropy of the complements, whose logits are the negated ones."""
    whole = bernoulli_kl(p, q)
    torch.testing.assert_close(whole, kl_divergence(Bernoulli(logits=p), Bernoulli(logits=q)), rtol=1e-9, atol=1e-13)
    assert float(whole.min()) >= -1e-13
    assert not bernoulli_kl(p, p).any()
    first, second = special.expit(p.numpy()), special.expit(q.numpy())
    np.testing.assert_allclose(paper_kl(p, q).numpy(), first * np.log(first / second), rtol=1e-9, atol=1e-13)
    complement = special.rel_entr(special.expit(-p.numpy()), special.expit(-q.numpy()))
    np.testing.assert_allclose((whole - paper_kl(p, q)).numpy(), complement, rtol=1e-7, atol=1e-12)


def test_the_printed_form_can_be_negative():
    assert float(paper_kl(torch.tensor(0.0), torch.tensor(1.0))) < 0


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


def test_every_score_is_what_the_scorer_gives_for_one_site_allocations():
    """SI-SNR is another library's. Its signal and noise are at right angles and make up the estimate."""
    base = small_base()
    mixture = small_mixture(base)
    choices = make_choices(base, candidates(all_sites(RELU)))
    scorer = FastNetwork(base.graph, base.calibration, base.quantization)

    @cache
    def scored(site: str, bits: int) -> tuple[np.ndarray, np.ndarray, float]:
        mask = scorer.mask_function(only(RELU, site, bits))(mixture.analysis.normalised)
        estimate = base.separator.synthesise(mixture.analysis, mask, mixture.target.shape[-1]).double()
        si_snr = float(fast_bss_eval.si_sdr(mixture.target.double(), estimate, zero_mean=True))
        return special.expit(mask[0].double().numpy()), estimate[0].numpy(), si_snr

    p, full, full_db = scored("mask_head.output", 32)
    own_noise = np.square(full - full.mean()).sum() / (1 + 10 ** (full_db / 10))

    def wanted(site: str, bits: int) -> dict[str, object]:
        q, estimate, decibels = scored(site, bits)
        first, complement = p * np.log(p / q), special.rel_entr(1 - p, 1 - q)
        moved = estimate - full
        added = 10 ** (-decibels / 10) - 10 ** (-full_db / 10)
        return {
            "kl": pytest.approx((first + complement).sum() / p.shape[1], rel=2e-3, abs=1e-4),
            "paper-kl": pytest.approx(first.sum() / p.shape[1], rel=2e-3, abs=1e-4),
            "output-noise-ratio": pytest.approx(np.square(moved - moved.mean()).sum() / own_noise, rel=2e-3, abs=1e-7),
            "measured": pytest.approx(full_db - decibels, abs=2e-3),
            "measured-noise": pytest.approx(added, rel=2e-3, abs=1e-3),
            "measured-noise-ratio": pytest.approx(added / 10 ** (-full_db / 10), rel=2e-3, abs=1e-3),
        }

    scores = {"kl": KL, "paper-kl": PAPER_KL, "output-noise-ratio": output_noise}
    found = {name: score(choices, mixture, make) for name, make in scores.items()} | measure(choices, mixture)
    for row, site in enumerate(choices.sites):
        for column, bits in enumerate(choices.widths):
            here = {name: values[row, column] for name, values in found.items()}
            if bits in choices.of(site):
                assert here == wanted(site, bits), (site, bits)
            else:
                assert all(map(math.isnan, here.values()))


def test_output_noise_is_never_negative_and_falls_with_the_width():
    base = small_base()
    choices = make_choices(base, candidates(all_sites(RELU), (4, 8, 32)))
    found = score(choices, small_mixture(base), output_noise)
    assert (found >= 0).all()
    assert (found[:, 0] > found[:, 1]).all()
    np.testing.assert_allclose(found[:, 2], 0.0, atol=1e-9)


def test_floating_point_loses_nothing_and_two_bits_lose_most():
    """On targets that the full-precision network all but reaches, as if it were trained."""
    base = small_base()
    choices = make_choices(base, candidates(("input_proj.weight", "mask_head.weight"), WIDTHS))
    lost = []
    for seed in range(3, 9):
        mixture = small_mixture(base, seed)
        reached = full_precision_output(base.separator, mixture).estimates
        target = reached + 0.1 * reached.std() * torch.randn(reached.shape, generator=torch.Generator().manual_seed(seed))
        lost.append(measure(choices, replace(mixture, target=target))["measured"])
    table = over_mixtures("measured", choices.sites, choices.widths, lost)
    np.testing.assert_allclose(table.value[:, -1], 0.0, atol=1e-5)
    assert (table.value[:, 0] > 3 * table.standard_error[:, 0]).all()
    assert (table.value[:, 0] > table.value[:, 1]).all()


# What is refused


@pytest.mark.parametrize(
    ("method", "message"), [(measure, "SI-SNR has no value"), (partial(score, make=output_noise), "the power of the estimate's")]
)
def test_a_full_precision_output_that_is_no_number_is_named(method, message):
    base = broken_base()
    choices = make_choices(base, (("features", (4,)),))
    with pytest.raises(UserError, match=f"mixture 'noise-3', in full precision: {message}"):
        method(choices, small_mixture(base))


def test_a_silent_target_is_named():
    base = small_base()
    mixture = small_mixture(base)
    with pytest.raises(UserError, match="mixture 'noise-3', in full precision"):
        output_noise(full_precision_output(base.separator, replace(mixture, target=torch.zeros_like(mixture.target))))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: measured_si_snr, "SI-SNR has no value"),
        (output_noise, "the estimate is not finite"),
        (KL, "the output is not finite"),
    ],
)
def test_a_site_whose_output_is_no_number_is_named(make, message):
    base, site = small_base(), "blocks.1.add.output"
    mixture = small_mixture(base)
    broken = {**mixture.tensors, site: torch.full_like(mixture.tensors[site], math.nan)}
    choices = make_choices(base, ((site, (4,)),))
    with pytest.raises(UserError, match=f"mixture 'noise-3', with '{site}' alone quantized: {message}"):
        score(choices, replace(mixture, tensors=broken), make)
