"""The contract of sensitivity methods, and those that ship."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hwsearch.sensitivity.kinds import Kind

if TYPE_CHECKING:
    from hwsearch.sensitivity.choices import SiteChoices
    from hwsearch.sensitivity.mixture import AnalysedMixture

Compute = Callable[["SiteChoices", "AnalysedMixture"], NDArray[np.float64]]
"""From the candidates and a mixture to values [sites, widths]; NaN where a site cannot take a width."""


@dataclass(frozen=True)
class SensitivityMethod:
    """How a sensitivity is estimated.

    Attributes:
        unit: what a value is counted in. Noise powers add over sites, decibels do while losses are small; the rest only ranks.
        kinds: what jobs compute for it, where several methods share that; empty where `compute` does.
        compute: what a method of its own makes of each mixture; the table is the mean.
    """

    unit: str
    kinds: tuple[Kind, ...] = ()
    compute: Compute | None = None


CURVATURE = SensitivityMethod("dB times values", (Kind.TRACE, Kind.ERRORS))
AVERAGE_CURVATURE = SensitivityMethod("dB", (Kind.TRACE, Kind.ERRORS))
FISHER = SensitivityMethod("dB^2 times values", (Kind.FISHER,))
AVERAGE_FISHER = SensitivityMethod("dB^2", (Kind.FISHER,))
KL = SensitivityMethod("nats per frame", (Kind.KL,))
PAPER_KL = SensitivityMethod("nats per frame", (Kind.PAPER_KL,))
MEASURED = SensitivityMethod("dB", (Kind.MEASURED,))
MEASURED_NOISE = SensitivityMethod("noise power over target power", (Kind.MEASURED,))
MEASURED_NOISE_RATIO = SensitivityMethod("noise power over full-precision noise power", (Kind.MEASURED,))
OUTPUT_NOISE = SensitivityMethod("noise power over full-precision noise power", (Kind.OUTPUT_NOISE,))
GRADIENT = SensitivityMethod("dB^2", (Kind.GRADIENT,))
RECOVERABILITY = SensitivityMethod("noise power over full-precision noise power", (Kind.TRAINING, Kind.OUTPUT_NOISE))
