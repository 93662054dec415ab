"""A sensitivity that asks no network: the squared step of an n-bit grid, whatever the site."""

import numpy as np
from numpy.typing import NDArray

from hwsearch.sensitivity.choices import SiteChoices
from hwsearch.sensitivity.methods import SensitivityMethod
from hwsearch.sensitivity.mixture import AnalysedMixture


def compute(choices: SiteChoices, mixture: AnalysedMixture) -> NDArray[np.float64]:
    del mixture
    return np.array([[4.0**-bits if bits in tried else np.nan for bits in choices.widths] for _, tried in choices.candidates])


STEP = SensitivityMethod("steps squared", compute=compute)
