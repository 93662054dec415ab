"""The output-noise sensitivity: how far one quantized site moves the estimate, against how wrong the estimate is anyway.

Unlike the measured loss it is a sum of squares: never negative, and small where quantization noise and the separator's own error
happen to cancel. If the noises of different sites are independent, their powers add.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hwsearch.errors import UserError
from hwsearch.sensitivity.choices import SiteChoices, by_site_and_width, one_site_masks
from hwsearch.sensitivity.mixture import AnalysedMixture


def output_noise(choices: SiteChoices, mixture: AnalysedMixture) -> NDArray[np.float64]:
    """|estimate - full-precision estimate|^2 / |full-precision estimate - a * target|^2 with every site quantized alone.

    `a` is the target's best scale, so that the denominator is the noise that SI-SNR counts (arXiv 1811.02508, equation 4). All
    signals are made zero-mean, as there.

    Returns:
        [sites, widths], 0 or more.

    Raises:
        UserError: an estimate that is not finite, or a full-precision one without any error; names the mixture.
    """

    def estimates(masks: Tensor) -> Tensor:
        with torch.no_grad():
            found = choices.base.separator.synthesise(mixture.analysis, masks, mixture.target.shape[-1]).double()
        return found - found.mean(dim=-1, keepdim=True)

    full = estimates(mixture.tensors["masks"])
    target = mixture.target.double() - mixture.target.double().mean()
    own_noise = float((full - (full * target).sum() / target.square().sum() * target).square().sum())
    if not 0.0 < own_noise < float("inf"):
        raise UserError(
            f"mixture '{mixture.name}', in full precision: the power of the estimate's error is {own_noise}; wanted a finite, "
            "audible estimate and target (train the base or build the data again)"
        )

    def rows() -> Iterator[list[float]]:
        for site, masks in one_site_masks(choices, mixture.tensors):
            ratios = (estimates(masks) - full).square().sum(dim=-1) / own_noise
            if not bool(ratios.isfinite().all()):
                raise UserError(
                    f"mixture '{mixture.name}', with '{site}' alone quantized: the estimate is not finite; wanted a base whose "
                    "output is finite (train it again)"
                )
            yield ratios.tolist()

    return by_site_and_width(choices, rows())
