"""The scorer's network in 8-bit integers, where the processor multiplies those: the fastest way to score most candidates.

Products are summed as exact integers and brought to the next grid by one rounding, so a value differs from the Brevitas network's
only where float rounding there moves it over the half between two integers.

Shapes are channels-last, [batch, frames, channels], which is what oneDNN's kernels take. Those are the ones that torch's own
quantized graphs are lowered to.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from hwsearch.network.graph import Graph
from hwsearch.network.operations import Add, Convolution, Elementwise, Function, Operation
from hwsearch.network.sites import Sites
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
        operation: the convolution.
        read: grid of the input.
    """

    packed: Tensor
    scale: Tensor
    zeros: Tensor
    bias: Tensor
    operation: Convolution
    read: ActivationGrid


def integer_layer(operation: Operation, weight: QuantizedWeight, bias: Tensor, read: ActivationGrid) -> IntegerLayer:
    """Pack the weights of a convolution for inputs on a grid."""
    if not isinstance(operation, Convolution):
        raise TypeError(f"no kernel for '{operation.name}'; wanted a convolution")
    channels = len(weight.integers)
    scale = weight.scale.flatten().expand(channels).contiguous()
    product_scale = weight.scale.flatten() * read.scale
    rounded = bias_integers(bias, product_scale) * product_scale
    integers = weight.integers.to(torch.int8)
    if operation.groups == 1:
        packed = torch.ops.onednn.qlinear_prepack(integers[:, :, 0].contiguous(), None)
    else:
        shape = [1, 1], [0, 0], [1, operation.dilation], operation.groups
        packed = torch.ops.onednn.qconv_prepack(integers[:, :, None], scale, read.scale, read.zero_point, *shape, None)
    return IntegerLayer(packed, scale, torch.zeros(channels, dtype=torch.int32), rounded, operation, read)


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
    read, shape = layer.read, layer.operation
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


def takes(graph: Graph) -> bool:
    """Whether the kernels compute a whole graph.

    They do where only layers read its one input, and where every operation is a pointwise convolution, a depthwise one of stride
    1, the one ReLU that reads such a layer, or a sum.
    """
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        return False
    taken = set(fused(graph).values())
    on_input = graph.readers[graph.inputs[0]]
    return all(isinstance(reader, Convolution) for reader in on_input) and all(
        isinstance(operation, Add) or operation.name in taken or _has_kernel(graph, operation) for operation in graph.operations
    )


def _has_kernel(graph: Graph, operation: Operation) -> bool:
    """Whether an operation is a convolution that a kernel computes."""
    if not isinstance(operation, Convolution) or operation.stride != 1:
        return False
    _, in_group, kernel = graph.parameter(operation, "weight").shape
    if operation.groups == 1:
        return kernel == 1 and operation.padding == (0, 0)
    return in_group == 1 and len(graph.parameter(operation, "weight")) == operation.groups


def fused(graph: Graph) -> dict[str, str]:
    """The ReLU that a layer's kernel takes with it, by layer."""
    found = {}
    for layer in graph.operations:
        if _has_kernel(graph, layer) and layer.name not in graph.outputs:
            match graph.readers[layer.name]:
                case (Elementwise(function=Function.RELU) as relu,):
                    found[layer.name] = relu.name
    return found


class IntegerNetwork:
    """A graph that the kernels take, with a grid at every site.

    Args:
        graph: the network.
        sites: its sites.
        relus: what `fused` found in the graph.
        layers: by name.
        grids: by activation site.
    """

    def __init__(
        self,
        graph: Graph,
        sites: Sites,
        relus: Mapping[str, str],
        layers: Mapping[str, IntegerLayer],
        grids: Mapping[str, ActivationGrid],
    ) -> None:
        self._graph = graph
        self._layers = layers
        self._fused = relus
        self._grids = {tensor: grids[site] for site, tensor in sites.tensors.items()}
        self._output = graph.outputs[0]

    def on_input(self, name: str, features: Tensor) -> Tensor:
        """What a layer that reads the input makes of it, not rounded: [batch, features, frames] to [batch, frames, out]."""
        layer = self._layers[name]
        x = to_grid(features, layer.read)[0].transpose(1, 2).contiguous()
        return run_layer(x, layer, None, relu=name in self._fused)

    def run(self, on_input: Callable[[str], Tensor]) -> Tensor:
        """The graph's output, [batch, channels, frames].

        Args:
            on_input: by a layer's name, gives what the method `on_input` made for it, now or earlier. It is not changed.
        """
        tensors: dict[str, _Integers] = {}
        skipped = set(self._fused.values())
        for operation in self._graph.operations:
            name = self._fused.get(operation.name, operation.name)
            if operation.inputs[0] in self._graph.inputs:
                tensors[name] = _Integers.rounded(on_input(operation.name), self._grids[name])
            elif operation.name in self._layers:
                tensors[name] = self._layer(operation, tensors[operation.inputs[0]], name)
            elif operation.name not in skipped:
                tensors[name] = self._sum(operation, tensors)
            for dead in self._graph.last_reads[operation.name]:
                tensors.pop(dead, None)
        output = tensors[self._output]
        return from_grid(output.integers.transpose(1, 2).contiguous(), output.grid)

    def _layer(self, operation: Operation, x: "_Integers", name: str) -> "_Integers":
        grid = self._grids[name]
        return _Integers(run_layer(x.integers, self._layers[operation.name], grid, relu=name != operation.name), grid)

    def _sum(self, operation: Operation, tensors: Mapping[str, "_Integers"]) -> "_Integers":
        """A sum of values, in place of those that nothing else reads."""
        one, other = (tensors[name] for name in operation.inputs)
        ours = one is not other and operation.inputs[0] in self._graph.last_reads[operation.name]
        values, more = one.values(), other.values()
        total = values.add_(more) if ours and values.shape == more.shape else values + more
        return _Integers.rounded(total, self._grids[operation.name])


@dataclass(frozen=True, eq=False)
class _Integers:
    """A tensor on a grid.

    Attributes:
        integers: uint8 [batch, frames, channels].
        grid: what they are on.
        kept: the values that they stand for, where rounding gave them.
    """

    integers: Tensor
    grid: ActivationGrid
    kept: Tensor | None = None

    @classmethod
    def rounded(cls, x: Tensor, grid: ActivationGrid) -> "_Integers":
        """Values rounded to a grid."""
        integers, values = to_grid(x, grid)
        return cls(integers, grid, values)

    def values(self) -> Tensor:
        """The values that the integers stand for."""
        return from_grid(self.integers, self.grid) if self.kept is None else self.kept
