"""The separator's output with each site quantized alone, and any number of scores of it, in one walk over the sites.

Running the network behind each site at each width is nearly all the work, so methods share these runs.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hwsearch.process.interrupts import checkpoint
from hwsearch.sensitivity.choices import SiteChoices, by_site_and_width, changed_tensors
from hwsearch.sensitivity.mixture import AnalysedMixture
from hwsearch.separator.quantizers import is_float
from hwsearch.separator.separator import Separator


@dataclass(frozen=True, eq=False)
class OneSiteOutput:
    """The output for a mixture with one site quantized, or with none.

    Attributes:
        site: the quantized site; None in full precision.
        masks: the network's output at each width of the site, [widths, channels, frames].
        separator: its synthesis is used.
        mixture: what the network was given.
    """

    site: str | None
    masks: Tensor
    separator: Separator
    mixture: AnalysedMixture

    @cached_property
    def estimates(self) -> Tensor:
        """Waveforms, [widths, samples] or [widths, speakers, samples]."""
        with torch.no_grad():
            return self.separator.synthesise(self.mixture.analysis, self.masks, self.mixture.target.shape[-1])

    def __str__(self) -> str:
        """Describe the output for messages."""
        what = "in full precision" if self.site is None else f"with '{self.site}' alone quantized"
        return f"mixture '{self.mixture.name}', {what}"


Score = Callable[[OneSiteOutput], Sequence[float]]
"""Gives a number for each width of a site."""


def full_precision_output(separator: Separator, mixture: AnalysedMixture) -> OneSiteOutput:
    """Return the output with nothing quantized, as if full precision were a single width."""
    return OneSiteOutput(None, mixture.output, separator, mixture)


def score_sites(choices: SiteChoices, mixture: AnalysedMixture, scores: Sequence[Score]) -> list[NDArray[np.float64]]:
    """Score a mixture with each site quantized alone.

    Returns:
        For each score [sites, widths]; NaN at widths that a site is not tried at.
    """
    rows = [
        [score(OneSiteOutput(site, masks, choices.base.separator, mixture)) for score in scores]
        for site, masks in one_site_masks(choices, mixture)
    ]
    return [by_site_and_width(choices, found) for found in zip(*rows, strict=True)]


def one_site_masks(choices: SiteChoices, mixture: AnalysedMixture) -> Iterator[tuple[str, Tensor]]:
    """Yield each site, and the network's outputs [widths, channels, frames] with that site alone quantized to its widths."""
    for site in choices.sites:
        checkpoint()
        widths = choices.of(site)
        quantized = tuple(bits for bits in widths if not is_float(bits))
        masks = mixture.output[:0]
        if quantized:
            start, changed = changed_tensors(choices, site, quantized, mixture.tensors)
            with torch.no_grad():
                masks = choices.continuation.continue_from(start, changed, mixture.tensors)
        # Floating point is the widest width, so the last, and changes nothing.
        yield site, torch.cat([masks, mixture.output]) if len(quantized) < len(widths) else masks
