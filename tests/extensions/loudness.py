"""A metric: how far the level of the estimate is from that of the target, in dB."""

import numpy as np

from hwsearch.metrics.errors import MetricUnavailable
from hwsearch.metrics.quality import Heard, QualityMetric


def level_error(heard: Heard) -> float:
    levels = [float(np.mean(np.square(sound, dtype=np.float64))) for sound in (heard.estimate, heard.target)]
    if min(levels) == 0:
        raise MetricUnavailable("silence has no level")
    return abs(10 * np.log10(levels[0] / levels[1]))


LEVEL_ERROR = QualityMetric("minimize", 60.0, level_error)
