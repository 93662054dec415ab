"""The numbers that a quantized network makes of others, computed in whole numbers and fractions, without thresholds.

This is what exported FINN graphs are compared with. Sums of products are whole numbers, so double precision adds them exactly. A
quotient that lies nearer to a tie than double precision can tell is rounded as a fraction.
"""

from collections.abc import Mapping
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hwsearch.export.finn.graph import unrounded_sites
from hwsearch.export.network import ExportedNetwork
from hwsearch.network import operations as ops
from hwsearch.network.run import convolve
from hwsearch.network.sites import WEIGHT
from hwsearch.separator.quantizers import ActivationGrid, bias_integers
from hwsearch.separator.rounded_weights import output_scale

Numbers = NDArray[np.float64]

_NEAR = 1e-6
"""Distance from a tie, in steps, below which a quotient is computed as a fraction."""


def exact_numbers(network: ExportedNetwork, found: Mapping[str, Numbers]) -> dict[str, Numbers]:
    """Compute the numbers of every site but the input from the numbers that a runtime made of the sites before it.

    Args:
        network: the network; nothing in it is in floating point.
        found: numbers [1, channels, frames] on the grid of each site.
    """
    return _Exact(network, found).numbers()


class _Exact:
    """One pass over the operations, in the order of execution."""

    def __init__(self, network: ExportedNetwork, found: Mapping[str, Numbers]) -> None:
        self._unrounded = unrounded_sites(network)
        self._graph = network.network.master_copy()
        self._sites = network.network.graph_sites
        self._weights = network.network.quantized_weights()
        self._found = found
        self._grids = {site: grid for site, grid in network.network.activation_grids().items() if grid is not None}
        self._sums: dict[str, tuple[Numbers, list[Fraction]]] = {}
        """Whole numbers [1, channels, frames] of tensors that are not rounded yet, and the value of 1 in each channel."""

    def numbers(self) -> dict[str, Numbers]:
        """Compute all sites."""
        wanted: dict[str, Numbers] = {}
        slopes: dict[str, list[Fraction]] = {}
        for operation in self._graph.operations:
            name = operation.name
            self._sums[name] = self._sum(operation)
            slopes[name] = self._slope(operation, self._sums[name][0].shape[1])
            site = self._sites.of_tensor.get(name)
            if site is not None:
                sums, ones = self._sums[name]
                grid = self._grids[site]
                if site in self._unrounded:
                    wanted[site] = sums + grid.zero_point
                else:
                    wanted[site] = _rounded(sums, ones, slopes[name], grid)
        return wanted

    def _sum(self, operation: ops.Operation) -> tuple[Numbers, list[Fraction]]:
        read = [self._read(name) for name in operation.inputs]
        match operation:
            case ops.Add():
                (x, ones), (y, _) = read
                return x + y, ones
            case ops.Convolution():
                return self._layer(operation, *read[0])
        return read[0]

    def _read(self, name: str) -> tuple[Numbers, list[Fraction]]:
        """Return the numbers of a tensor without zero point: those of the runtime, if the tensor is on a grid."""
        site = self._sites.of_tensor.get(name)
        if site is None:
            return self._sums[name]
        grid, numbers = self._grids[site], self._found[site]
        return numbers - grid.zero_point, [Fraction(grid.scale)] * numbers.shape[1]

    def _layer(self, layer: ops.Convolution, x: Numbers, ones: list[Fraction]) -> tuple[Numbers, list[Fraction]]:
        weight = self._weights[layer.name + WEIGHT]
        if weight is None:
            raise ValueError(f"'{layer.name}' has weights in floating point")
        scale = output_scale(layer, weight.scale)
        read = self._grids[self._sites.read_by(layer)]
        bias = bias_integers(self._graph.parameter(layer, "bias"), scale * read.scale).double()
        sums = convolve(layer, torch.from_numpy(x), weight.integers.double(), bias)
        return sums.numpy(), [Fraction(float(each)) * ones[0] for each in scale.expand(len(bias))]

    def _slope(self, operation: ops.Operation, channels: int) -> list[Fraction]:
        """Return what negative values of each channel are multiplied with."""
        slope: Tensor
        match operation:
            case ops.Elementwise():
                slope = torch.zeros(1)
            case ops.LeakyReLU(slope=constant):
                slope = torch.tensor([constant], dtype=torch.float64)
            case ops.PReLU():
                slope = self._graph.parameter(operation, "slope")
            case _:
                slope = torch.ones(1)
        return [Fraction(float(each)) for each in slope.expand(channels)]


def _rounded(sums: Numbers, ones: list[Fraction], slopes: list[Fraction], grid: ActivationGrid) -> Numbers:
    """Round numbers [1, channels, frames] to a grid, half to even."""
    step = Fraction(grid.scale)
    above, below = [one / step for one in ones], [one * slope / step for one, slope in zip(ones, slopes, strict=True)]
    ratios = [np.array([float(each) for each in side])[None, :, None] for side in (above, below)]
    quotients = sums * np.where(sums < 0, ratios[1], ratios[0])
    rounded = np.rint(quotients)
    near = np.abs(np.abs(quotients - rounded) - 0.5) < _NEAR
    for _, channel, frame in np.argwhere(near):
        number = int(sums[0, channel, frame])
        rounded[0, channel, frame] = round(number * (below if number < 0 else above)[channel])
    numbers: Numbers = np.clip(rounded + grid.zero_point, 0, grid.levels)
    return numbers
