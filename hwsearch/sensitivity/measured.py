"""The measured sensitivity: the SI-SNR lost when one site alone is quantized."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwsearch.errors import UserError
from hwsearch.metrics.errors import MetricUnavailable
from hwsearch.metrics.si_snr import si_snr
from hwsearch.sensitivity.one_site import OneSiteOutput


@dataclass(frozen=True, eq=False)
class OneSiteScores:
    """SI-SNR of one mixture, in dB.

    The sensitivity is the mean over mixtures of `lost_db`, `noise_added` or `noise_ratio` (`table.over_mixtures`); each mixture
    is compared with itself, so the standard error is that of a paired difference.

    Attributes:
        full_precision: with nothing quantized.
        quantized: [sites, widths], with that site alone at that width; NaN where it cannot take it.
    """

    full_precision: float
    quantized: NDArray[np.float64]

    @property
    def lost_db(self) -> NDArray[np.float64]:
        """SI-SNR lost, dB, [sites, widths]."""
        return self.full_precision - self.quantized

    @property
    def noise_added(self) -> NDArray[np.float64]:
        """Noise added, relative to the target's power: 10^(-SI-SNR/10) less that of full precision, [sites, widths]."""
        return np.asarray(10 ** (-self.quantized / 10) - 10 ** (-self.full_precision / 10))

    @property
    def noise_ratio(self) -> NDArray[np.float64]:
        """Noise added, relative to the noise of full precision, [sites, widths].

        Like `noise_added`, it adds over sites, but the few badly separated mixtures do not dominate its mean.
        """
        return np.asarray(10 ** (self.lost_db / 10) - 1)


def measured_si_snr(output: OneSiteOutput) -> list[float]:
    """SI-SNR of the estimates, mean over speakers, dB.

    Raises:
        UserError: an estimate that is silent or not finite; names mixture and site.
    """
    target = output.mixture.target[0].cpu().numpy()
    try:
        return [float(np.mean(si_snr(estimate, target))) for estimate in output.estimates.cpu().numpy()]
    except MetricUnavailable as error:
        raise UserError(f"{output}: SI-SNR has no value ({error}); wanted a finite, audible estimate") from None
