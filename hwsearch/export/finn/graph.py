"""The FINN graph of a network: whole numbers from its input to its output.

Tensors are [1, frames, 1, channels]. A 1x1 convolution is a matrix product. Before it, `Im2Col` gathers the taps of a longer
kernel. Every quantizer is a `MultiThreshold` whose thresholds hold bias, scales, zero points and the function behind the layer
(`hwsearch.export.finn.thresholds`). A sum is the sum of the numbers themselves, since all that it adds has one scale. Tensors are
named after their sites.

Activations are unsigned. A tensor with a zero point that a padded layer reads is signed instead, so that its zero is the number
0, with which FINN pads.
"""

from fractions import Fraction

import numpy as np
import torch
from onnx import ModelProto, TensorProto, helper
from qonnx.core.datatype import BaseDataType, DataType
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.util.basic import qonnx_make_model
from torch import Tensor

from hwsearch.errors import UserError
from hwsearch.export.finn.thresholds import Integers, Whole, thresholds
from hwsearch.export.network import ExportedNetwork
from hwsearch.network import operations as ops
from hwsearch.network.sites import WEIGHT
from hwsearch.separator.quantizers import MAX_BITS, ActivationGrid, bias_integers
from hwsearch.separator.rounded_weights import output_scale
from hwsearch.separator.tied_scales import SUM_ZERO_POINT

_DOMAIN = "qonnx.custom_op.general"
_IR_VERSION = 8
"""Version of the file format, which older runtimes load as well."""

_LARGEST = 2**24
"""Largest whole number up to which float32, in which QONNX and FINN store numbers, holds every one."""


def finn_graph(network: ExportedNetwork, frames: int) -> ModelProto:
    """Write the graph of a network for a number of frames.

    Raises:
        UserError: a sum adds tensors of two scales, or a layer makes numbers that float32 does not hold.
    """
    return _Writer(network, frames).written()


def signed_sites(network: ExportedNetwork) -> frozenset[str]:
    """Return the sites whose integers the file holds without their zero point: those that padded layers read."""
    grids, sites = network.network.activation_grids(), network.network.graph_sites
    padded = {
        sites.read_by(operation)
        for operation in network.network.graph.operations
        if isinstance(operation, ops.Convolution) and any(operation.padding)
    }
    return frozenset(site for site in padded if (grid := grids[site]) is not None and grid.zero_point)


def site_offsets(network: ExportedNetwork) -> dict[str, int]:
    """Return what is to be added to the numbers of each tensor in the file to make them those of the site's grid."""
    signed, sites, graph = signed_sites(network), network.network.graph_sites, network.network.graph
    grids, unrounded = _grids(network), unrounded_sites(network)
    offsets: dict[str, int] = {}
    for site, grid in grids.items():
        if site in unrounded:
            add = graph.by_name[sites.tensors[site]]
            read = [sites.grids[name] for name in add.inputs]
            offsets[site] = grid.zero_point + sum(offsets[each] - grids[each].zero_point for each in read)
        else:
            offsets[site] = grid.zero_point if site in signed else 0
    return offsets


def unrounded_sites(network: ExportedNetwork) -> frozenset[str]:
    """Return the sites that are sums carried on as they are, since they have the scale of what they add."""
    sites, grids = network.network.graph_sites, _grids(network)
    operations = {site: network.network.graph.by_name.get(tensor) for site, tensor in sites.tensors.items()}
    return frozenset(
        site
        for site, operation in operations.items()
        if isinstance(operation, ops.Add)
        and grids[site].zero_point == SUM_ZERO_POINT
        and all(grids[sites.grids[name]].scale == grids[site].scale for name in operation.inputs)
    )


def _grids(network: ExportedNetwork) -> dict[str, ActivationGrid]:
    """Return the grids of all sites.

    Raises:
        UserError: a site in floating point.
    """
    found = {}
    for site, grid in network.network.activation_grids().items():
        if grid is None:
            raise UserError(f"'{site}' is in floating point; FINN wants integers of at most 8 bits")
        found[site] = grid
    return found


