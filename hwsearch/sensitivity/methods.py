"""The interface of sensitivity methods, and the built-in methods."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from hwsearch.sensitivity.choices import SiteChoices
    from hwsearch.sensitivity.mixture import AnalysedMixture


class Kind(StrEnum):
    """What a job computes. Each job covers one mixture, except those of the last two kinds."""

    MEASURED = "measured"
    OUTPUT_NOISE = "output-noise"
    KL = "kl"
    PAPER_KL = "paper-kl"
    GRADIENT = "gradient"
    FISHER = "fisher"
    ERRORS = "errors"
    TRACE = "trace"
    TRAINING = "training"


Compute = Callable[["SiteChoices", "AnalysedMixture"], NDArray[np.float64]]
"""Takes the candidates and a mixture, and returns values [sites, widths]; NaN where a site cannot take a width."""


@dataclass(frozen=True)
class SensitivityMethod:
    """How a sensitivity is estimated.

    Attributes:
        unit: unit of the values. Noise powers add over sites, and decibels do while losses are small; other units only rank
            sites.
        kinds: the kinds of jobs that it needs, which several methods may share; empty if the method has `compute`.
        compute: computes the values of one mixture, for a method without `kinds`. The table is the mean over mixtures.
    """

    unit: str
    kinds: tuple[Kind, ...] = ()
    compute: Compute | None = None


_OVER_OWN_NOISE = "noise power over full-precision noise power"

CURVATURE = SensitivityMethod("dB times values", (Kind.TRACE, Kind.ERRORS))
AVERAGE_CURVATURE = SensitivityMethod("dB", (Kind.TRACE, Kind.ERRORS))
FISHER = SensitivityMethod("dB^2 times values", (Kind.FISHER,))
AVERAGE_FISHER = SensitivityMethod("dB^2", (Kind.FISHER,))
KL = SensitivityMethod("nats per frame", (Kind.KL,))
PAPER_KL = SensitivityMethod("nats per frame", (Kind.PAPER_KL,))
MEASURED = SensitivityMethod("dB", (Kind.MEASURED,))
MEASURED_NOISE = SensitivityMethod("noise power over target power", (Kind.MEASURED,))
MEASURED_NOISE_RATIO = SensitivityMethod(_OVER_OWN_NOISE, (Kind.MEASURED,))
OUTPUT_NOISE = SensitivityMethod(_OVER_OWN_NOISE, (Kind.OUTPUT_NOISE,))
GRADIENT = SensitivityMethod("dB^2", (Kind.GRADIENT,))
RECOVERABILITY = SensitivityMethod(_OVER_OWN_NOISE, (Kind.TRAINING, Kind.OUTPUT_NOISE))
