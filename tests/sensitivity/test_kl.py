"""The divergences are those of the books, and the table's that of the two outputs."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special
from torch.distributions import Bernoulli, kl_divergence

from hwsearch.errors import UserError
from hwsearch.sensitivity.choices import make_choices
from hwsearch.sensitivity.kl import bernoulli_kl, output_divergence, paper_kl
from hwsearch.sensitivity.one_site import score_sites
from hwsearch.separator.fast import FastNetwork
from tests.sensitivity.small import WIDTHS, candidates, only, small_base, small_mixture
from tests.separator.small import RELU, all_sites

LOGITS = st.lists(st.floats(-20, 20), min_size=4, max_size=4).map(lambda values: torch.tensor(values, dtype=torch.float64))


@given(LOGITS, LOGITS)
@settings(deadline=None)
def test_the_bernoulli_divergence_is_torchs(p, q):
    wanted = kl_divergence(Bernoulli(logits=p), Bernoulli(logits=q))
    torch.testing.assert_close(bernoulli_kl(p, q), wanted, rtol=1e-9, atol=1e-13)


@given(LOGITS, LOGITS)
@settings(deadline=None)
def test_the_printed_form_is_the_bernoulli_divergence_without_its_second_term(p, q):
    """scipy's relative entropy, on probabilities; the complement's is taken as that of the negated logits."""
    first, second = special.expit(p.numpy()), special.expit(q.numpy())
    ratio = first * np.log(first / second)
    np.testing.assert_allclose(paper_kl(p, q).numpy(), ratio, rtol=1e-9, atol=1e-13)
    complement = special.rel_entr(special.expit(-p.numpy()), special.expit(-q.numpy()))
    np.testing.assert_allclose((bernoulli_kl(p, q) - paper_kl(p, q)).numpy(), complement, rtol=1e-7, atol=1e-12)


@given(LOGITS, LOGITS)
@settings(deadline=None)
def test_a_divergence_is_zero_for_equals_and_never_negative(p, q):
    assert torch.equal(bernoulli_kl(p, p), torch.zeros(4, dtype=torch.float64))
    assert float(bernoulli_kl(p, q).min()) >= -1e-13


def test_the_printed_form_can_be_negative():
    assert float(paper_kl(torch.tensor(0.0), torch.tensor(1.0))) < 0


@pytest.mark.parametrize("form", ["bernoulli", "paper"])
def test_the_divergence_of_each_site_is_summed_over_the_mask_and_averaged_over_frames(form):
    base = small_base()
    mixture = small_mixture(base)
    choices = make_choices(base, candidates(all_sites(RELU), WIDTHS))
    scorer = FastNetwork(base.graph, base.calibration, base.quantization)

    def probabilities(site: str, bits: int) -> np.ndarray:
        mask = scorer.mask_function(only(RELU, site, bits))(mixture.analysis.normalised)
        return special.expit(mask[0].double().numpy())

    p = probabilities("mask_head.output", 32)
    frames = p.shape[1]
    divergence = output_divergence(mixture, bernoulli_kl if form == "bernoulli" else paper_kl)
    (found,) = score_sites(choices, mixture, [divergence])
    for row, site in enumerate(choices.sites):
        for column, bits in enumerate(choices.widths):
            if bits not in choices.of(site):
                assert math.isnan(found[row, column])
                continue
            q = probabilities(site, bits)
            wanted = p * np.log(p / q)
            if form == "bernoulli":
                wanted = wanted + special.rel_entr(1 - p, 1 - q)
            assert found[row, column] == pytest.approx(wanted.sum() / frames, rel=2e-3, abs=1e-4), (site, bits)


def test_an_output_that_is_no_number_is_named():
    base = small_base()
    mixture = small_mixture(base)
    choices = make_choices(base, candidates(("mask_head.weight",), (4,)))
    broken_mixture = replace(mixture, output=torch.full_like(mixture.output, math.nan))
    with pytest.raises(UserError, match=r"with 'mask_head\.weight' alone quantized: the output is not finite"):
        score_sites(choices, broken_mixture, [output_divergence(broken_mixture, bernoulli_kl)])
