"""Scores of the separator's output with one site quantized: SI-SNR, output noise, and KL divergence.

SI-SNR can rise by chance, where quantization noise and the separator's own error cancel. Output noise is a sum of squares and
cannot. If the noises of several sites are independent, their powers add.

The divergences ignore the target. The reference system (arXiv 2111.14479) puts the output through a sigmoid and compares full
precision with the quantized network. Its printed formula lacks the term of the complement, so it can be negative and rises with
p alone. Both forms are here. The output is what the network gives, before the front end turns it into sound: a mask or, without
a spectral front end, waveforms, whose samples are taken as logits.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from hwsearch.errors import UserError
from hwsearch.metrics.errors import MetricUnavailable
from hwsearch.metrics.si_snr import si_snr
from hwsearch.sensitivity.one_site import OneSiteOutput, Score

Divergence = Callable[[Tensor, Tensor], Tensor]
"""A divergence between two tensors of logits, element by element, in nats."""


def measured_si_snr(output: OneSiteOutput) -> list[float]:
    """SI-SNR of the estimates, mean over speakers, in dB.

    Raises:
        UserError: an estimate that is silent or not finite. The message names mixture and site.
    """
    target = output.mixture.target[0].cpu().numpy()
    try:
        return [float(np.mean(si_snr(estimate, target))) for estimate in output.estimates.cpu().numpy()]
    except MetricUnavailable as error:
        raise UserError(f"{output}: SI-SNR has no value ({error}); wanted a finite, audible estimate") from None


def measured_losses(full_precision: float, quantized: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """The measured sensitivities of one mixture by method, from SI-SNR in dB.

    Args:
        full_precision: with nothing quantized.
        quantized: [sites, widths].
    """
    lost_db = full_precision - quantized
    return {
        "measured": lost_db,
        "measured-noise": np.asarray(10 ** (-quantized / 10) - 10 ** (-full_precision / 10)),
        "measured-noise-ratio": noise_ratio(lost_db),
    }


def noise_ratio(lost_db: NDArray[np.float64]) -> NDArray[np.float64]:
    """The noise added, relative to the noise of full precision, from the SI-SNR lost.

    Over mixtures, badly separated ones do not dominate its mean, as they do that of the noise relative to the target.
    """
    return np.asarray(10 ** (lost_db / 10) - 1)


def output_noise(full_precision: OneSiteOutput) -> Score:
    """|estimate - full-precision estimate|^2 / |full-precision estimate - a * target|^2, mean over speakers.

    `a` is the target's best scale, so that the denominator is the noise that SI-SNR counts (arXiv 1811.02508, equation 4). All
    signals are made zero-mean, as there.

    Returns:
        The score, 0 or more. It raises UserError for an estimate that is not finite.

    Raises:
        UserError: a full-precision estimate that is not finite, or without any error. The message names the mixture.
    """
    full, target = _centred(full_precision.estimates), _centred(full_precision.mixture.target)
    gain = (full * target).sum(dim=-1, keepdim=True) / target.square().sum(dim=-1, keepdim=True)
    own_noise = (full - gain * target).square().sum(dim=-1)
    if not bool(((own_noise > 0) & own_noise.isfinite()).all()):
        raise UserError(
            f"{full_precision}: the power of the estimate's error is {float(own_noise.min())}; wanted a finite, audible estimate "
            "and target (train the base or build the data again)"
        )

    def score(output: OneSiteOutput) -> list[float]:
        ratios = (_centred(output.estimates) - full).square().sum(dim=-1) / own_noise
        return _finite(ratios.reshape(len(output.masks), -1).mean(dim=1), output, "estimate")

    return score


def output_divergence(full_precision: OneSiteOutput, divergence: Divergence) -> Score:
    """Divergence of the network's output from that in full precision, summed over channels, mean over frames.

    Returns:
        The score, in nats per frame. It raises UserError for an output that is not finite.
    """
    # A divergence is a small difference of numbers near one: single precision would leave rounding at 8 bits and above.
    p = full_precision.masks.double()
    return lambda output: _finite(divergence(p, output.masks.double()).sum(dim=1).mean(dim=1), output, "output")


def bernoulli_kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """P log(p / q) + (1 - p) log((1 - p) / (1 - q)), where p and q are sigmoids of the logits. Below zero only by rounding."""
    return torch.sigmoid(p_logits) * (p_logits - q_logits) + functional.softplus(q_logits) - functional.softplus(p_logits)


def paper_kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """The form printed in arXiv 2111.14479: p log(p / q) alone."""
    return torch.sigmoid(p_logits) * (functional.logsigmoid(p_logits) - functional.logsigmoid(q_logits))


def _finite(scores: Tensor, output: OneSiteOutput, what: str) -> list[float]:
    if not bool(scores.isfinite().all()):
        raise UserError(f"{output}: the {what} is not finite; wanted a base whose output is finite (train it again)")
    return scores.tolist()


def _centred(signal: Tensor) -> Tensor:
    """The signal in double precision, made zero-mean."""
    double = signal.double()
    return double - double.mean(dim=-1, keepdim=True)
