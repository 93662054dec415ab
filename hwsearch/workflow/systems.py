"""Separators as something to evaluate."""

import torch

from hwsearch.metrics.evaluation import Audio, System
from hwsearch.separator.allocation import BitAllocation
from hwsearch.separator.fast import FastNetwork
from hwsearch.separator.prepare import PreparedBase
from hwsearch.separator.separator import MaskFunction, Separator
from hwsearch.separator.trained import TrainedState, trained_mask_function


def float_system(separator: Separator) -> System:
    """The full-precision base as something to evaluate."""
    return _system(separator, separator.network)


def candidate_system(prepared: PreparedBase, allocation: BitAllocation, state: TrainedState | None = None) -> System:
    """A candidate as something to evaluate, post-training or as training has left it."""
    if state is not None:
        return _system(prepared.separator, trained_mask_function(prepared, state))
    network = FastNetwork(prepared.graph, prepared.calibration, prepared.quantization, scales=prepared.scales)
    return _system(prepared.separator, network.mask_function(allocation))


def _system(separator: Separator, mask_function: MaskFunction) -> System:
    def separate(sound: Audio, doa_deg: float) -> Audio:
        with torch.no_grad():
            estimate = separator.separate(torch.from_numpy(sound)[None], torch.tensor([doa_deg]), mask_function)
        result: Audio = estimate[0].numpy()
        return result

    return separate
