"""A mixture ready for computing losses: the front end and the full-precision pass have run once, and the target is at hand."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import overload

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
"""Mixtures whose tensors stay in memory; 30 MB each for 6 s and 131 sites."""


@dataclass(frozen=True, eq=False)
class AnalysedMixture:
    """One mixture.

    Attributes:
        name: for messages, and part of random seeds.
        analysis: what the front end makes of it, batch of one.
        target: [1, samples], or [1, speakers, samples] in the order of the network's outputs.
        output: of the network in full precision, [1, channels, frames].
        tensors: full-precision tensors at every activation site.
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
    return analyse_mixture(base, mixture.id, torch.from_numpy(sound), mixture.target.doa_deg, torch.from_numpy(target))


class MixtureReader(Sequence[AnalysedMixture]):
    """Mixtures of a data set, each read and analysed when it is asked for; the last few stay in memory.

    Reading one again takes about as long as a forward pass.
    """

    def __init__(self, base: PreparedBase, data_folder: Path, mixtures: Sequence[Mixture]) -> None:
        self._mixtures = mixtures
        self._read = lru_cache(maxsize=KEPT_MIXTURES)(lambda index: read_mixture(base, data_folder, mixtures[index]))

    @overload
    def __getitem__(self, index: int) -> AnalysedMixture: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[AnalysedMixture]: ...
    def __getitem__(self, index: int | slice) -> AnalysedMixture | Sequence[AnalysedMixture]:
        if isinstance(index, slice):
            return [self._read(at) for at in range(len(self))[index]]
        return self._read(range(len(self))[index])

    def __len__(self) -> int:
        return len(self._mixtures)

    def named(self, name: str) -> AnalysedMixture:
        """The mixture of that id."""
        return self[[mixture.id for mixture in self._mixtures].index(name)]


def separation_loss(separator: Separator, mask: Tensor, mixture: AnalysedMixture) -> Tensor:
    """The training loss: negative SI-SNR in dB, [].

    Args:
        separator: its synthesis is used.
        mask: the network's output [1, channels, frames].
        mixture: what the mask is for.

    Raises:
        UserError: the loss is no finite number.
    """
    estimate = separator.synthesise(mixture.analysis, mask, mixture.target.shape[-1])
    loss = -si_snr(estimate, mixture.target).mean()
    if not bool(torch.isfinite(loss)):
        raise UserError(
            f"mixture '{mixture.name}': the loss of the full-precision network is {float(loss.detach())}; wanted a finite "
            "number: weights of the base or samples of this mixture are not finite (train the base or build the data again)"
        )
    return loss
