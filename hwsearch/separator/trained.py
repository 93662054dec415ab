"""The state of a candidate behind quantization-aware training: in memory, on disk, and as a network.

A state holds these tensors in CPU memory, wherever the network was trained:

    OPERATION.PART       the floating-point master copy of every parameter of the graph
    LAYER.weight.scale   of quantized weights, to which it broadcasts; bfloat16 values
    SITE.scale           [], of quantized activations; tied ones are equal
    SITE.zero_point      [] int32, of quantized activations; not trained
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hwsearch.errors import UserError
from hwsearch.files.tensors import check_tensors, read_tensors, refused, write_tensors
from hwsearch.network.graph import Graph
from hwsearch.network.sites import WEIGHT
from hwsearch.separator.allocation import BitAllocation
from hwsearch.separator.calibration import Calibration
from hwsearch.separator.fast import rounded_function, with_weights
from hwsearch.separator.prepare import PreparedBase
from hwsearch.separator.quantizers import ActivationGrid, quantize_weight
from hwsearch.separator.rounded_weights import RoundedLayer, RoundedWeights, scale_shape
from hwsearch.separator.separator import MaskFunction
from hwsearch.separator.tied_scales import check_tied, follower_names

if TYPE_CHECKING:
    from hwsearch.separator.quantized import QuantizedNetwork

_KEY = "hwsearch_trained"
_FORMAT = 4
_WHAT = "a trained state of a candidate"
_MEND = "delete it and train the candidate again"


@dataclass(frozen=True, eq=False)
class TrainedState:
    """A candidate behind training.

    Attributes:
        parameters: tensors by name, float32 except for the zero points.
        allocation: width of every site.
        base_sha256: the base that it was trained from.
        steps: training steps so far, including those before a warm start; 0 is post-training quantization.
    """

    parameters: Mapping[str, Tensor]
    allocation: BitAllocation
    base_sha256: str
    steps: int


def initial_state(base: PreparedBase, allocation: BitAllocation, start: TrainedState | None = None) -> TrainedState:
    """Make the state of post-training quantization, or a warm start from the state of another allocation.

    A warm start takes the graph's parameters from `start`, and the grids of sites with the same width. Other grids are new: those
    of weights from the weights of `start`, those of activations from the calibration.

    Args:
        base: the base.
        allocation: width of every site.
        start: state of another allocation of the same base.

    Raises:
        ValueError: `start` belongs to another base.
    """
    if start is not None and start.base_sha256 != base.base_sha256:
        raise ValueError(f"a warm start of base {start.base_sha256[:12]}; wanted base {base.base_sha256[:12]}")
    widths = allocation.by_site
    weights = base.weights
    earlier: Mapping[str, Tensor] = {}
    kept: set[str] = set()
    if start is not None:
        graph = _master_copy(base, start)
        weights = RoundedWeights(graph, base.quantization)
        earlier = start.parameters
        kept = {site for site, bits in start.allocation.widths if bits == widths[site]}
    parameters = {name: tensor.to("cpu", copy=True) for name, tensor in weights.graph_at(allocation).parameters.items()}
    for site in allocation.quantized(base.sites.weights):
        name = f"{site}.scale"
        scale = earlier[name] if site in kept else weights.layer(site.removesuffix(WEIGHT), widths[site]).weight.scale
        parameters[name] = scale.to("cpu", copy=True)
    for site in allocation.quantized(base.sites.activations):
        grid = base.calibration.grids[site][widths[site]]
        fresh = {
            f"{site}.scale": torch.tensor(grid.scale),
            f"{site}.zero_point": torch.tensor(grid.zero_point, dtype=torch.int32),
        }
        parameters |= {name: (earlier if site in kept else fresh)[name].clone() for name in fresh}
    for name, holder in follower_names(base.sites.ties, widths).items():
        parameters[name] = parameters[holder].clone()
    return TrainedState(parameters, allocation, base.base_sha256, 0 if start is None else start.steps)


def save_trained(path: Path, state: TrainedState) -> None:
    """Write a state atomically."""
    content = {
        "format": _FORMAT,
        "base_sha256": state.base_sha256,
        "allocation": state.allocation.to_json(),
        "steps": state.steps,
    }
    write_tensors(path, state.parameters, _KEY, content)


def load_trained(path: Path, base: PreparedBase, allocation: BitAllocation) -> TrainedState:
    """Read the state of an allocation of a base.

    Raises:
        UserError: no such file, no trained state, one of another base or allocation, or tensors that are missing, unknown, of
            another shape or out of range.
    """
    content, mapped = read_tensors(path, _KEY, _WHAT, _MEND)
    parameters = {name: tensor.clone() for name, tensor in mapped.items()}
    if content.get("format") != _FORMAT:
        raise refused(path, _WHAT, f"its format is not {_FORMAT}", _MEND)
    if content.get("base_sha256") != base.base_sha256:
        raise UserError(f"{path}: trained from base {str(content.get('base_sha256'))[:12]}; wanted base {base.base_sha256[:12]}")
    if content.get("allocation") != allocation.to_json():
        raise UserError(f"{path}: trained at another bit allocation; wanted the candidate's own")
    steps = content.get("steps")
    if type(steps) is not int or steps < 0:
        raise UserError(f"{path}: trained for {steps!r} steps; wanted a whole number")
    _check_parameters(path, base, allocation, parameters)
    return TrainedState(parameters, allocation, base.base_sha256, steps)


def trained_network(base: PreparedBase, state: TrainedState) -> "QuantizedNetwork":
    """Make the Brevitas network of a trained state, in eval mode: the reference for its numbers, and what is exported."""
    # Brevitas takes long to load; training and scoring do without it.
    from hwsearch.separator.quantized import build_quantized

    graph, grids = _master_copy(base, state), _grids(base, state)
    calibration = Calibration({site: {grid.bits: grid} for site, grid in grids.items() if grid is not None})
    # The weight scales are replaced below; those of the largest weights are quick to compute.
    config = base.quantization.model_copy(update={"weight_scale_method": "max"})
    network = build_quantized(graph, state.allocation, calibration, config)
    with torch.no_grad():
        for site in state.allocation.quantized(base.sites.weights):
            scale = network.layer(site.removesuffix(WEIGHT)).weight_quant.tensor_quant.scale
            scale.copy_(state.parameters[f"{site}.scale"])
    return network


def trained_mask_function(base: PreparedBase, state: TrainedState) -> MaskFunction:
    """Make the function of `trained_network`, many times faster and without gradients."""
    graph, sites = _master_copy(base, state), base.sites
    grids, widths = _grids(base, state), state.allocation.by_site

    def rounded(layer: str) -> RoundedLayer:
        site, bias = layer + WEIGHT, graph.parameters[f"{layer}.bias"]
        scale = state.parameters[f"{site}.scale"].to(base.device)
        return RoundedLayer(quantize_weight(graph.parameters[site], scale, widths[site]), bias)

    layers = [site.removesuffix(WEIGHT) for site in state.allocation.quantized(sites.weights)]
    weights = {layer: rounded(layer) for layer in layers}
    return rounded_function(with_weights(graph, sites, weights, grids), sites, grids, widths)


def _master_copy(base: PreparedBase, state: TrainedState) -> Graph:
    """Make the graph with the parameters of a state, on the device of the base."""
    return replace(base.graph, parameters={name: state.parameters[name] for name in base.graph.parameters}).on(base.device)


def _grids(base: PreparedBase, state: TrainedState) -> dict[str, ActivationGrid | None]:
    """Return the grids of the activation sites; None for floating point."""
    grids: dict[str, ActivationGrid | None] = dict.fromkeys(base.sites.activations)
    for site in state.allocation.quantized(grids):
        scale, zero_point = state.parameters[f"{site}.scale"], state.parameters[f"{site}.zero_point"]
        grids[site] = ActivationGrid(state.allocation.by_site[site], float(scale), int(zero_point))
    return grids


def _check_parameters(path: Path, base: PreparedBase, allocation: BitAllocation, found: Mapping[str, Tensor]) -> None:
    """Refuse tensors that do not belong to the allocation."""
    check_tensors(path, found, _wanted(base, allocation))
    check_tied(path, found, follower_names(base.sites.ties, allocation.by_site), _MEND)
    for name, tensor in found.items():
        good = True
        if name.endswith(".scale"):
            good = bool((tensor > 0).all())
        elif name.endswith(".zero_point"):
            levels = 2 ** allocation.by_site[name.removesuffix(".zero_point")]
            good = bool(((tensor >= 0) & (tensor < levels)).all())
        if not good:
            raise UserError(f"{path}: tensor '{name}' holds values out of range; {_MEND}")


def _wanted(base: PreparedBase, allocation: BitAllocation) -> dict[str, tuple[torch.dtype, torch.Size]]:
    """Return name, type and shape of every tensor in the state of an allocation."""
    wanted = {name: (torch.float32, tensor.shape) for name, tensor in base.graph.parameters.items()}
    for site in allocation.quantized(base.sites.weights):
        layer = base.graph.by_name[site.removesuffix(WEIGHT)]
        wanted[f"{site}.scale"] = torch.float32, scale_shape(layer, base.graph.parameters[site], base.quantization)
    for site in allocation.quantized(base.sites.activations):
        wanted |= {f"{site}.scale": (torch.float32, torch.Size()), f"{site}.zero_point": (torch.int32, torch.Size())}
    return wanted