class _Writer:
    """A pass over the operations of a network in the order of execution."""

    def __init__(self, network: ExportedNetwork, frames: int) -> None:
        self._frames = frames
        self._graph = network.network.master_copy()
        self._sites = network.network.graph_sites
        self._grids = _grids(network)
        self._weights = network.network.quantized_weights()
        self._signed = signed_sites(network)
        self._unrounded = unrounded_sites(network)
        self._made: dict[str, Integers] = {}
        (name,) = self._graph.inputs
        grid = self._grids[name]
        self._made[name] = self._on_grid(name, grid, network.features)
        ends = (self._value(name, network.features), self._value("", 0))
        self._model = ModelWrapper(qonnx_make_model(helper.make_graph([], "separator", *([end] for end in ends))))
        self._annotate(name, self._type(name, grid))

    def written(self) -> ModelProto:
        """Write all operations."""
        for operation in self._graph.operations:
            made = self._operation(operation)
            site = self._sites.of_tensor.get(operation.name)
            if site is not None and site not in self._unrounded:
                made = self._rounded(made, site)
            self._made[operation.name] = made
        (output,) = self._graph.outputs
        last, graph = self._made[output], self._model.graph
        (declared,) = (each for each in graph.value_info if each.name == last.name)
        graph.output[0].CopyFrom(declared)
        graph.value_info.remove(declared)
        self._model.model.ir_version = _IR_VERSION
        return self._model.model

    def _operation(self, operation: ops.Operation) -> Integers:
        x = self._made[operation.inputs[0]]
        match operation:
            case ops.Convolution():
                return self._layer(operation, x)
            case ops.Add():
                return self._sum(operation, x, self._made[operation.inputs[1]])
            case ops.Elementwise():
                return self._bent(x, torch.zeros(1))
            case ops.LeakyReLU(slope=slope):
                return self._bent(x, torch.tensor([slope], dtype=torch.float64))
            case ops.PReLU():
                return self._bent(x, self._graph.parameter(operation, "slope"))
        return x  # a read

    def _layer(self, layer: ops.Convolution, x: Integers) -> Integers:
        """Write a layer; its bias and the zero point of its input go into the thresholds behind it."""
        weight = self._weights[layer.name + WEIGHT]
        if weight is None or x.is_bent or len(set(x.scale)) > 1:
            raise UserError(f"'{layer.name}' has weights or an input in floating point; FINN wants integers of at most 8 bits")
        grid = self._grids[self._sites.read_by(layer)]
        integers, kernel = weight.integers.numpy().astype(np.int64), weight.integers.shape[2]
        dense = _dense(integers, layer.groups)
        product_scale = output_scale(layer, weight.scale) * grid.scale
        bias = bias_integers(self._graph.parameter(layer, "bias"), product_scale).numpy().astype(np.int64)
        read = x.name
        if kernel > 1 or any(layer.padding):
            read = self._gather(layer, x, kernel)
        name = self._name_of_sum(layer.name)
        matrix = self._constant(layer.name + WEIGHT, dense.transpose(2, 1, 0).reshape(-1, len(dense)), f"INT{weight.bits}")
        if layer.groups > 1:
            self._model.set_tensor_sparsity(matrix, {"dw": {"kernel_shape": [kernel, 1]}})
        # A padded number is 0, whatever the tensor itself can reach.
        low, high = (np.minimum(x.low, 0), np.maximum(x.high, 0)) if any(layer.padding) else (x.low, x.high)
        low, high = _reach(dense, low, high)
        scale = tuple(Fraction(float(each)) * x.scale[0] for each in output_scale(layer, weight.scale).expand(len(dense)))
        offset = bias + (dense * x.offset[None, :, None]).sum(axis=(1, 2))
        made = Integers(name, scale, offset, low, high, (Fraction(1),) * len(dense))
        self._node("MatMul", [read, matrix], made, domain="")
        return made

    def _gather(self, layer: ops.Convolution, x: Integers, kernel: int) -> str:
        """Write the node that gathers the taps of a kernel, padded with zeros; return what it makes."""
        before, after = layer.padding
        name = f"{layer.name}.taps"
        node = helper.make_node(
            "Im2Col",
            [x.name],
            [name],
            name=name,
            domain=_DOMAIN,
            stride=[1, 1],
            kernel_size=[kernel, 1],
            pad_amount=[before, 0, after, 0],
            input_shape=f"(1,{self._frames},1,{x.channels})",
            dilations=[layer.dilation, 1],
            depthwise=int(layer.groups > 1),
        )
        self._model.graph.node.append(node)
        self._declare(name, kernel * x.channels, str(self._model.get_tensor_datatype(x.name).name))
        return name

    def _sum(self, add: ops.Add, x: Integers, y: Integers) -> Integers:
        if x.is_bent or y.is_bent or {*x.scale} != {*y.scale} or len({*x.scale}) > 1 or x.channels != y.channels:
            raise UserError(
                f"'{add.name}' adds '{add.inputs[0]}' and '{add.inputs[1]}', with other scales or channels; FINN adds integers: "
                "wanted a search with quantization.tied_adds = true"
            )
        name = self._name_of_sum(add.name)
        made = Integers(name, x.scale, x.offset + y.offset, x.low + y.low, x.high + y.high, x.slope)
        self._node("Add", [x.name, y.name], made, domain="")
        return made

    def _bent(self, x: Integers, slope: Tensor) -> Integers:
        if x.is_bent:
            raise UserError(f"'{x.name}' goes through two functions without being rounded; FINN wants one at most")
        slopes = tuple(Fraction(float(each)) for each in slope.expand(x.channels))
        return Integers(x.name, x.scale, x.offset, x.low, x.high, slopes)

    def _rounded(self, x: Integers, site: str) -> Integers:
        """Write the quantizer of a site."""
        grid = self._grids[site]
        if grid.bits > MAX_BITS:
            raise UserError(
                f"'{site}' has {grid.bits} bits and a scale of its own; FINN wants at most 8, or sums that all share one scale: "
                "wanted a search with quantization.tied_adds = true"
            )
        found = thresholds(x, grid)
        if np.abs(found).max() > _LARGEST:
            raise UserError(f"'{site}' is rounded from sums above {_LARGEST}; FINN stores them in float32: wanted fewer bits")
        made = self._on_grid(site, grid, x.channels)
        matrix = self._constant(f"{site}.thresholds", found, _smallest(int(found.min()), int(found.max())).name)
        kind = self._type(site, grid)
        bias = float(-grid.zero_point if site in self._signed else 0)
        attributes = {"out_dtype": kind, "out_scale": 1.0, "out_bias": bias, "data_layout": "NHWC"}
        self._node("MultiThreshold", [x.name, matrix], made, domain=_DOMAIN, kind=kind, **attributes)
        return made

    def _name_of_sum(self, operation: str) -> str:
        """Return the name of the sum that an operation makes: that of its site, if it is not rounded."""
        site = self._sites.of_tensor.get(operation)
        return site if site is not None and site in self._unrounded else f"{operation}.sum"

    def _on_grid(self, site: str, grid: ActivationGrid, channels: int) -> Integers:
        zero = grid.zero_point if site in self._signed else 0
        offset, low, high = (np.full(channels, end, np.int64) for end in (zero - grid.zero_point, -zero, grid.levels - zero))
        return Integers(site, (Fraction(grid.scale),) * channels, offset, low, high, (Fraction(1),) * channels)

    def _type(self, site: str, grid: ActivationGrid) -> str:
        """Return the type of a site's numbers."""
        if site not in self._signed:
            return f"UINT{grid.bits}"
        return str(_smallest(-grid.zero_point, grid.levels - grid.zero_point).name)

    def _node(
        self, operator: str, read: list[str], made: Integers, *, domain: str, kind: str | None = None, **attributes: object
    ) -> None:
        """Add a node, with shape and type of what it makes."""
        node = helper.make_node(operator, read, [made.name], name=made.name, domain=domain, **attributes)
        self._model.graph.node.append(node)
        self._declare(made.name, made.channels, kind or _smallest(int(made.low.min()), int(made.high.max())).name)

    def _declare(self, name: str, channels: int, kind: str) -> None:
        self._model.graph.value_info.append(self._value(name, channels))
        self._annotate(name, kind)

    def _annotate(self, name: str, kind: str) -> None:
        self._model.set_tensor_datatype(name, DataType[kind])

    def _constant(self, name: str, values: Whole, kind: str) -> str:
        self._model.set_initializer(name, values.astype(np.float32))
        self._annotate(name, kind)
        return name

    def _value(self, name: str, channels: int) -> object:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, self._frames, 1, channels])


def _dense(integers: Whole, groups: int) -> Whole:
    """Return the weights [out, in, kernel] of a layer as if each output read all inputs."""
    if groups == 1:
        return integers
    dense = np.zeros((len(integers), groups, integers.shape[2]), np.int64)
    dense[np.arange(groups), np.arange(groups)] = integers[:, 0]
    return dense


def _reach(weights: Whole, low: Whole, high: Whole) -> tuple[Whole, Whole]:
    """Return the least and the greatest sum of each output, for inputs between two ends [in]."""
    ends = weights * low[None, :, None], weights * high[None, :, None]
    return np.minimum(*ends).sum(axis=(1, 2)), np.maximum(*ends).sum(axis=(1, 2))


def _smallest(low: int, high: int) -> BaseDataType:
    """Return the smallest integer type that holds all numbers between two ends."""
    if low >= 0:
        return DataType[f"UINT{max(high.bit_length(), 1)}"]
    return DataType[f"INT{max((-low - 1).bit_length(), high.bit_length()) + 1}"]
