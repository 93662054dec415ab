"""The KL sensitivity: how far one quantized site moves the separator's output, without a look at the target.

The reference system (arXiv 2111.14479) puts the output through a sigmoid and compares the full-precision with the
quantized one. Its printed formula lacks the term of the complement, so it is no divergence: it can be negative, and it rises with
p alone. Both forms are here. The output is the network's mask, before the front end's own start is added.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from hwsearch.errors import UserError
from hwsearch.sensitivity.choices import SiteChoices, by_site_and_width, one_site_masks
from hwsearch.sensitivity.mixture import AnalysedMixture

Divergence = Callable[[Tensor, Tensor], Tensor]
"""Of two tensors of logits, element by element, in nats."""


def bernoulli_kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """P log(p / q) + (1 - p) log((1 - p) / (1 - q)) with p, q the sigmoids; never below zero but for rounding."""
    return torch.sigmoid(p_logits) * (p_logits - q_logits) + functional.softplus(q_logits) - functional.softplus(p_logits)


def paper_kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """The reference system's printed form, p log(p / q) alone (arXiv 2111.14479)."""
    return torch.sigmoid(p_logits) * (functional.logsigmoid(p_logits) - functional.logsigmoid(q_logits))


def output_divergence(choices: SiteChoices, mixture: AnalysedMixture, divergence: Divergence) -> NDArray[np.float64]:
    """Divergence of the output from full precision with every site at every width, one at a time.

    Args:
        choices: sites and widths.
        mixture: one mixture; its target is not used.
        divergence: `bernoulli_kl` or `paper_kl`.

    Returns:
        [sites, widths], summed over the mask's 2 * bins values, mean over frames; nats per frame.

    Raises:
        UserError: an output that is not finite; names mixture and site.
    """
    # A divergence is a small difference of numbers near one: single precision would leave rounding at 8 bits and above.
    p = mixture.tensors["masks"].double()

    def rows() -> Iterator[list[float]]:
        for site, masks in one_site_masks(choices, mixture.tensors):
            found = divergence(p, masks.double()).sum(dim=1).mean(dim=1)
            if not bool(found.isfinite().all()):
                raise UserError(
                    f"mixture '{mixture.name}': the output with site '{site}' quantized is not finite; "
                    "wanted a base whose output is finite (train it again)"
                )
            yield found.tolist()

    return by_site_and_width(choices, rows())
