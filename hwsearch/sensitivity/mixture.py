"""A mixture with the results of the front end and of the full-precision network, and the loss on it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from hwsearch.data.dataset import Mixture, load_mixture
from hwsearch.errors import UserError
from hwsearch.sensitivity.prefix import SiteTensors, run_keeping
from hwsearch.separator.front_end import Analysis
from hwsearch.separator.prepare import PreparedBase
from hwsearch.separator.separator import Separator
from hwsearch.training.loss import ordered, si_snr

KEPT_MIXTURES = 16
"""Number of mixtures whose tensors stay in memory. Each takes 30 MB for 6 s and 131 sites."""


@dataclass(frozen=True, eq=False)
class AnalysedMixture:
    """A mixture after one full-precision pass.

    Attributes:
        name: for messages, and part of random seeds.
        analysis: result of the front end, batch of one.
        target: [1, samples], or [1, speakers, samples] in the order of the network's outputs.
        output: the network's full-precision output, [1, channels, frames].
        tensors: the full-precision tensor at every activation site.
    """

    name: str
    analysis: Analysis
    target: Tensor
    output: Tensor
    tensors: SiteTensors


def analyse_mixture(base: PreparedBase, name: str, mixture: Tensor, doa_deg: float, target: Tensor) -> AnalysedMixture:
    """Run the front end and the full-precision network over a mixture [mics, samples] with its target [samples]."""
    mixture, target = mixture.to(base.device), target.to(base.device)
    with torch.no_grad():
        analysis = base.separator.analyse(mixture[None], torch.tensor([doa_deg], dtype=mixture.dtype, device=base.device))
        output, tensors = run_keeping(base.graph, base.sites, analysis.normalised)
        references = base.separator.front_end.references(mixture[None], target[None])
        if not base.separator.front_end.directed:
            references = ordered(references, base.separator.synthesise(analysis, output, target.shape[-1]))
    return AnalysedMixture(name, analysis, references, output, tensors)


def read_mixture(base: PreparedBase, data_folder: Path, mixture: Mixture) -> AnalysedMixture:
    """Read a mixture of a data set and analyse it.

    Raises:
        UserError: a file is missing or changed.
    """
    sound, target = load_mixture(data_folder, mixture)
    return analyse_mixture(base, mixture.id, torch.from_numpy(sound), mixture.doa_deg, torch.from_numpy(target))


class MixtureReader:
    """Reads and analyses the mixtures of a data set on demand, and keeps the last few in memory.

    Reading a mixture takes about as long as a forward pass.
    """

    def __init__(self, base: PreparedBase, data_folder: Path, mixtures: Sequence[Mixture]) -> None:
        by_name = {mixture.id: mixture for mixture in mixtures}
        self._names = tuple(by_name)
        self.named = lru_cache(maxsize=KEPT_MIXTURES)(lambda name: read_mixture(base, data_folder, by_name[name]))
        """Returns the mixture of an id."""

    def __iter__(self) -> Iterator[AnalysedMixture]:
        return map(self.named, self._names)


def separation_loss(separator: Separator, mask: Tensor, mixture: AnalysedMixture) -> Tensor:
    """The training loss, negative SI-SNR in dB, for a mixture and the network's output [1, channels, frames].

    Raises:
        UserError: the loss is not finite.
    """
    estimate = separator.synthesise(mixture.analysis, mask, mixture.target.shape[-1])
    loss = -si_snr(estimate, mixture.target).mean()
    if not bool(torch.isfinite(loss)):
        raise UserError(
            f"mixture '{mixture.name}': the loss of the full-precision network is {float(loss.detach())}; wanted a finite "
            "number: weights of the base or samples of this mixture are not finite (train the base or build the data again)"
        )
    return loss
