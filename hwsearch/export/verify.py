"""Proof that an exported file computes what the Brevitas network does.

Outputs alone prove little. One runtime may round up a value half-way between two integers, and another round it down; the
difference then spreads through the layers behind. So verification reads every quantized tensor from the runtime and judges each
layer by itself. It computes the layer in double precision from the integers that the runtime gave it. The integers that the
runtime made must be the nearest ones, within `ROUNDING_TOLERANCE`. Only ties are free, and they are counted. The Brevitas network
is judged in the same way, so both are the same function. The difference between their outputs is measured as well: with few bits,
a handful of ties can make it visible.
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
from hwsearch.export.description import INPUT, OUTPUT
from hwsearch.export.network import ExportedNetwork
from hwsearch.export.onnx_export import wide_quantized
from hwsearch.export.onnx_parts import SIGNED_SHIFT
from hwsearch.export.runtime import open_session
from hwsearch.export.site_nodes import quantizers
from hwsearch.metrics.errors import MetricUnavailable
from hwsearch.metrics.si_snr import si_snr
from hwsearch.network.graph import Graph
from hwsearch.network.run import run as run_graph
from hwsearch.network.sites import WEIGHT
from hwsearch.process.interrupts import checkpoint
from hwsearch.separator.quantizers import ActivationGrid, bias_integers, rounds_bias
from hwsearch.separator.rounded_weights import output_scale

ROUNDING_TOLERANCE = 1 / 64
"""How much more than half a step an integer may lie from the exact value, in steps of an 8-bit grid.

A float32 sum of K products is off by at most K * 2^-24 of the sum of their magnitudes, and typically by sqrt(K) * 2^-24 of that
sum. For K = 512 and a sum of 1,000 steps, this is 0.03 steps at worst and 0.001 typically. A wrong weight, scale or zero point is
off by whole steps.
"""

FLOAT_TOLERANCE = 1e-4
"""Largest difference of a floating-point output, as a share of its peak: a thousand times the resolution of float32."""


class VerificationError(UserError):
    """An exported file does not compute what the network does."""


@dataclass(frozen=True)
class VerificationReport:
    """How an exported file compares with the network it was made from.

    Attributes:
        runtime: name and version of what ran the file.
        batches: number of feature batches.
        frames: number of frames in all batches.
        quantized_values: number of integers inside the graph that were judged.
        ties: number of them that differ from the exactly rounded value, each within the tolerance of the runtime.
        network_ties: the same number for the Brevitas network.
        worst_rounding: largest distance of an integer from the exact value, in steps; 0.5 without any float error.
        max_abs_difference: largest difference between the outputs of file and Brevitas network.
        differing_fraction: share of output values that are not bit-equal.
        max_difference_steps: largest difference in steps of the output's grid; none for a floating-point output.
        si_snr_db: least SI-SNR over batches of the file's output against the network's; none for a silent output.
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
class Run:
    """The mask that a runtime made of one feature batch, and the integers of each quantized site."""

    mask: NDArray[np.float32]
    integers: Mapping[str, NDArray[np.float64]]


