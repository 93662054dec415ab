"""The KL sensitivity: how far one quantized site moves the separator's output, without a look at the target.

The reference system (arXiv 2111.14479) puts the output through a sigmoid and compares the full-precision with the
quantized one. Its printed formula lacks the term of the complement, so it is no divergence: it can be negative, and it rises with
p alone. Both forms are here. The output is the network's, before the front end makes sound of it.
It is a mask or, without a spectral front end, waveforms, whose samples then stand for logits.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from hwsearch.errors import UserError
from hwsearch.sensitivity.mixture import AnalysedMixture
from hwsearch.sensitivity.one_site import OneSiteOutput, Score

Divergence = Callable[[Tensor, Tensor], Tensor]
"""A divergence between two tensors of logits, element by element, in nats."""


def bernoulli_kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """P log(p / q) + (1 - p) log((1 - p) / (1 - q)) with p, q the sigmoids; never below zero but for rounding."""
    return torch.sigmoid(p_logits) * (p_logits - q_logits) + functional.softplus(q_logits) - functional.softplus(p_logits)


def paper_kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """The reference system's printed form, p log(p / q) alone (arXiv 2111.14479)."""
    return torch.sigmoid(p_logits) * (functional.logsigmoid(p_logits) - functional.logsigmoid(q_logits))


def output_divergence(mixture: AnalysedMixture, divergence: Divergence) -> Score:
    """Divergence of the output from full precision.

    Args:
        mixture: one mixture; its target is not used.
        divergence: `bernoulli_kl` or `paper_kl`.

    Returns:
        The score: summed over the output's channels, mean over frames; nats per frame. It raises UserError for an output
        that is not finite, and names mixture and site.
    """
    # A divergence is a small difference of numbers near one: single precision would leave rounding at 8 bits and above.
    p = mixture.output.double()

    def score(output: OneSiteOutput) -> list[float]:
        found = divergence(p, output.masks.double()).sum(dim=1).mean(dim=1)
        if not bool(found.isfinite().all()):
            raise UserError(f"{output}: the output is not finite; wanted a base whose output is finite (train it again)")
        return found.tolist()

    return score
