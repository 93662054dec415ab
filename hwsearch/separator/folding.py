"""Batch norms folded into convolutions: the one form of the network that everything quantized starts from.

At inference a batch norm is the affine map y -> (y - mean) * gamma / sqrt(variance + eps) + beta per channel
(arXiv 1502.03167, equation of algorithm 2), which a convolution's weights and bias absorb. It stands behind
the convolution and before anything non-linear, so folding changes nothing but rounding, at the zero-padded
ends too.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from hwsearch.experiment import SeparatorConfig
from hwsearch.network import operations as graph_operations
from hwsearch.network.graph import Graph
from hwsearch.network.operations import Operation
from hwsearch.separator.tcn import ConvBlock, MaskNetwork, padding


@dataclass(frozen=True, eq=False)
class FoldedLayer:
    """A convolution with its norm folded in.

    Attributes:
        weight: [out, in / groups, kernel].
        bias: [out].
        dilation: frames between taps.
        groups: 1, or the number of channels for a depthwise layer.
        padding: frames of zeros before and after.
    """

    weight: Tensor
    bias: Tensor
    dilation: int = 1
    groups: int = 1
    padding: tuple[int, int] = (0, 0)


@dataclass(frozen=True, eq=False)
class FoldedNetwork:
    """A mask network as plain tensors.

    Attributes:
        config: its shape.
        layers: by layer name (a weight site without its `.weight`), in the order of execution.
        slopes: PReLU slope by activation site; empty for ReLU.
    """

    config: SeparatorConfig
    layers: Mapping[str, FoldedLayer]
    slopes: Mapping[str, float]

    @property
    def blocks(self) -> int:
        """Number of residual blocks."""
        return self.config.R * self.config.X


SiteFunction = Callable[[str, Tensor], Tensor]
"""What happens to the tensor of an activation site: observed, quantized, or left as it is."""

Convolution = Callable[[Tensor, FoldedLayer], Tensor]
"""How a layer is computed: [batch, in, frames] -> [batch, out, frames]."""


def fold(network: MaskNetwork) -> FoldedNetwork:
    """Fold every batch norm of `network` by its running statistics."""
    config = network.config
    layers = {"input_proj": _folded(network.input_proj, network.input_norm)}
    slopes: dict[str, float] = {}
    for index, block in enumerate(network.blocks):
        if not isinstance(block, ConvBlock):
            raise TypeError(f"block {index} is a {type(block).__name__}; wanted a ConvBlock")
        name = f"blocks.{index}"
        pads = padding(block.kernel_size, block.dilation, causal=block.causal)
        layers[f"{name}.expand"] = _folded(block.expand, block.expand_norm)
        layers[f"{name}.depthwise"] = _folded(block.depthwise, block.depthwise_norm, pads)
        layers[f"{name}.project"] = _folded(block.project, block.project_norm)
        for stage in ("expand", "depthwise"):
            activation = getattr(block, f"{stage}_activation")
            if isinstance(activation, nn.PReLU):
                slopes[f"{name}.{stage}.output"] = float(activation.weight.detach())
    layers["mask_head"] = _folded(network.mask_head, None)
    return FoldedNetwork(config, layers, slopes)


def as_graph(network: FoldedNetwork) -> Graph:
    """The network as a graph: what `network.trace` makes of the mask network, without the seconds that tracing takes."""
    operations: list[Operation] = []
    parameters: dict[str, Tensor] = {}

    def convolution(name: str, before: str) -> str:
        layer = network.layers[name]
        operations.append(
            operation := graph_operations.Convolution(
                name, (before,), dilation=layer.dilation, groups=layer.groups, padding=layer.padding
            )
        )
        parameters.update({f"{name}.weight": layer.weight, f"{name}.bias": layer.bias})
        return operation.name

    def activation(layer: str) -> str:
        name, slope = f"{layer}_activation", network.slopes.get(f"{layer}.output")
        if slope is None:
            operations.append(graph_operations.Elementwise(name, (layer,), graph_operations.Function.RELU))
        else:
            operations.append(graph_operations.PReLU(name, (layer,)))
            parameters[f"{name}.slope"] = torch.tensor([slope])
        return name

    trunk = convolution("input_proj", "features")
    for index in range(network.blocks):
        block = f"blocks.{index}"
        branch = trunk
        for stage in ("expand", "depthwise"):
            branch = activation(convolution(f"{block}.{stage}", branch))
        branch = convolution(f"{block}.project", branch)
        operations.append(graph_operations.Add(f"{block}.add", (trunk, branch)))
        trunk = f"{block}.add"
    output = convolution("mask_head", trunk)
    return Graph(("features",), tuple(operations), (output,), parameters)


def convolve(x: Tensor, layer: FoldedLayer) -> Tensor:
    """One layer's convolution: [batch, in, frames] -> [batch, out, frames]."""
    padded = functional.pad(x, layer.padding) if any(layer.padding) else x
    return functional.conv1d(padded, layer.weight, layer.bias, dilation=layer.dilation, groups=layer.groups)


