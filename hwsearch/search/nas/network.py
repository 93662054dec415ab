"""One network that is every allocation at once: each site a mixture of its quantized versions.

Weights are mixed before the convolution, so that a step is one forward and one backward pass whatever the number of widths.
Rounding passes gradients straight through: to activations where nothing is clipped, and to weights that are trained. Where every
mixture is one option alone, the network computes what `FastNetwork` does.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hwsearch.search.nas.options import SiteOptions
from hwsearch.separator.folding import FoldedLayer, input_site, run_folded
from hwsearch.separator.quantizers import ActivationGrid, fake_quantize


class RelaxedNetwork:
    """A base with every site mixed from its options.

    Args:
        options: the base at every option.
        train_weights: whether weights and biases are to be trained; the base itself is left as it is.

    Attributes:
        masters: weight and bias by layer name; copies that require gradients if they are trained.
    """

    def __init__(self, options: SiteOptions, *, train_weights: bool = False) -> None:
        problem = options.problem
        self._options = options
        self._train_weights = train_weights
        self._choice = dict(zip(problem.sites, problem.choice_of.tolist(), strict=True))
        self.masters = {
            name: (layer.weight.clone().requires_grad_(train_weights), layer.bias.clone().requires_grad_(train_weights))
            for name, layer in options.base.folded.layers.items()
        }

    def mask(self, normalised: Tensor, shares: Tensor) -> Tensor:
        """The network's output, differentiable in the shares and in weights that are trained.

        Args:
            normalised: channels first, [features, batch, frames], so that a 1x1 convolution is one matrix product.
            shares: [choices, options] of every option in its mixture; rows sum to 1.

        Returns:
            [2 * bins, batch, frames].
        """
        base = self._options.base
        layers = {name: self._mixed_layer(name, layer, shares) for name, layer in base.folded.layers.items()}

        def at_site(site: str, x: Tensor) -> Tensor:
            grids = [base.calibration.grid(site, bits) for bits in self._options.widths[site]]
            versions = [x if grid is None else _rounded(x, grid) for grid in grids]
            if len(versions) == 1:
                return versions[0]
            return torch.stack([share * y for share, y in zip(self._shares(site, shares), versions, strict=True)]).sum(dim=0)

        return run_folded(replace(base.folded, layers=layers), normalised, at_site, _convolve)

    def _shares(self, site: str, shares: Tensor) -> Tensor:
        """[options] of a site."""
        return shares[self._choice[site], : len(self._options.widths[site])]

    def _mixed_layer(self, name: str, layer: FoldedLayer, shares: Tensor) -> FoldedLayer:
        weight_shares = self._shares(f"{name}.weight", shares)
        input_shares = self._shares(input_site(self._options.base.folded.config, name), shares)
        weights, biases = self._options.layers[name]
        if self._train_weights:
            masters = self.masters[name]
            with torch.no_grad():
                weights, biases = self._options.grids[name].quantized(*masters)
        weight = torch.tensordot(weight_shares, weights, dims=1)
        bias = torch.tensordot(input_shares, torch.tensordot(weight_shares, biases, dims=1), dims=1)
        if self._train_weights:
            # Straight through: the values of the mixture, the gradients of the master copies.
            weight, bias = (mixed + (copy - copy.detach()) for mixed, copy in zip((weight, bias), masters, strict=True))
        return replace(layer, weight=weight, bias=bias)


class _StraightThrough(torch.autograd.Function):
    """Rounding to a grid; the gradient passes where nothing is clipped."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: ActivationGrid) -> Tensor:
        half = grid.scale / 2
        ctx.save_for_backward(x)
        ctx.ends = grid.low - half, grid.high + half
        return fake_quantize(x, grid)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(gradient, x, *ctx.ends), None


def _convolve(x: Tensor, layer: FoldedLayer) -> Tensor:
    """`folding.convolve` of [in, batch, frames]: a matrix product, or a sum of shifted products; faster on a CPU."""
    if layer.groups == 1:
        return torch.addmm(layer.bias[:, None], layer.weight[:, :, 0], x.flatten(1)).reshape(-1, *x.shape[1:])
    padded, frames = functional.pad(x, layer.padding), x.shape[-1]
    taps = [layer.weight[:, 0, tap, None, None] for tap in range(layer.weight.shape[-1])]
    starts = [tap * layer.dilation for tap in range(len(taps))]
    y = layer.bias[:, None, None]
    for start, gain in zip(starts, taps, strict=True):
        y = torch.addcmul(y, padded[..., start : start + frames], gain)
    return y


def _rounded(x: Tensor, grid: ActivationGrid) -> Tensor:
    y: Tensor = _StraightThrough.apply(x, grid)  # type: ignore[no-untyped-call]
    return y
