"""Prefix reuse: the network before a quantized site is the full-precision one, so it is computed once per mixture.

In full precision the state behind any activation site is the tensor there and, within a block, the trunk that its branch will
be added to. Both are kept from one pass, and a pass with one site changed starts at that site.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from hwsearch.separator.fast import fast_layer
from hwsearch.separator.folding import Convolution, FoldedNetwork, convolve, has_activation, run_folded, trunk_site

_STAGES = ("expand", "depthwise", "project")

SiteTensors = Mapping[str, Tensor]
"""The full-precision tensor at every activation site, [1, channels, frames]."""


def site_tensors(network: FoldedNetwork, normalised: Tensor, convolution: Convolution = fast_layer) -> SiteTensors:
    """One full-precision pass over a mixture, keeping the tensor of every activation site.

    Args:
        network: the folded network.
        normalised: [1, features, frames].
        convolution: how a layer is computed.
    """
    tensors: dict[str, Tensor] = {}

    def keep(site: str, x: Tensor) -> Tensor:
        tensors[site] = x
        return x

    with torch.no_grad():
        run_folded(network, normalised, keep, convolution)
    return tensors


def continue_from(
    network: FoldedNetwork,
    site: str,
    x: Tensor,
    tensors: SiteTensors,
    convolution: Convolution = convolve,
) -> Tensor:
    """The rest of the full-precision network behind an activation site.

    Args:
        network: the folded network.
        site: an activation site.
        x: what stands there instead of the full-precision tensor, [batch, channels, frames].
        tensors: full-precision tensors of the same mixture, [1, channels, frames] each; of them only the trunk of the site's
            block is read.
        convolution: how a layer is computed.

    Returns:
        Mask [batch, 2 * bins, frames].

    Raises:
        ValueError: no activation site of that name.
    """
    if site not in tensors:
        raise ValueError(f"no activation site '{site}'")
    if site == "mask_head.output":
        return x
    if site == "features":
        return continue_from(network, "input_proj.output", convolution(x, network.layers["input_proj"]), tensors, convolution)
    following = 0
    if site != "input_proj.output":
        _, index, stage, _ = site.split(".")
        following = int(index) + 1
        if stage != "add":
            remaining = _STAGES[_STAGES.index(stage) + 1 :]
            x = tensors[trunk_site(following - 1)] + _branch(network, following - 1, x, remaining, convolution)
    for block in range(following, network.blocks):
        x = x + _branch(network, block, x, _STAGES, convolution)
    return convolution(x, network.layers["mask_head"])


def layer_output(network: FoldedNetwork, layer: str, x: Tensor, weight: Tensor, convolution: Convolution = convolve) -> Tensor:
    """What a layer gives at its `output_site`, non-linearity included, with other weights in place of its own."""
    y = convolution(x, replace(network.layers[layer], weight=weight))
    return _activate(network, output_site(layer), y)


def output_site(layer: str) -> str:
    """The activation site that a layer writes."""
    match layer:
        case "input_proj":
            return "input_proj.output"
        case "mask_head":
            return "mask_head.output"
        case _:
            return f"{layer}.output"


def _branch(network: FoldedNetwork, block: int, x: Tensor, stages: tuple[str, ...], convolution: Convolution) -> Tensor:
    for stage in stages:
        layer = f"blocks.{block}.{stage}"
        x = _activate(network, output_site(layer), convolution(x, network.layers[layer]))
    return x


def _activate(network: FoldedNetwork, site: str, x: Tensor) -> Tensor:
    if not has_activation(site):
        return x
    slope = network.slopes.get(site)
    return functional.relu(x) if slope is None else functional.leaky_relu(x, slope)
