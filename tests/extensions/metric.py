"""A metric of quality: how far the level of the estimate is from that of the target, in dB."""

import numpy as np

from hwsearch.metrics.errors import MetricUnavailable
from hwsearch.metrics.quality import Heard, QualityMetric


def level_error_db(heard: Heard) -> float:
    powers = [float(np.mean(np.square(sound, dtype=np.float64))) for sound in (heard.estimate, heard.target)]
    if min(powers) == 0:
        raise MetricUnavailable("silence has no level")
    return float(abs(10 * np.log10(powers[0] / powers[1])))


LEVEL_ERROR = QualityMetric(direction="minimize", worst=60.0, score=level_error_db)
