"""The output-noise sensitivity: how far one quantized site moves the estimate, against how wrong the estimate is anyway.

Unlike the measured loss it is a sum of squares: never negative, and small where quantization noise and the separator's own error
happen to cancel. If the noises of different sites are independent, their powers add.
"""

from torch import Tensor

from hwsearch.errors import UserError
from hwsearch.sensitivity.mixture import AnalysedMixture
from hwsearch.sensitivity.one_site import OneSiteOutput, Score, full_precision_output
from hwsearch.separator.separator import Separator


def output_noise(separator: Separator, mixture: AnalysedMixture) -> Score:
    """|estimate - full-precision estimate|^2 / |full-precision estimate - a * target|^2.

    `a` is the target's best scale, so that the denominator is the noise that SI-SNR counts (arXiv 1811.02508, equation 4). All
    signals are made zero-mean, as there. Of several speakers it is the mean.

    Returns:
        The score, 0 or more. It raises UserError for an estimate that is not finite.

    Raises:
        UserError: a full-precision estimate that is not finite, or without any error; names the mixture.
    """
    reference = full_precision_output(separator, mixture)
    full = _centred(reference.estimates)
    target = _centred(mixture.target)
    gain = (full * target).sum(dim=-1, keepdim=True) / target.square().sum(dim=-1, keepdim=True)
    own_noise = (full - gain * target).square().sum(dim=-1)
    if not bool(((own_noise > 0) & own_noise.isfinite()).all()):
        raise UserError(
            f"{reference}: the power of the estimate's error is {float(own_noise.min())}; wanted a finite, audible estimate and "
            "target (train the base or build the data again)"
        )

    def score(output: OneSiteOutput) -> list[float]:
        ratios = ((_centred(output.estimates) - full).square().sum(dim=-1) / own_noise).reshape(len(output.masks), -1).mean(dim=1)
        if not bool(ratios.isfinite().all()):
            raise UserError(f"{output}: the estimate is not finite; wanted a base whose output is finite (train it again)")
        return ratios.tolist()

    return score


def _centred(signal: Tensor) -> Tensor:
    """Zero-mean, in double precision."""
    double = signal.double()
    return double - double.mean(dim=-1, keepdim=True)
