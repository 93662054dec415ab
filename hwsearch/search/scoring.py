"""The quality of a bit allocation: SI-SNR improvement on the validation mixtures."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from hwsearch.data.dataset import load_mixture, open_dataset
from hwsearch.experiment import Experiment, Split
from hwsearch.metrics.si_snr import si_snr
from hwsearch.metrics.statistics import mean_interval
from hwsearch.search.objectives import QUALITY, QUALITY_CI95
from hwsearch.separator.allocation import BitAllocation
from hwsearch.separator.fast import FastNetwork
from hwsearch.separator.prepare import prepare_base

UTTERANCES = "utterances"
"""How many mixtures a score is the mean of."""


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
                analysis = separator.analyse(
                    torch.from_numpy(sound)[None], torch.tensor([mixture.target.doa_deg])
                )
            examples.append((analysis, target, float(si_snr(sound[0], target))))

        def score(allocation: BitAllocation) -> Mapping[str, float]:
            mask = network.mask_function(allocation)
            improvements = []
            for analysis, target, unprocessed in examples:
                with torch.no_grad():
                    estimate = separator.synthesise(analysis, mask(analysis.normalised), len(target))[0].numpy()
                improvements.append(float(si_snr(estimate, target)) - unprocessed)
            estimate_of_mean = mean_interval(improvements)
            scores = {QUALITY: estimate_of_mean.value, UTTERANCES: float(len(improvements))}
            if estimate_of_mean.high is not None:
                scores[QUALITY_CI95] = estimate_of_mean.high - estimate_of_mean.value
            return scores

        return score
