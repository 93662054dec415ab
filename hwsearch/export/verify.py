"""Proof that an exported file computes what the Brevitas network does.

Comparing outputs alone proves little: one value that lies half-way between two integers may be rounded up by
one runtime and down by another, and the difference spreads through the layers behind it. So every quantized
tensor inside the graph is read from the runtime, and each layer is judged by itself: from the integers that
the runtime gave it, the layer is computed in double precision, and the integers that the runtime made of it
must be the nearest ones, within `ROUNDING_TOLERANCE`. What remains free are the ties,
which are counted. The Brevitas network is judged in the same way, so that both are proven to be the same
function. How far their outputs lie apart, which with few bits a handful of ties can make visible, is measured
beside that.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hwsearch.errors import UserError
from hwsearch.export.network import INPUT, OUTPUT, ExportedNetwork
from hwsearch.export.onnx_export import is_wide_quantizer
from hwsearch.export.runtime import open_session
from hwsearch.export.site_nodes import nodes_that_quantize, site_nodes
from hwsearch.metrics.errors import MetricUnavailable
from hwsearch.metrics.si_snr import si_snr
from hwsearch.network.graph import Graph
from hwsearch.network.run import run as run_graph
from hwsearch.network.sites import WEIGHT
from hwsearch.process.interrupts import checkpoint
from hwsearch.separator.quantizers import ActivationGrid, bias_integers, is_float, rounds_bias
from hwsearch.separator.weight_scales import output_scale

ROUNDING_TOLERANCE = 1 / 64
"""Steps of an 8-bit grid by which a runtime's integer may be farther than half a step from the exact value. A float32 sum of K
products is off by at most K * 2^-24 of the sum of their magnitudes, typically by its square root: with K =
512 and a sum of magnitudes of 1,000 steps that is 0.03 steps at worst and 0.001 typically. A wrong weight,
scale or zero point is off by whole steps."""

FLOAT_TOLERANCE = 1e-4
"""Largest difference of a floating-point output against the output's peak: a thousand times float32's
resolution."""


class VerificationError(UserError):
    """An exported file does not compute what the network does."""


@dataclass(frozen=True)
class VerificationReport:
    """How an exported file compares with the network it was made from.

    Attributes:
        runtime: what ran the file, with its version.
        batches: feature batches compared.
        frames: frames in all of them.
        quantized_values: integers inside the graph that were judged.
        ties: how many of them differ from the exactly rounded value; each lay within the tolerance of a tie.
        network_ties: the same of the Brevitas network's own integers.
        worst_rounding: largest distance of an integer from the exact value, in steps; 0.5 without any float
            error.
        max_abs_difference: of the outputs, file against Brevitas network.
        differing_fraction: share of output values that are not bit-equal.
        max_difference_steps: the largest difference in steps of the output's grid; none where masks are
            floating point.
        si_snr_db: of the file's output against the network's, the least over batches; none for a silent
            output.
    """

    runtime: str
    batches: int
    frames: int
    quantized_values: int
    ties: int
    network_ties: int
    worst_rounding: float
    max_abs_difference: float
    differing_fraction: float
    max_difference_steps: int | None
    si_snr_db: float | None


@dataclass(frozen=True, eq=False)
class _Run:
    """What a runtime made of one feature batch: the mask, and per quantized site its integers."""

    mask: NDArray[np.float32]
    integers: Mapping[str, NDArray[np.float64]]


def verify_onnx(path: Path, network: ExportedNetwork, batches: Sequence[Tensor]) -> VerificationReport:
    """Run an ONNX file in ONNX Runtime and hold it to the network.

    Args:
        path: made by `export_onnx`.
        network: what it was made from.
        batches: raw features, [1, features, frames] each.

    Raises:
        VerificationError: an integer inside is not the nearest, or the output is not the network's.
    """
    model = onnx.load(path)
    grids = network.network.activation_grids()
    quantizers = _quantizers(model, network, lambda node: node.op_type == "DequantizeLinear" or is_wide_quantizer(node))
    tensors = {site: node.input[0] if node.op_type == "DequantizeLinear" else node.output[0] for site, node in quantizers.items()}
    plain = open_session(model.SerializeToString())
    for site, tensor in tensors.items():
        kind = TensorProto.FLOAT if is_wide_quantizer(quantizers[site]) else TensorProto.UINT8
        model.graph.output.append(helper.make_tensor_value_info(tensor, kind, None))
    tapped = open_session(model.SerializeToString())

    def integers(site: str, tap: NDArray[Any]) -> NDArray[np.float64]:
        return _integers(tap, grids[site]) if is_wide_quantizer(quantizers[site]) else tap.astype(np.float64)

    def run(features: Tensor) -> _Run:
        mask, *taps = tapped.run([OUTPUT, *tensors.values()], {INPUT: features.numpy()})
        # Reading tensors out could keep the runtime from a fusion; then something else would have been
        # verified.
        if not np.array_equal(mask, plain.run([OUTPUT], {INPUT: features.numpy()})[0]):
            raise VerificationError(f"{path}: its output changes when inner tensors are read; it cannot be verified")
        return _Run(mask, {site: integers(site, tap) for site, tap in zip(tensors, taps, strict=True)})

    runs = [run(features) for features in batches]
    return _judge(path, network, batches, runs, f"onnxruntime {onnxruntime.__version__}")


def verify_qonnx(path: Path, network: ExportedNetwork, batches: Sequence[Tensor]) -> VerificationReport:
    """`verify_onnx` for a QONNX file, in QONNX's executor; batches have the file's number of frames."""
    model = ModelWrapper(str(path))
    graph = model.graph
    quantizers = _quantizers(model.model, network, lambda node: node.op_type == "Quant")
    grids = network.network.activation_grids()

    def run(features: Tensor) -> _Run:
        context = execute_onnx(model, {graph.input[0].name: features.numpy()}, return_full_exec_context=True)
        integers = {site: _integers(context[node.output[0]], grids[site]) for site, node in quantizers.items()}
        return _Run(context[graph.output[0].name].astype(np.float32), integers)

    runs = [run(features) for features in batches]
    return _judge(path, network, batches, runs, f"qonnx {version('qonnx')}")


def _integers(values: NDArray[Any], grid: ActivationGrid | None) -> NDArray[np.float64]:
    """The integers that values on a grid stand for."""
    if grid is None:
        raise ValueError("values that are on no grid")
    return np.rint(values.astype(np.float64) / grid.scale + grid.zero_point)


def _quantizers(model: ModelProto, network: ExportedNetwork, quantizes: Callable[[NodeProto], bool]) -> dict[str, NodeProto]:
    """The node that quantizes each site, in the order of sites."""
    widths, sites = network.network.allocation.by_site, network.network.graph_sites
    quantized = [site for site in sites.activations if not is_float(widths[site])]
    found = site_nodes(model, network.network.graph, {sites.tensors[site]: site for site in quantized}, quantizes)
    if found is None:
        count = len(nodes_that_quantize(model, quantizes))
        raise VerificationError(f"the graph quantizes {count} activations; the allocation has {len(quantized)}")
    return {site: found[site] for site in quantized}


def _judge(
    path: Path, network: ExportedNetwork, batches: Sequence[Tensor], runs: Sequence[_Run], runtime: str
) -> VerificationReport:
    """Judge every run, and gather what was found."""
    exact = _double_precision(network)
    output_grid = network.network.activation_grids()[network.network.graph_sites.grids[network.network.graph.outputs[0]]]
    values = ties = network_ties = differing = outputs = 0
    worst = largest = 0.0
    agreements: list[float] = []
    for features, run in zip(batches, runs, strict=True):
        checkpoint()
        steps = _judge_steps(str(path), network, exact, features, run)
        values, ties, worst = values + steps.values, ties + steps.ties, max(worst, steps.worst_rounding)
        own = _network_run(network, features)
        network_ties += _judge_steps("the Brevitas network", network, exact, features, own).ties
        wanted = own.mask
        difference = np.abs(run.mask - wanted)
        largest = max(largest, float(difference.max()))
        differing += int((run.mask != wanted).sum())
        outputs += wanted.size
        try:
            agreements.append(float(si_snr(run.mask.ravel(), wanted.ravel())))
        except MetricUnavailable:
            continue  # a constant mask has no SI-SNR; the steps have been judged all the same
    agreement = min(agreements, default=None)
    return VerificationReport(
        runtime=runtime,
        batches=len(batches),
        frames=sum(features.shape[-1] for features in batches),
        quantized_values=values,
        ties=ties,
        network_ties=network_ties,
        worst_rounding=worst,
        max_abs_difference=largest,
        differing_fraction=differing / max(outputs, 1),
        max_difference_steps=None if output_grid is None else round(largest / output_grid.scale),
        si_snr_db=agreement,
    )


@dataclass(frozen=True)
class _Steps:
    values: int
    ties: int
    worst_rounding: float


def _judge_steps(source: str, network: ExportedNetwork, exact: Graph, features: Tensor, run: _Run) -> _Steps:
    """Hold every quantized tensor to its operation in double precision, and the mask to its own integers."""
    grids, sites = network.network.activation_grids(), network.network.graph_sites
    site_of = {tensor: site for site, tensor in sites.tensors.items()}
    values = ties = 0
    worst = 0.0

    def at_tensor(tensor: str, x: Tensor) -> Tensor:
        nonlocal values, ties, worst
        site = site_of.get(tensor)
        grid = None if site is None else grids[site]
        if site is None or grid is None:
            return x
        found = torch.from_numpy(run.integers[site]) - grid.zero_point
        quotient = (x / grid.scale).clamp(-grid.zero_point, grid.levels - grid.zero_point)
        distance = float((found - quotient).abs().max()) if found.shape == x.shape else math.inf
        if not distance <= 0.5 + ROUNDING_TOLERANCE * 2 ** max(grid.bits - 8, 0):
            raise VerificationError(f"{source}: at '{site}' an integer is {distance:.3f} steps from the exact value")
        values, worst = values + found.numel(), max(worst, distance)
        ties += int((found != quotient.round()).sum())
        return found * grid.scale

    (mask_tensor,) = run_graph(exact, {exact.inputs[0]: network.normalise(features).double()}, at_tensor)
    mask = mask_tensor.numpy()
    tolerance = FLOAT_TOLERANCE * float(np.abs(mask).max())
    distance = float(np.abs(mask - run.mask).max())
    if not distance <= tolerance:
        raise VerificationError(f"{source}: the mask is off by {distance:.3g}; wanted at most {tolerance:.3g}")
    return _Steps(values, ties, worst)


def _network_run(network: ExportedNetwork, features: Tensor) -> _Run:
    """What the Brevitas network makes of a feature batch."""
    integers: dict[str, NDArray[np.float64]] = {}
    handles: list[RemovableHandle] = []
    for site, grid in network.network.activation_grids().items():
        if grid is None:
            continue

        def record(_: nn.Module, __: object, output: Tensor, site: str = site, grid: ActivationGrid = grid) -> None:
            integers[site] = _integers(output.numpy(), grid)

        handles.append(network.network.site(site).register_forward_hook(record))
    try:
        with torch.no_grad():
            return _Run(network(features).numpy(), integers)
    finally:
        for handle in handles:
            handle.remove()


def _double_precision(network: ExportedNetwork) -> Graph:
    """The quantized network's weights, biases and other numbers as real numbers in double precision."""
    quantized = network.network
    master = quantized.master_copy()
    grids = quantized.activation_grids()
    parameters = {name: tensor.double() for name, tensor in master.parameters.items()}
    for site, weight in quantized.quantized_weights().items():
        if weight is not None:
            layer = master.by_name[site.removesuffix(WEIGHT)]
            grid = grids[quantized.graph_sites.read_by(layer)]
            parameters[site] = weight.integers.double() * weight.scale.double()
            bias = master.parameter(layer, "bias")
            parameters[f"{layer.name}.bias"] = _exact_bias(bias, output_scale(layer, weight.scale), grid)
    return replace(master, parameters=parameters)


def _exact_bias(bias: Tensor, weight_scale: Tensor, grid: ActivationGrid | None) -> Tensor:
    if grid is None or not rounds_bias(grid.bits):
        return bias.double()
    product_scale = weight_scale * grid.scale
    return bias_integers(bias, product_scale).double() * product_scale.double()
