"""The quality of a bit allocation: SI-SNR improvement on the validation mixtures."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hwsearch.data.dataset import load_mixture, open_dataset
from hwsearch.experiment import FLOAT_BITS, Experiment, Split
from hwsearch.metrics.si_snr import si_snr
from hwsearch.metrics.statistics import mean_interval
from hwsearch.search.objectives import DROP_CI95, QUALITY, QUALITY_CI95, UTTERANCES
from hwsearch.separator.allocation import BitAllocation, uniform
from hwsearch.separator.fast import FastNetwork
from hwsearch.separator.prepare import prepare_base

SILENT_DB = -30.0
"""What silence instead of the target is worth: worse than any mixture, and finite."""


@dataclass(frozen=True)
class ScorerFactory:
    """Builds the scoring function in the process that will use it; holds paths, so that it travels light.

    Attributes:
        base: the base file.
        data_folder: the data set.
        calibration: the calibration's file, there before the first worker starts.
    """

    experiment: Experiment
    base: Path
    data_folder: Path
    calibration: Path

    def __call__(self) -> Callable[[BitAllocation], Mapping[str, float]]:
        """Load base and mixtures once; features and the mixture's own SI-SNR are kept.

        Raises:
            UserError: an unusable base or data set.
        """
        torch.set_num_threads(1)
        prepared = prepare_base(self.experiment, self.base, self.data_folder, self.calibration)
        separator = prepared.separator
        network = FastNetwork(prepared.folded, prepared.calibration, prepared.quantization)
        examples = []
        for mixture in open_dataset(self.data_folder, Split.VALIDATION)[: self.experiment.search.validation_mixtures]:
            sound, target = load_mixture(self.data_folder, mixture)
            with torch.no_grad():
                analysis = separator.analyse(torch.from_numpy(sound)[None], torch.tensor([mixture.target.doa_deg]))
            examples.append((analysis, target, float(si_snr(sound[0], target))))

        def improvements(allocation: BitAllocation) -> NDArray[np.float64]:
            mask = network.mask_function(allocation)
            found = []
            for analysis, target, unprocessed in examples:
                with torch.no_grad():
                    estimate = separator.synthesise(analysis, mask(analysis.normalised), len(target))[0].numpy()
                found.append(_si_snr(estimate, target) - unprocessed)
            return np.array(found)

        full_precision = improvements(uniform(self.experiment.separator, FLOAT_BITS, FLOAT_BITS))

        def score(allocation: BitAllocation) -> Mapping[str, float]:
            found = improvements(allocation)
            quality, drop = mean_interval(found), mean_interval(full_precision - found)
            scores = {QUALITY: quality.value, UTTERANCES: float(len(found))}
            for name, estimate in ((QUALITY_CI95, quality), (DROP_CI95, drop)):
                if estimate.high is not None:
                    scores[name] = estimate.high - estimate.value
            return scores

        return score


def _si_snr(estimate: NDArray[np.float32], target: NDArray[np.float32]) -> float:
    """SI-SNR in dB, or `SILENT_DB` for an estimate without sound: two bits may mask everything away."""
    return float(si_snr(estimate, target)) if np.any(estimate) else SILENT_DB
