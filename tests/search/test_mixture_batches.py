"""Mixtures in batches score what they score one by one."""

import numpy as np
import pytest
import torch

from hwsearch.experiment import QuantizationConfig
from hwsearch.metrics.si_snr import si_snr
from hwsearch.search.mixture_batches import BATCH, SILENT_DB, Example, improvements, mixture_batches
from hwsearch.separator.fast import FastNetwork
from tests.separator.small import RELU, noise_mixture, small_network, uniform

SAMPLES = [3000, 2000, 3000, 2500, 2000, *[3000] * BATCH]


def example(number: int, samples: int) -> Example:
    sound = noise_mixture(samples, number).numpy()
    noise = np.random.default_rng(number).standard_normal(samples).astype(np.float32)
    return Example(sound, sound[0] + 0.05 * noise, 60.0 + number)


EXAMPLES = [example(number, samples) for number, samples in enumerate(SAMPLES)]


@pytest.mark.parametrize("beam", [True, False])
def test_improvements_are_those_of_each_mixture_alone_in_the_order_given(beam):
    separator, graph, calibration = small_network(RELU.model_copy(update={"beam": beam}))
    mask = FastNetwork(graph, calibration, QuantizationConfig()).mask_function(uniform(RELU, 8, 8))
    found = improvements(separator, mask, mixture_batches(separator, EXAMPLES))
    for one, improvement in zip(EXAMPLES, found, strict=True):
        with torch.no_grad():
            estimate = separator.separate(torch.from_numpy(one.mixture)[None], torch.tensor([one.doa_deg]), mask)[0].numpy()
        wanted = si_snr(estimate, one.target) - si_snr(one.mixture[0], one.target)
        assert improvement == pytest.approx(wanted, abs=0.02)


def test_a_batch_holds_mixtures_of_one_length_and_every_mixture_is_in_one():
    separator, _, _ = small_network()
    batches = mixture_batches(separator, EXAMPLES)
    assert sorted(number for batch in batches for number in batch.numbers) == list(range(len(EXAMPLES)))
    assert all(len({SAMPLES[number] for number in batch.numbers}) == 1 and len(batch.numbers) <= BATCH for batch in batches)
    assert len(batches) == 4


def test_silence_has_a_value():
    separator, _, _ = small_network()
    batches = mixture_batches(separator, EXAMPLES[:2])

    def silent(features):
        # Minus the start, so that nothing is let through.
        batch = next(batch for batch in batches if batch.features is features)
        start = batch.analysis.context[1]
        return torch.cat([-start, torch.zeros_like(start)], dim=1)

    found = improvements(separator, silent, batches)
    unprocessed = [si_snr(one.mixture[0], one.target) for one in EXAMPLES[:2]]
    np.testing.assert_allclose(found, SILENT_DB - np.array(unprocessed))