def verify_onnx(path: Path, network: ExportedNetwork, batches: Sequence[Tensor], *, fused: bool = True) -> VerificationReport:
    """Run an ONNX file in ONNX Runtime and compare it with its network.

    Args:
        path: a file of `export_onnx` or `export_qnn`.
        network: the network of the file.
        batches: raw features, [1, features, frames] each.
        fused: whether to run layers on integer kernels; else every node as it is written.

    Raises:
        VerificationError: an integer inside is not the nearest, or the output is not the network's.
    """
    model = onnx.load(path)
    grids = _grids(network)
    wide = wide_quantized(model)
    nodes = _quantizers(model, network, lambda node: node.op_type == "DequantizeLinear" or node.output[0] in wide)
    tensors = {site: node.input[0] if node.op_type == "DequantizeLinear" else node.output[0] for site, node in nodes.items()}
    plain = open_session(model.SerializeToString(), fused=fused)
    for site, tensor in tensors.items():
        kind = TensorProto.FLOAT if tensor in wide else _integer_type(model, nodes[site])
        model.graph.output.append(helper.make_tensor_value_info(tensor, kind, None))
    tapped = open_session(model.SerializeToString(), fused=fused)

    def integers(site: str, tap: NDArray[Any]) -> NDArray[np.float64]:
        if tensors[site] in wide:
            return _integers(tap, grids[site])
        return tap.astype(np.float64) + (SIGNED_SHIFT if tap.dtype == np.int8 else 0)

    def run(features: Tensor) -> Run:
        mask, *taps = tapped.run([OUTPUT, *tensors.values()], {INPUT: features.numpy()})
        # Reading inner tensors could prevent a fusion. Then the graph verified would not be the one that runs.
        if not np.array_equal(mask, plain.run([OUTPUT], {INPUT: features.numpy()})[0]):
            raise VerificationError(f"{path}: its output changes when inner tensors are read; it cannot be verified")
        return Run(mask, {site: integers(site, tap) for site, tap in zip(tensors, taps, strict=True)})

    runs = [run(features) for features in batches]
    return judge(path, network, batches, runs, f"onnxruntime {onnxruntime.__version__}")


def _integer_type(model: ModelProto, node: NodeProto) -> int:
    """Return the type of the integers that a DequantizeLinear node reads: that of its zero point."""
    constant = next(each for each in model.graph.initializer if each.name == node.input[2])
    return int(constant.data_type)


def verify_qonnx(path: Path, network: ExportedNetwork, batches: Sequence[Tensor]) -> VerificationReport:
    """Run a QONNX file in QONNX's executor and compare it with its network, as `verify_onnx` does.

    Batches have the file's number of frames.
    """
    model = ModelWrapper(str(path))
    graph = model.graph
    nodes = _quantizers(model.model, network, lambda node: node.op_type == "Quant")
    grids = _grids(network)
    # The file's grids may begin at zero, where those of the network have a zero point.
    stored = {site: replace(grid, zero_point=int(model.get_initializer(nodes[site].input[2]))) for site, grid in grids.items()}

    def run(features: Tensor) -> Run:
        context = execute_onnx(model, {graph.input[0].name: features.numpy()}, return_full_exec_context=True)
        integers = {site: _integers(context[node.output[0]], stored[site]) for site, node in nodes.items()}
        return Run(context[graph.output[0].name].astype(np.float32), integers)

    runs = [run(features) for features in batches]
    return judge(path, network, batches, runs, f"qonnx {version('qonnx')}")


def _grids(network: ExportedNetwork) -> dict[str, ActivationGrid]:
    """The grids of the quantized activation sites."""
    return {site: grid for site, grid in network.network.activation_grids().items() if grid is not None}


def _integers(values: NDArray[Any], grid: ActivationGrid) -> NDArray[np.float64]:
    """The integers of values on a grid."""
    return np.rint(values.astype(np.float64) / grid.scale + grid.zero_point)


def _quantizers(model: ModelProto, network: ExportedNetwork, quantizes: Callable[[NodeProto], bool]) -> dict[str, NodeProto]:
    """The node that quantizes each site, in the order of sites."""
    try:
        return quantizers(model, network, quantizes)
    except ValueError as error:
        raise VerificationError(str(error)) from None