def run_folded(
    network: FoldedNetwork,
    normalised: Tensor,
    at_site: SiteFunction,
    convolution: Convolution = convolve,
) -> Tensor:
    """The network's forward pass, handing the tensor of every activation site to `at_site` on its way.

    Args:
        network: the folded network.
        normalised: [batch, features, frames].
        at_site: called once per activation site in the order of execution; its result takes the tensor's
            place.
        convolution: how a layer is computed.

    Returns:
        Mask [batch, 2 * bins, frames].
    """

    def activate(site: str, x: Tensor) -> Tensor:
        slope = network.slopes.get(site)
        return functional.relu(x) if slope is None else functional.leaky_relu(x, slope)

    def apply(layer: str, x: Tensor) -> Tensor:
        return convolution(x, network.layers[layer])

    x = at_site("input_proj.output", apply("input_proj", at_site("features", normalised)))
    for index in range(network.blocks):
        name = f"blocks.{index}"
        y = x
        for stage in ("expand", "depthwise"):
            site = f"{name}.{stage}.output"
            y = at_site(site, activate(site, apply(f"{name}.{stage}", y)))
        x = at_site(f"{name}.add.output", x + at_site(f"{name}.project.output", apply(f"{name}.project", y)))
    return at_site("mask_head.output", apply("mask_head", x))


def has_activation(site: str) -> bool:
    """Whether a non-linearity stands before an activation site."""
    return site.endswith((".expand.output", ".depthwise.output"))


def trunk_site(block: int) -> str:
    """The activation site of the trunk before a block; with the number of blocks, of that behind the last."""
    return f"blocks.{block - 1}.add.output" if block else "input_proj.output"


def input_site(config: SeparatorConfig, layer: str) -> str:
    """The activation site that a layer reads."""
    block, _, stage = layer.rpartition(".")
    match stage:
        case "input_proj":
            return "features"
        case "mask_head":
            return trunk_site(config.R * config.X)
        case "expand":
            return trunk_site(int(block.removeprefix("blocks.")))
        case "depthwise":
            return f"{block}.expand.output"
        case "project":
            return f"{block}.depthwise.output"
        case _:
            raise ValueError(f"no layer '{layer}'")


def _folded(convolution: nn.Conv1d, norm: nn.BatchNorm1d | None, pads: tuple[int, int] = (0, 0)) -> FoldedLayer:
    """Fold in double precision, so that the only rounding is the one to single precision at the end."""
    weight = convolution.weight.detach().double()
    bias = torch.zeros(len(weight), dtype=torch.float64) if convolution.bias is None else convolution.bias.detach().double()
    if norm is not None:
        if norm.running_mean is None or norm.running_var is None:
            raise TypeError("a batch norm without running statistics cannot be folded")
        gain = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
        weight = weight * gain[:, None, None]
        bias = (bias - norm.running_mean.double()) * gain + norm.bias.detach().double()
    dilation = int(convolution.dilation[0])
    return FoldedLayer(weight.float(), bias.float(), dilation, convolution.groups, pads)
