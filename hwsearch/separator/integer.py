"""The scorer's network in 8-bit integers, where the processor multiplies those: the fastest way to score most candidates.

Products are summed as exact integers and brought to the next grid by one rounding, so a value differs from the Brevitas network's
only where float rounding there moves it over the half between two integers.

Shapes are channels-last, [batch, frames, channels], which is what oneDNN's kernels take. Those are the ones that torch's own
quantized graphs are lowered to.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from hwsearch.separator.folding import FoldedLayer, FoldedNetwork, has_activation, trunk_site
from hwsearch.separator.quantizers import ActivationGrid, QuantizedWeight, bias_integers

MAX_BITS = 8
"""Widest weights and activations that the kernels take."""


@cache
def integers_are_fast() -> bool:
    """Whether this processor multiplies bytes and sums them exactly (VNNI).

    Without it oneDNN may add pairs of products in 16 bits, which saturates.
    """
    capabilities = torch.cpu.get_capabilities()
    vnni = any(bool(capabilities.get(name)) for name in ("avx512_vnni", "avx_vnni", "avx2_vnni"))
    return vnni and hasattr(torch.ops.onednn, "qlinear_pointwise")


@dataclass(frozen=True, eq=False)
class IntegerLayer:
    """A convolution between two grids.

    Attributes:
        packed: the weights in the kernel's own layout.
        scale: [out] of the weights.
        zeros: [out], the weights' zero points.
        bias: [out], rounded to the products' grid.
        shape: dilation, groups and padding of the convolution.
        read: grid of the input.
    """

    packed: Tensor
    scale: Tensor
    zeros: Tensor
    bias: Tensor
    shape: FoldedLayer
    read: ActivationGrid


def integer_layer(layer: FoldedLayer, weight: QuantizedWeight, read: ActivationGrid) -> IntegerLayer:
    """Pack a layer's weights for inputs on a grid."""
    channels = len(layer.weight)
    scale = weight.scale.flatten().expand(channels).contiguous()
    product_scale = weight.scale.flatten() * read.scale
    bias = bias_integers(layer.bias, product_scale) * product_scale
    integers = weight.integers.to(torch.int8)
    if layer.groups == 1:
        packed = torch.ops.onednn.qlinear_prepack(integers[:, :, 0].contiguous(), None)
    else:
        packed = torch.ops.onednn.qconv_prepack(
            integers[:, :, None], scale, read.scale, read.zero_point, [1, 1], [0, 0], [1, layer.dilation], layer.groups, None
        )
    return IntegerLayer(packed, scale, torch.zeros(channels, dtype=torch.int32), bias, layer, read)


def to_grid(x: Tensor, grid: ActivationGrid) -> tuple[Tensor, Tensor]:
    """Round to a grid: integers in uint8, and the values they stand for; neither is `x`, and `x` is left alone."""
    quotient = (x / grid.scale).round_().clamp_(-grid.zero_point, grid.levels - grid.zero_point)
    # By way of 32 bits, because torch's own way from float to uint8 is not vectorised.
    return (quotient + grid.zero_point).to(torch.int32).to(torch.uint8), quotient.mul_(grid.scale)


def from_grid(x: Tensor, grid: ActivationGrid) -> Tensor:
    """The values that integers stand for."""
    return x.float().sub_(grid.zero_point).mul_(grid.scale)


def run_layer(x: Tensor, layer: IntegerLayer, write: ActivationGrid | None, *, relu: bool) -> Tensor:
    """One layer: uint8 [batch, frames, in] to uint8 [batch, frames, out] on a grid, or to real values without one."""
    scale, zero_point, kind = (1.0, 0, torch.float32) if write is None else (write.scale, write.zero_point, torch.uint8)
    after = "relu" if relu else "none"
    read, shape = layer.read, layer.shape
    y: Tensor
    if shape.groups == 1:
        y = torch.ops.onednn.qlinear_pointwise(
            x,
            read.scale,
            read.zero_point,
            layer.packed,
            layer.scale,
            layer.zeros,
            layer.bias,
            scale,
            zero_point,
            kind,
            after,
            [],
            "",
        )
    else:
        padded = functional.pad(x, (0, 0, *shape.padding), value=read.zero_point)
        y = torch.ops.onednn.qconv2d_pointwise(
            padded.transpose(1, 2)[:, :, None],
            *(read.scale, read.zero_point, layer.packed, layer.scale, layer.zeros, layer.bias),
            *([1, 1], [0, 0], [1, shape.dilation], shape.groups),
            *(scale, zero_point, kind, after, [], ""),
        )[:, :, 0].transpose(1, 2)
    # The kernel holds its result within eight bits; narrower grids end below.
    return y.clamp_(max=write.levels) if write is not None and write.bits < MAX_BITS else y


def first_layer(normalised: Tensor, layer: IntegerLayer) -> Tensor:
    """The trunk before the first block, [batch, frames, B], of features [batch, features, frames]."""
    return run_layer(to_grid(normalised, layer.read)[0].transpose(1, 2).contiguous(), layer, None, relu=False)


def run_integer(
    network: FoldedNetwork, layers: Mapping[str, IntegerLayer], grids: Mapping[str, ActivationGrid], trunk: Tensor
) -> Tensor:
    """`folding.run_folded` behind its first layer.

    Args:
        network: with ReLU activations.
        layers: by name.
        grids: by activation site.
        trunk: what `first_layer` gave, [batch, frames, B].

    Returns:
        Mask [batch, 2 * bins, frames].
    """
    for index in range(network.blocks):
        name = f"blocks.{index}"
        x, trunk = to_grid(trunk, grids[trunk_site(index)])
        for stage in ("expand", "depthwise", "project"):
            site = f"{name}.{stage}.output"
            x = run_layer(x, layers[f"{name}.{stage}"], grids[site], relu=has_activation(site))
        trunk = trunk.add_(from_grid(x, grids[site]))
    x, _ = to_grid(trunk, grids[trunk_site(network.blocks)])
    masks = grids["mask_head.output"]
    return from_grid(run_layer(x, layers["mask_head"], masks, relu=False).transpose(1, 2).contiguous(), masks)