def judge(
    path: Path,
    network: ExportedNetwork,
    batches: Sequence[Tensor],
    runs: Sequence[Run],
    runtime: str,
    stored: Mapping[str, ActivationGrid] | None = None,
    further: float = 0.0,
) -> VerificationReport:
    """Judge a run of each batch, and make the report.

    Args:
        path: the file.
        network: the network of the file.
        batches: raw features, [1, features, frames] each.
        runs: what the runtime made of them.
        runtime: name and version of what ran the file.
        stored: the grids of the quantized activation sites in the file; None: those of the network.
        further: how much more than `ROUNDING_TOLERANCE` an integer may be off, in steps.

    Raises:
        VerificationError: an integer inside is not the nearest, or the output is not the network's.
    """
    exact, own_grids = _double_precision(network), _grids(network)
    grids = own_grids if stored is None else stored
    output_grid = grids.get(network.network.graph_sites.grids[network.network.graph.outputs[0]])
    values = ties = network_ties = differing = outputs = 0
    worst = largest = 0.0
    agreements: list[float] = []
    for features, run in zip(batches, runs, strict=True):
        checkpoint()
        steps = _judge_steps(str(path), network, exact, features, run, grids, further)
        values, ties, worst = values + steps[0], ties + steps[1], max(worst, steps[2])
        own = _network_run(network, features)
        network_ties += _judge_steps("the Brevitas network", network, exact, features, own, own_grids)[1]
        wanted = own.mask
        difference = np.abs(run.mask - wanted)
        largest = max(largest, float(difference.max()))
        differing += int((run.mask != wanted).sum())
        outputs += wanted.size
        try:
            agreements.append(float(si_snr(run.mask.ravel(), wanted.ravel())))
        except MetricUnavailable:
            continue  # a constant mask has no SI-SNR
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
        si_snr_db=min(agreements, default=None),
    )


def _judge_steps(
    source: str,
    network: ExportedNetwork,
    exact: Graph,
    features: Tensor,
    run: Run,
    grids: Mapping[str, ActivationGrid],
    further: float = 0.0,
) -> tuple[int, int, float]:
    """Compare each quantized tensor, and the mask, with its operation in double precision on the run's own integers.

    Returns:
        The number of integers, the number of ties, and the largest distance of an integer from its exact value in steps.
    """
    tensors = network.network.graph_sites.tensors
    quantized = {tensors[site]: (site, grid) for site, grid in grids.items()}
    values = ties = 0
    worst = 0.0

    def at_tensor(tensor: str, x: Tensor) -> Tensor:
        nonlocal values, ties, worst
        if tensor not in quantized:
            return x
        site, grid = quantized[tensor]
        found = torch.from_numpy(run.integers[site]) - grid.zero_point
        quotient = (x / grid.scale).clamp(-grid.zero_point, grid.levels - grid.zero_point)
        distance = float((found - quotient).abs().max()) if found.shape == x.shape else math.inf
        if not distance <= 0.5 + further + ROUNDING_TOLERANCE * 2 ** max(grid.bits - 8, 0):
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
    return values, ties, worst


def _network_run(network: ExportedNetwork, features: Tensor) -> Run:
    """A run of the Brevitas network."""
    integers: dict[str, NDArray[np.float64]] = {}
    handles: list[RemovableHandle] = []
    for site, grid in _grids(network).items():

        def record(_: nn.Module, __: object, output: Tensor, site: str = site, grid: ActivationGrid = grid) -> None:
            integers[site] = _integers(output.numpy(), grid)

        handles.append(network.network.site(site).register_forward_hook(record))
    try:
        with torch.no_grad():
            return Run(network(features).numpy(), integers)
    finally:
        for handle in handles:
            handle.remove()


def _double_precision(network: ExportedNetwork) -> Graph:
    """The quantized network with its real-valued parameters in double precision."""
    quantized = network.network
    master = quantized.master_copy()
    grids = _grids(network)
    parameters = {name: tensor.double() for name, tensor in master.parameters.items()}
    for site, weight in quantized.quantized_weights().items():
        if weight is not None:
            layer = master.by_name[site.removesuffix(WEIGHT)]
            grid = grids.get(quantized.graph_sites.read_by(layer))
            parameters[site] = weight.integers.double() * weight.scale.double()
            if grid is not None and rounds_bias(grid.bits):
                product_scale = output_scale(layer, weight.scale) * grid.scale
                integers = bias_integers(master.parameter(layer, "bias"), product_scale)
                parameters[f"{layer.name}.bias"] = integers.double() * product_scale.double()
    return replace(master, parameters=parameters)
