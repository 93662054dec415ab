"""Every site at each of its candidate widths, alone: what all methods try out."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hwsearch.errors import UserError
from hwsearch.sensitivity.prefix import SiteTensors, continue_from, layer_output, output_site
from hwsearch.separator.allocation import ACTIVATION_WIDTHS, WEIGHT_WIDTHS, all_sites, is_weight
from hwsearch.separator.fast import fast_convolve
from hwsearch.separator.folding import input_site
from hwsearch.separator.prepare import PreparedBase
from hwsearch.separator.quantizers import fake_quantize, is_float, quantize_weight, weight_scale


@dataclass(frozen=True, eq=False)
class SiteChoices:
    """The sites and widths that sensitivities are wanted for.

    A bias keeps its floating point: it is quantized only where a layer's weights and its input both are.

    Attributes:
        base: what is quantized.
        sites: names.
        widths: candidate widths, rising.
        weights: quantized weights by weight site and width, of every width below floating point that the site may take.
    """

    base: PreparedBase
    sites: tuple[str, ...]
    widths: tuple[int, ...]
    weights: Mapping[tuple[str, int], Tensor]

    def of(self, site: str) -> tuple[int, ...]:
        """The candidate widths that a site may take."""
        return tuple(bits for bits in self.widths if bits in _allowed(site))

    def weight(self, site: str, bits: int) -> Tensor:
        """A site's weights at a width."""
        return self.base.folded.layers[layer_of(site)].weight if is_float(bits) else self.weights[site, bits]

    def activation(self, site: str, bits: int, x: Tensor) -> Tensor:
        """An activation at a width; a new tensor, or `x` itself in floating point."""
        grid = self.base.calibration.grid(site, bits)
        return x if grid is None else fake_quantize(x, grid)


def make_choices(base: PreparedBase, sites: Sequence[str], widths: Sequence[int]) -> SiteChoices:
    """Quantize the weights of every site and width, once for all mixtures.

    Raises:
        UserError: an unknown site, a site that can take none of the widths, a width that no site can take, or weights that are
            not finite.
    """
    known = all_sites(base.folded.config)
    ordered = tuple(sorted(set(widths)))
    for bits in ordered:
        if not any(bits in _allowed(site) for site in sites):
            raise UserError(f"sensitivity: no site can take {bits} bits; wanted widths of {list(WEIGHT_WIDTHS)}")
    weights: dict[tuple[str, int], Tensor] = {}
    for site in sites:
        if site not in known:
            raise UserError(f"sensitivity: unknown site '{site}'; the network's sites are like '{known[0]}'")
        if not any(bits in _allowed(site) for bits in ordered):
            raise UserError(
                f"sensitivity: site '{site}' can take none of the widths {list(ordered)}; wanted one of {list(_allowed(site))}"
            )
        if is_weight(site):
            weight = base.folded.layers[layer_of(site)].weight
            if not bool(weight.isfinite().all()):
                raise UserError(
                    f"sensitivity: site '{site}' has weights that are not finite; wanted a base that was trained well"
                )
            for bits in ordered:
                if bits in _allowed(site) and not is_float(bits):
                    scale = weight_scale(weight, bits, base.quantization)
                    weights[site, bits] = quantize_weight(weight, scale, bits).value
    return SiteChoices(base, tuple(sites), ordered, weights)


def changed_tensors(choices: SiteChoices, site: str, tensors: SiteTensors) -> tuple[str, Tensor]:
    """What stands at an activation site when one site alone is quantized.

    Args:
        choices: sites and widths.
        site: the one quantized: an activation, or a layer's weights.
        tensors: full-precision tensors of a mixture.

    Returns:
        The activation site where the change first shows (behind the layer, for weights), and the tensors there at each of
        `choices.of(site)`, [widths, channels, frames].
    """
    with torch.no_grad():
        if not is_weight(site):
            x = tensors[site]
            return site, torch.cat([choices.activation(site, bits, x) for bits in choices.of(site)])
        layer = layer_of(site)
        x = tensors[input_site(layer)]
        outputs = [
            layer_output(choices.base.folded, layer, x, choices.weight(site, bits), fast_convolve) for bits in choices.of(site)
        ]
        return output_site(layer), torch.cat(outputs)


def one_site_masks(choices: SiteChoices, tensors: SiteTensors) -> Iterator[tuple[str, Tensor]]:
    """The network's output with every site quantized alone.

    Args:
        choices: sites and widths.
        tensors: full-precision tensors of a mixture.

    Yields:
        Each of `choices.sites` in turn, and its masks [widths, 2 * bins, frames] at `choices.of(site)`.
    """
    for site in choices.sites:
        start, changed = changed_tensors(choices, site, tensors)
        with torch.no_grad():
            mask = continue_from(choices.base.folded, start, changed, tensors, fast_convolve)
        yield site, mask


def layer_of(site: str) -> str:
    """The layer of a weight site."""
    return site.removesuffix(".weight")


def by_site_and_width(choices: SiteChoices, rows: Iterator[Sequence[float]]) -> NDArray[np.float64]:
    """Rows, one per site with one number for each of its widths, as [sites, widths] with NaN at the other widths."""
    found = np.full((len(choices.sites), len(choices.widths)), math.nan)
    for index, (site, row) in enumerate(zip(choices.sites, rows, strict=True)):
        found[index, [choices.widths.index(bits) for bits in choices.of(site)]] = row
    return found


def _allowed(site: str) -> tuple[int, ...]:
    return WEIGHT_WIDTHS if is_weight(site) else ACTIVATION_WIDTHS
