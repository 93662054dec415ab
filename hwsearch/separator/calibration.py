"""Activation grids from a few mixtures: for every site and width, the grid of least squared rounding error.

The full-precision network runs twice over the mixtures: first for the range of each site, then for a histogram of it. The grids
are searched on the histograms. Tied sites (`network.sites.Tie`) then take the largest scale of them, each with the zero point of
least error.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from hwsearch.errors import UserError
from hwsearch.experiment import NARROW_BITS, WIDE_BITS
from hwsearch.network.graph import Graph
from hwsearch.network.run import run
from hwsearch.network.sites import Tie, find_sites
from hwsearch.process.interrupts import checkpoint
from hwsearch.separator.allocation import ACTIVATION_WIDTHS
from hwsearch.separator.quantizers import ZERO_TENSOR_SCALE, ActivationGrid, is_float
from hwsearch.separator.tied_scales import SUM_ZERO_POINT

GRID_WIDTHS = tuple(bits for bits in ACTIVATION_WIDTHS if not is_float(bits))
"""Activation widths that need a grid."""

_FORMAT = 2
_BINS = 4096
_SWEEPS = 3
_FACTORS = 48
_SEARCHED_BITS = 8
"""Widest grid whose ends are searched; wider ones have enough steps for twice the range."""
_HEADROOM = 2.0
"""Range of a wider grid relative to that of the mixtures: others may be louder."""


@dataclass(frozen=True)
class Calibration:
    """The grid of every activation site at every width: `grids[site][bits]`."""

    grids: Mapping[str, Mapping[int, ActivationGrid]]

    def grid(self, site: str, bits: int) -> ActivationGrid | None:
        """Return the grid of a site at a width; None for floating point."""
        return None if is_float(bits) else self.grids[site][bits]

    def to_json(self) -> dict[str, Any]:
        """Convert to a JSON object without loss."""
        return {
            "format": _FORMAT,
            "grids": {
                site: {str(bits): [grid.scale, grid.zero_point] for bits, grid in by_width.items()}
                for site, by_width in self.grids.items()
            },
        }

    @classmethod
    def from_json(cls, value: Any, sites: Sequence[str], source: str) -> Self:
        """Validate the result of `to_json` for a network with these activation sites.

        Raises:
            UserError: another format, a missing or unknown site or width, or a grid out of range. Names `source`.
        """
        if not isinstance(value, dict) or value.get("format") != _FORMAT or not isinstance(value.get("grids"), dict):
            raise UserError(f"{source}: not a calibration of format {_FORMAT}; delete it and it is made again")
        if set(value["grids"]) != set(sites):
            raise UserError(f"{source}: its sites are not those of the network; delete it and it is made again")
        return cls({site: _grids_from_json(value["grids"][site], site, source) for site in sites})


def calibrate(graph: Graph, features: Sequence[Tensor], ties: Iterable[Tie] = ()) -> Calibration:
    """Search the grids of every activation site and width.

    Args:
        graph: the network in full precision, with one input.
        features: normalised features of each mixture, [1, features, frames].
        ties: sites that share their scales.

    Raises:
        ValueError: no features, or activations that are not finite.
    """
    if not features:
        raise ValueError("calibration wants at least one mixture")
    sites = find_sites(graph)
    (network_input,) = graph.inputs
    ranges: dict[str, tuple[float, float]] = {}
    histograms: dict[str, Tensor] = {}

    def widen(tensor: str, x: Tensor) -> Tensor:
        if (site := sites.of_tensor.get(tensor)) is not None:
            low, high = (float(end) for end in torch.aminmax(x))
            if not math.isfinite(high - low):
                raise ValueError(f"the activations at {site} are not finite")
            before = ranges.get(site, (0.0, 0.0))  # zero is always in range: padding and silence are exact
            ranges[site] = (min(low, before[0]), max(high, before[1]))
        return x

    def count(tensor: str, x: Tensor) -> Tensor:
        low, high = ranges.get(sites.of_tensor.get(tensor, ""), (0.0, 0.0))
        if high > low:
            site = sites.of_tensor[tensor]
            histograms[site] = histograms.get(site, 0.0) + torch.histc(x.float(), _BINS, low, high).double()
        return x

    with torch.inference_mode():
        for observe in (widen, count):
            for mixture in features:
                checkpoint()
                run(graph, {network_input: mixture}, observe)
    grids = {
        site: {bits: least_squares_grid(histograms.get(site), *ranges[site], bits) for bits in GRID_WIDTHS}
        for site in sites.activations
    }
    for tie in ties:
        grids |= _tied(tie, grids, histograms, ranges)
    return Calibration(grids)


def _tied(
    tie: Tie,
    grids: Mapping[str, Mapping[int, ActivationGrid]],
    histograms: Mapping[str, Tensor],
    ranges: Mapping[str, tuple[float, float]],
) -> dict[str, dict[int, ActivationGrid]]:
    """Return the grids of tied sites: with the largest scale at each width of up to 8 bits; sums take that of 8 bits."""
    found = {site: dict(grids[site]) for site in (*tie.sites, *tie.sums)}
    for bits in [bits for bits in GRID_WIDTHS if bits <= NARROW_BITS]:
        scale = max(grids[site][bits].scale for site in tie.sites)
        for site in tie.sites:
            found[site][bits] = _at_scale(grids[site][bits], scale, histograms.get(site), *ranges[site])
    for site in tie.sums:
        found[site][WIDE_BITS] = ActivationGrid(WIDE_BITS, found[tie.sites[0]][NARROW_BITS].scale, SUM_ZERO_POINT)
    return found


def _at_scale(grid: ActivationGrid, scale: float, histogram: Tensor | None, low: float, high: float) -> ActivationGrid:
    """Return the grid of a scale with the zero point of least squared error; the grid itself if that is its scale."""
    if scale == grid.scale or histogram is None:
        return replace(grid, scale=scale)
    zero_points = torch.arange(grid.levels + 1, dtype=torch.float64)[:, None]
    quotients = (_centres(histogram, low, high) / scale).round()
    clipped = quotients.clamp(-zero_points, grid.levels - zero_points)
    error = (clipped * scale - _centres(histogram, low, high)).square_() @ histogram
    return replace(grid, scale=scale, zero_point=int(error.argmin()))


def _centres(histogram: Tensor, low: float, high: float) -> Tensor:
    """Return the values in the middle of the bins of a histogram."""
    width = (high - low) / len(histogram)
    return low + width * (torch.arange(len(histogram), dtype=torch.float64) + 0.5)


def least_squares_grid(histogram: Tensor | None, low: float, high: float, bits: int) -> ActivationGrid:
    """Search the unsigned affine grid with zero on it that has the least squared error.

    The two ends are searched in turn, each over a sweep of clipping factors, until neither moves. The histogram counts values in
    equal bins from `low`, at most 0, to `high`, at least 0; a tensor of zeros has none.
    """
    if histogram is None:
        return ActivationGrid(bits, ZERO_TENSOR_SCALE, 0)
    if bits > _SEARCHED_BITS:
        return _grid((_HEADROOM * low, _HEADROOM * high), bits)
    centres = _centres(histogram, low, high)
    factors = torch.linspace(1.0 / _FACTORS, 1.0, _FACTORS, dtype=torch.float64)
    both = torch.stack([low * factors, high * factors], dim=1)
    ends = _best_ends(histogram, centres, both, bits)
    for _ in range(_SWEEPS):
        before = ends
        for side in (0, 1):
            tried = torch.tensor([ends], dtype=torch.float64).repeat(1 + _FACTORS, 1)
            tried[1:, side] = both[:, side]
            ends = _best_ends(histogram, centres, tried, bits)
        if ends == before:
            break
    return _grid(ends, bits)


def _grid(ends: tuple[float, float], bits: int) -> ActivationGrid:
    scale, zero_point = _affine(torch.tensor([ends], dtype=torch.float64), bits)
    return ActivationGrid(bits, float(scale[0]), int(zero_point[0]))


def _affine(ends: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return scale, rounded to float32, and zero point of ranges [candidates, 2]."""
    levels = 2**bits - 1
    scale = ((ends[:, 1] - ends[:, 0]) / levels).float().double().clamp_min(torch.finfo(torch.float32).tiny)
    return scale, (-ends[:, 0] / scale).round().clamp(0, levels)


