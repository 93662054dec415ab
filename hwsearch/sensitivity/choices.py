"""The choices that methods try: each site alone, at each of its candidate widths."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hwsearch.errors import UserError
from hwsearch.network.sites import WEIGHT
from hwsearch.sensitivity.prefix import Continuation, SiteTensors
from hwsearch.separator.allocation import ACTIVATION_WIDTHS, WEIGHT_WIDTHS, is_weight
from hwsearch.separator.prepare import PreparedBase
from hwsearch.separator.quantizers import fake_quantize, is_float
from hwsearch.separator.rounded_weights import RoundedLayer

Candidates = tuple[tuple[str, tuple[int, ...]], ...]
"""Sites, each with the widths that it is tried at, as in `SearchSpace.free_sites`."""


@dataclass(frozen=True, eq=False)
class SiteChoices:
    """The sites and widths that sensitivities are wanted for.

    A bias stays in floating point, because it is quantized only if a layer's weights and its input both are.

    Attributes:
        base: the base.
        candidates: sites and widths, rising.
        weights: quantized weights by weight site and width, for every width below floating point.
    """

    base: PreparedBase
    candidates: Candidates
    weights: Mapping[tuple[str, int], RoundedLayer]

    @cached_property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites, in the order of `candidates`."""
        return tuple(site for site, _ in self.candidates)

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """Every width that some site is tried at, rising."""
        return all_widths(self.candidates)

    @cached_property
    def continuation(self) -> Continuation:
        """The network behind each site."""
        return Continuation(self.base.graph, self.base.sites)

    def of(self, site: str) -> tuple[int, ...]:
        """The widths that a site is tried at."""
        return dict(self.candidates)[site]

    def weight(self, site: str, bits: int) -> Tensor:
        """A site's weights at a width."""
        return self.base.graph.parameters[site] if is_float(bits) else self.weights[site, bits].weight.value

    def bias(self, site: str, bits: int) -> Tensor:
        """The bias that belongs to a site's weights at a width."""
        return self.base.graph.parameters[f"{layer_of(site)}.bias"] if is_float(bits) else self.weights[site, bits].bias

    def activation(self, site: str, bits: int, x: Tensor) -> Tensor:
        """An activation at a width; a new tensor, or `x` itself in floating point."""
        grid = self.base.calibration.grid(site, bits)
        return x if grid is None else fake_quantize(x, grid)


def check_candidates(known: Sequence[str], candidates: Candidates) -> None:
    """Refuse sites and widths that cannot be quantized, given the network's sites.

    Raises:
        UserError: no site, an unknown one, one named twice, one without a width, or a width that its site cannot take.
    """
    if not candidates:
        raise UserError("sensitivity: no site is free to take another width; wanted one with at least two (search.weight_bits)")
    seen = set()
    for site, widths in candidates:
        if site not in known:
            raise UserError(f"sensitivity: unknown site '{site}'; the network's sites are like '{known[0]}'")
        if site in seen:
            raise UserError(f"sensitivity: site '{site}' is named twice; wanted every site once")
        seen.add(site)
        allowed = WEIGHT_WIDTHS if is_weight(site) else ACTIVATION_WIDTHS
        refused = [bits for bits in widths if bits not in allowed]
        if refused or not widths:
            found = f"{refused[0]} bits" if refused else "no width"
            raise UserError(f"sensitivity: site '{site}' cannot be quantized to {found}; wanted some of {list(allowed)}")


def make_choices(base: PreparedBase, candidates: Candidates) -> SiteChoices:
    """Quantize the weights of every site and width, once for all mixtures.

    Raises:
        UserError: `check_candidates` refuses the sites or widths, or weights are not finite.
    """
    check_candidates((*base.sites.weights, *base.sites.activations), candidates)
    weights: dict[tuple[str, int], RoundedLayer] = {}
    for site, widths in candidates:
        if is_weight(site):
            weight = base.graph.parameters[site]
            if not bool(weight.isfinite().all()):
                raise UserError(
                    f"sensitivity: site '{site}' has weights that are not finite; wanted a base that was trained well"
                )
            for bits in widths:
                if not is_float(bits):
                    weights[site, bits] = base.weights.layer(layer_of(site), bits)
    return SiteChoices(base, tuple((site, tuple(sorted(set(widths)))) for site, widths in candidates), weights)


def all_widths(candidates: Candidates) -> tuple[int, ...]:
    """Every width that some site is tried at, rising."""
    return tuple(sorted({bits for _, widths in candidates for bits in widths}))


def changed_tensors(choices: SiteChoices, site: str, widths: Sequence[int], tensors: SiteTensors) -> tuple[str, Tensor]:
    """Quantize one site, an activation or a layer's weights, to some of its widths, given a mixture's full-precision tensors.

    Returns:
        The activation site where the change first shows, which for weights lies behind the layer, and the tensors there at each
        width, [widths, channels, frames].
    """
    with torch.no_grad():
        if not is_weight(site):
            x = tensors[site]
            return site, torch.cat([choices.activation(site, bits, x) for bits in widths])
        layer, network = layer_of(site), choices.continuation
        outputs = [network.layer_output(layer, choices.weight(site, bits), choices.bias(site, bits), tensors) for bits in widths]
        return network.site_behind(layer), torch.cat(outputs)


def layer_of(site: str) -> str:
    """The layer of a weight site."""
    return site.removesuffix(WEIGHT)


def by_site_and_width(choices: SiteChoices, rows: Iterable[Sequence[float]]) -> NDArray[np.float64]:
    """Arrange rows, one per site with a number for each of its widths, as [sites, widths] with NaN at the other widths."""
    found = np.full((len(choices.sites), len(choices.widths)), math.nan)
    for index, (site, row) in enumerate(zip(choices.sites, rows, strict=True)):
        found[index, [choices.widths.index(bits) for bits in choices.of(site)]] = row
    return found
