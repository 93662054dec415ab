"""What stands around a network gives back what it was given."""

import numpy as np
import pytest
import torch

from hwsearch.data.arrays import ARRAYS
from hwsearch.data.example import Example
from hwsearch.experiment import ConvTasNetConfig
from hwsearch.metrics.si_snr import si_snr
from hwsearch.search.mixture_batches import improvements, mixture_batches
from hwsearch.separator.front_end import WaveformFrontEnd
from hwsearch.separator.separator import Separator, build_separator
from tests.separator.small import RELU, noise_mixture, small_separator

MIXTURE, DOA = noise_mixture(3001)[None], torch.tensor([60.0])


def test_the_network_reads_normalised_raw_features() -> None:
    for separator in (
        small_separator(),
        small_separator(RELU.model_copy(update={"beam": False})),
        build_separator(ConvTasNetConfig(network="conv-tasnet"), ARRAYS["linear4"], 8000),
    ):
        front_end = separator.front_end
        analysis = front_end.analyse(MIXTURE, DOA)
        output = torch.randn(1, front_end.outputs, analysis.normalised.shape[-1])
        assert front_end.synthesise(analysis, output, 3001).shape[-1] == 3001
        assert torch.equal(front_end.normalise(front_end.raw(MIXTURE, DOA)), analysis.normalised)
        assert analysis.normalised.shape == (1, front_end.inputs, front_end.frames(3001))


class Copy(torch.nn.Module):
    """Microphone 0 and its half, in the wrong order for any target."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([0.5 * x, x], 1)


def test_waveforms_have_a_level_of_one_and_get_theirs_back() -> None:
    separator = Separator(WaveformFrontEnd(ARRAYS["linear4"], 8000), Copy())
    loud = 37.0 * MIXTURE
    assert float(separator.analyse(loud, DOA).normalised.square().mean()) == pytest.approx(1.0, rel=1e-5)
    torch.testing.assert_close(separator(loud, DOA)[:, 1], loud[:, 0])
    assert not separator(torch.zeros_like(loud), DOA).any()


def test_two_speakers_are_scored_in_their_best_order() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.standard_normal((2, 900)).astype(np.float32)
    mixture = np.stack([first + second] * 4)
    separator = Separator(WaveformFrontEnd(ARRAYS["linear4"], 8000), Copy())
    (batch,) = mixture_batches(separator, [Example(mixture, first, 10.0)])
    level = batch.analysis.context[0]
    estimates = np.stack([second + 0.1 * first, first + 0.3 * second])  # the target comes second
    (found,) = improvements(separator, lambda _: torch.from_numpy(estimates)[None] / level, [batch])
    scores = [si_snr(estimates[1], first), si_snr(estimates[0], second)]
    before = [si_snr(mixture[0], first), si_snr(mixture[0], second)]
    assert found == pytest.approx(np.mean(scores) - np.mean(before), abs=1e-4)