def _best_ends(histogram: Tensor, centres: Tensor, ends: Tensor, bits: int) -> tuple[float, float]:
    """Return the first pair of ends among [candidates, 2] whose grid has the least squared error."""
    scale, zero_point = (column[:, None] for column in _affine(ends, bits))
    levels = 2**bits - 1
    rounded = (centres / scale).round_().clamp_(-zero_point, levels - zero_point).mul_(scale)
    error = (rounded - centres).square_() @ histogram
    best = ends[int(error.argmin())]
    return float(best[0]), float(best[1])


def _grids_from_json(value: Any, site: str, source: str) -> Mapping[int, ActivationGrid]:
    if not isinstance(value, dict) or set(value) != {str(bits) for bits in GRID_WIDTHS}:
        raise UserError(f"{source}: site '{site}' wants a grid for each width of {list(GRID_WIDTHS)}")
    grids: dict[int, ActivationGrid] = {}
    for bits in GRID_WIDTHS:
        match value[str(bits)]:
            case [float(scale), int(zero_point)] if 0.0 < scale < 1e30 and 0 <= zero_point < 2**bits:
                grids[bits] = ActivationGrid(bits, scale, zero_point)
            case found:
                raise UserError(f"{source}: site '{site}' at {bits} bits has grid {found!r}; wanted [scale, zero point]")
    return grids
