"""The recoverability sensitivity: the loss that remains at a site after a few steps of quantization-aware training.

The network is trained with one site quantized, and once with none, for as many steps on the same examples in the same order. The
SI-SNR lost between the two becomes a noise ratio (`scores.noise_ratio`). Training is expensive, so only widths below
`jobs.TRAINED_BELOW_BITS` are trained. Wider ones take the output-noise ratio without training, which has the same unit. If little
is lost, it is also less noisy than a measured ratio.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch

from hwsearch.data.seeding import generator
from hwsearch.errors import UserError
from hwsearch.experiment import FLOAT_BITS, Experiment, Split
from hwsearch.metrics.errors import MetricUnavailable
from hwsearch.metrics.si_snr import si_snr
from hwsearch.sensitivity.choices import Candidates
from hwsearch.sensitivity.mixture import AnalysedMixture
from hwsearch.separator.allocation import BitAllocation
from hwsearch.separator.prepare import PreparedBase

if TYPE_CHECKING:
    from hwsearch.training.pool import TrainingPool


def check_trainable(experiment: Experiment, why: str = "recoverability trains with each site quantized") -> None:
    """Refuse an experiment that has nothing to train on.

    Args:
        experiment: the experiment, with its rooms and speech.
        why: what trains, for the message.

    Raises:
        UserError: no recorded mixtures for training, and no rooms; or no speech for the rooms.
    """
    if experiment.data.has_recorded(Split.TRAIN) and Split.TRAIN not in experiment.data.rooms.count:
        return
    if Split.TRAIN not in experiment.data.rooms.count:
        raise UserError(f"data.rooms.count: no 'train'; {why}, wanted rooms to train in")
    if not any(corpus.splits.get(Split.TRAIN, 0.0) > 0.0 for corpus in experiment.data.corpora):
        raise UserError(f"data.corpora: none has a share 'train'; {why}, wanted speech for it")


def score_trained(
    base: PreparedBase, mixtures: Iterable[AnalysedMixture], candidates: Candidates, pool: "TrainingPool", experiment: Experiment
) -> list[float]:
    """SI-SNR of each mixture in dB after training with some sites quantized.

    Args:
        base: the network to train.
        mixtures: scored afterwards.
        candidates: quantized sites, one width each; none for the full-precision network.
        pool: training examples.
        experiment: settings of training (`qat`, `sensitivity.recoverability_steps`) and seed.

    Raises:
        UserError: training diverges, or an estimate is silent or not finite. The message names the site.
    """
    # Brevitas takes long to load, and only this needs it.
    from hwsearch.separator.trained import trained_mask_function
    from hwsearch.training.qat import TrainingDivergedError, train_quantized

    widths = dict.fromkeys((*base.sites.weights, *base.sites.activations), FLOAT_BITS) | {
        site: bits for site, (bits,) in candidates
    }
    steps = experiment.sensitivity.recoverability_steps
    # With the same seed, every training sees the same examples, so results differ only by the site.
    seed = int(generator("recoverability", experiment.seed).integers(2**31))
    what = ", ".join(f"'{site}' at {bits} bits" for site, (bits,) in candidates) or "nothing"
    try:
        state = train_quantized(base, BitAllocation.of(widths), pool, experiment.qat, steps, seed)
    except TrainingDivergedError as error:
        raise UserError(f"recoverability, training with {what} quantized: {error}") from None
    mask = trained_mask_function(base, state)
    scores = []
    for mixture in mixtures:
        with torch.no_grad():
            samples = mixture.target.shape[-1]
            estimate = base.separator.synthesise(mixture.analysis, mask(mixture.analysis.normalised), samples)
        try:
            scores.append(float(np.mean(si_snr(estimate[0].cpu().numpy(), mixture.target[0].cpu().numpy()))))
        except MetricUnavailable as error:
            raise UserError(
                f"mixture '{mixture.name}', trained with {what} quantized: SI-SNR has no value ({error}); wanted a lower "
                "qat.learning_rate or qat.scale_learning_rate"
            ) from None
    return scores
