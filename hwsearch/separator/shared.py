"""The shared network: one set of weights for every bit allocation and structure of a search space, and a grid for each site and
width.

It holds these tensors in CPU memory:

    OPERATION.PART            the floating-point master copy of every parameter of the graph, except for the biases of layers
    LAYER.output              [out], the output of a layer for its mean input; the bias of a layer without a mean input
    LAYER.mean                [groups, values], the mean of what its weights are multiplied with; not trained
    LAYER.weight.scale@BITS   the scale of weights of BITS bits, which broadcasts to them; bfloat16 values
    SITE.scale@BITS           [], the scale of an activation of BITS bits; tied ones are equal
    SITE.zero_point@BITS      [] int32, its zero point; not trained
    GROUP.order               [classes] int32, the classes of a group of channels that may be narrowed, the most important first

A width is there if the space has it. The bias of a layer is its output less what the rounded weights make of the mean input. So
it makes up for the mean error of the rounded weights, and for the mean of channels that are left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hwsearch.errors import UserError
from hwsearch.files.reading import digest
from hwsearch.files.tensors import check_tensors, read_tensors, refused, write_tensors
from hwsearch.network.channels import ChannelGroup
from hwsearch.network.graph import Graph
from hwsearch.network.narrowed import narrowed_mean, narrowed_scale
from hwsearch.network.options import Order, Structure
from hwsearch.network.sites import WEIGHT, find_sites
from hwsearch.network.structure import structure
from hwsearch.separator.allocation import BitAllocation, is_weight
from hwsearch.separator.calibration import Calibration
from hwsearch.separator.front_end import FrontEnd
from hwsearch.separator.prepare import PreparedBase
from hwsearch.separator.quantizers import ActivationGrid, is_float, quantize_weight
from hwsearch.separator.rounded_weights import one_thread, scale_shape
from hwsearch.separator.second_order import mean_output
from hwsearch.separator.tied_scales import check_tied, followers
from hwsearch.separator.trained import TrainedState

_KEY = "hwsearch_shared"
_FORMAT = 5
_WHAT = "a shared network"
_MEND = "delete it and train it again"

Widths = Mapping[str, tuple[int, ...]]
"""The widths of each site, in rising order."""

KeptValues = Mapping[str, tuple[int, ...]]
"""What may be kept of each option of the network, in rising order; the last value is the whole."""

MEAN, OUTPUT, ORDER, SCALE = ".mean", ".output", ".order", ".scale"
"""What the names of tensors end with."""


@dataclass(frozen=True, eq=False)
class SharedState:
    """A shared network.

    Attributes:
        parameters: tensors by name, float32 except for the zero points.
        widths: of every site.
        base_sha256: the base that it was trained from.
        steps: training steps.
        made_by: how it was trained, as a JSON object.
        structure: what it was trained to keep of each option; empty if it was always whole.
    """

    parameters: Mapping[str, Tensor]
    widths: Widths
    base_sha256: str
    steps: int
    made_by: Mapping[str, Any] = field(default_factory=dict)
    structure: KeptValues = field(default_factory=dict)

    @cached_property
    def orders(self) -> dict[str, Order]:
        """The classes of each group of channels that may be narrowed, the most important first."""
        return {name.removesuffix(ORDER): self.parameters[name].tolist() for name in self.parameters if name.endswith(ORDER)}

    def names_at(self, allocation: BitAllocation) -> dict[str, str]:
        """Return the name of each tensor of an allocation's `TrainedState`, and that of the tensor that takes its place.

        The bias of a layer follows from its output, which takes its place here.

        Raises:
            ValueError: the network does not have a width of the allocation.
        """
        layers = {site.removesuffix(WEIGHT) for site in self.widths if is_weight(site)}
        beside = {f"{layer}{part}" for layer in layers for part in (MEAN, OUTPUT)}
        names = {name: name for name in self.parameters if "@" not in name and name not in beside and not name.endswith(ORDER)}
        for site, bits in allocation.widths:
            if bits not in self.widths.get(site, ()):
                raise ValueError(f"the shared network does not have '{site}' at {bits} bits")
            if is_weight(site):
                names[_bias(site)] = _beside(site, OUTPUT)
            if not is_float(bits):
                names |= {f"{site}.{part}": _at(f"{site}.{part}", bits) for part in _parts(site)}
        return names

    def at(self, allocation: BitAllocation) -> TrainedState:
        """Return the state of an allocation, as if it had been trained alone.

        Raises:
            ValueError: the network does not have a width of the allocation.
        """
        parameters = {name: self.parameters[shared].clone() for name, shared in self.names_at(allocation).items()}
        parameters |= {_bias(site): self.bias(site, bits) for site, bits in allocation.widths if is_weight(site)}
        return TrainedState(parameters, allocation, self.base_sha256, self.steps)

    def bias(self, site: str, bits: int) -> Tensor:
        """Return the bias beside a weight site at a width, with which the layer has its output for its mean input."""
        output, mean = self.parameters[_beside(site, OUTPUT)], self.parameters.get(_beside(site, MEAN))
        if mean is None:
            return output.clone()
        with one_thread():
            return output - mean_output(self._weight(site, bits), mean)

    def narrowed(self, base: PreparedBase, structure: Structure) -> "SharedState":
        """Leave out what a structure does not keep; without a structure, return this network.

        Layers keep their outputs for the mean input. So their biases take over the mean of the channels that are left out.

        Args:
            base: the base of this network.
            structure: what is kept.

        Returns:
            The shared network of the base that `base.narrowed(structure, self.orders)` gives; it can be narrowed no further.

        Raises:
            ValueError: an unknown option, or a number that it cannot have.
        """
        if not structure:
            return self
        biases = {_beside(site, OUTPUT): _bias(site) for site in base.sites.weights}
        whole = {biases.get(name, name): tensor for name, tensor in self.parameters.items()}
        graph, left = narrowed_tensors(base, whole, structure, self.orders)
        outputs = {bias: output for output, bias in biases.items()}
        widths = {site: self.widths[site] for site in find_sites(graph).all}
        parameters = {outputs.get(name, name): tensor.clone() for name, tensor in left.items()}
        return replace(self, parameters=parameters, widths=widths, structure={})

    def as_base(self, base: PreparedBase) -> PreparedBase:
        """Return the base with the weights and grids of the shared network in place of its own.

        It computes what `at` does at every allocation that the network has. In floating point a layer has the bias of its widest
        weights, so that the network in floating point is close to the widest allocation.
        """
        widest = {_bias(site): self.bias(site, bits[-1]) for site, bits in self.widths.items() if is_weight(site)}
        own = {name: self.parameters[name].clone() for name in base.graph.parameters if name not in widest}
        parameters = {name: (own | widest)[name] for name in base.graph.parameters}
        grids = {
            site: {bits: self._grid(site, bits) for bits in widths if not is_float(bits)}
            for site, widths in self.widths.items()
            if not is_weight(site)
        }
        graph = replace(base.graph, parameters=parameters).on(base.device)
        shared = replace(base, graph=graph, calibration=Calibration(grids), statistics=None, untrained=None)
        shared.weights.take(self._rounded(), Path("the shared network"))
        return shared

    def _grid(self, site: str, bits: int) -> ActivationGrid:
        scale, zero_point = (self.parameters[_at(f"{site}.{part}", bits)] for part in _parts(site))
        return ActivationGrid(bits, float(scale), int(zero_point))

    def _weight(self, site: str, bits: int) -> Tensor:
        """Return the weights of a site on their grid, if they have one."""
        weight = self.parameters[site]
        return weight if is_float(bits) else quantize_weight(weight, self.parameters[_at(f"{site}.scale", bits)], bits).value

    def _rounded(self) -> dict[str, Tensor]:
        """Return the quantized weights, as `RoundedWeights.to_tensors` does."""
        found = {}
        for site, widths in self.widths.items():
            for bits in widths:
                if is_weight(site) and not is_float(bits):
                    layer, scale = site.removesuffix(WEIGHT), self.parameters[_at(f"{site}.scale", bits)]
                    found[f"{layer}@{bits}.integers"] = quantize_weight(self.parameters[site], scale, bits).integers
                    found[f"{layer}@{bits}.scale"] = scale
                    found[f"{layer}@{bits}.bias"] = self.bias(site, bits)
        return found


def narrowed_tensors(
    base: PreparedBase, tensors: Mapping[str, Tensor], structure: Structure, orders: Mapping[str, Order]
) -> tuple[Graph, dict[str, Tensor]]:
    """Leave out of the tensors of a shared network what a structure does not keep; gradients pass.

    Args:
        base: the base of the shared network.
        tensors: every parameter of the graph, with the outputs for the mean inputs in place of the biases of layers; and any
            scales, zero points and means of the shared network.
        structure: what is kept.
        orders: which channels of a group are kept first.

    Returns:
        The narrower graph with its parameters, and all tensors of what is left, by name.
    """
    options = base.options
    parameters = {name: tensors[name] for name in base.graph.parameters}
    graph = options.narrowed(replace(base.graph, parameters=parameters), structure, orders)
    channels = options.kept_channels(structure, orders)
    sites, found = find_sites(graph), dict(graph.parameters)
    beside = {site: base.graph.by_name[site.removesuffix(WEIGHT)] for site in sites.weights}
    means = {_beside(site, MEAN): layer for site, layer in beside.items()}
    grids = {f"{site}.{part}" for site in sites.activations for part in _parts(site)}
    for name, tensor in tensors.items():
        kind = name.partition("@")[0]
        if kind in grids:
            found[name] = tensor
        elif (layer := beside.get(kind.removesuffix(SCALE))) is not None and kind.endswith(SCALE):
            found[name] = narrowed_scale(layer, tensor, channels[layer.name])
        elif (layer := means.get(name)) is not None:
            found[name] = narrowed_mean(layer, tensor, channels[layer.inputs[0]])
    return graph, found


def initial_shared(base: PreparedBase, widths: Widths, structure: KeptValues | None = None) -> SharedState:
    """Make the shared network that training starts from: the weights of the base, and grids of post-training quantization."""
    outputs = mean_outputs(base)
    parameters = {name: tensor for name, tensor in base.graph.parameters.items() if name not in outputs}
    for site in base.sites.weights:
        parameters[_beside(site, OUTPUT)] = outputs[_bias(site)]
        if (mean := base.means.get(site.removesuffix(WEIGHT))) is not None:
            parameters[_beside(site, MEAN)] = mean
        for bits in widths[site]:
            if not is_float(bits):
                parameters[_at(f"{site}.scale", bits)] = base.weights.layer(site.removesuffix(WEIGHT), bits).weight.scale
    for site in base.sites.activations:
        for bits in widths[site]:
            if (grid := base.calibration.grid(site, bits)) is not None:
                parameters[_at(f"{site}.scale", bits)] = torch.tensor(grid.scale)
                parameters[_at(f"{site}.zero_point", bits)] = torch.tensor(grid.zero_point, dtype=torch.int32)
    parameters |= order_tensors(base, structure, base.orders) if structure else {}
    copies = {name: tensor.to("cpu", copy=True) for name, tensor in parameters.items()}
    whole = {site: tuple(widths[site]) for site in base.sites.all}
    return SharedState(copies, whole, base.base_sha256, 0, structure=dict(structure or {}))


def order_tensors(base: PreparedBase, structure: KeptValues, orders: Mapping[str, Order]) -> dict[str, Tensor]:
    """Return the orders of the groups that may be narrowed as tensors of a shared network."""
    groups = _narrowed_groups(base, structure)
    return {group.name + ORDER: torch.tensor(list(orders[group.name]), dtype=torch.int32) for group in groups}


def tied_names(base: PreparedBase, widths: Widths) -> dict[str, str]:
    """Return the name of the scale that each scale repeats that follows another (`separator.tied_scales`)."""
    grids = ((site, bits) for site in base.sites.activations for bits in widths[site])
    pairs = followers(base.sites.ties, grids)
    return {_at(f"{site}.scale", bits): _at(f"{first}.scale", of) for (site, bits), (first, of) in pairs.items()}


def mean_outputs(base: PreparedBase) -> dict[str, Tensor]:
    """Return the outputs of the layers of a base for their mean inputs, on the CPU, by name `LAYER.bias`.

    They are trained in place of the biases (`TrainableNetwork`). Without a mean input, it is the bias itself.
    """
    parameters, found = base.graph.parameters, {}
    for site in base.sites.weights:
        bias, mean = parameters[_bias(site)].cpu(), base.means.get(site.removesuffix(WEIGHT))
        found[_bias(site)] = bias if mean is None else bias + mean_output(parameters[site].cpu(), mean.cpu())
    return found


def save_shared(path: Path, base: PreparedBase, state: SharedState) -> None:
    """Write a shared network of a base atomically."""
    content = {
        "format": _FORMAT,
        "front_end": _front_end(base.separator.front_end),
        "network": network_digest(base),
        "base_sha256": state.base_sha256,
        "widths": {site: list(widths) for site, widths in state.widths.items()},
        "structure": {name: list(values) for name, values in state.structure.items()},
        "steps": state.steps,
        "made_by": dict(state.made_by),
    }
    write_tensors(path, state.parameters, _KEY, content)


def load_shared(path: Path, base: PreparedBase, widths: Widths, structure: KeptValues | None = None) -> SharedState:
    """Read a shared network.

    Args:
        path: the file.
        base: the base that it must have been trained from.
        widths: widths that it must have; it may have more.
        structure: what it must have been trained to keep of the options of the network; it may be more.

    Raises:
        UserError: no such file, no shared network, or one of another front end, network, base or space.
    """
    content, mapped = read_tensors(path, _KEY, _WHAT, _MEND)
    if content.get("format") != _FORMAT:
        raise refused(path, _WHAT, f"its format is not {_FORMAT}", _MEND)
    for what, found, wanted in (
        ("front end", content.get("front_end"), _front_end(base.separator.front_end)),
        ("network or [quantization]", str(content.get("network"))[:12], network_digest(base)[:12]),
        ("base", str(content.get("base_sha256"))[:12], base.base_sha256[:12]),
    ):
        if found != wanted:
            raise UserError(f"{path}: the shared network of another {what} ({found}); wanted {wanted}")
    held = _whole_numbers(path, content.get("widths"), "the widths of its sites")
    kept = _whole_numbers(path, content.get("structure"), "what it keeps of the network")
    _check_space(path, held, widths, "has '{}' at {} bits; wanted {} bits, too")
    _check_space(path, kept, structure or {}, "keeps '{}' at {}; wanted {}, too")
    steps, made_by = content.get("steps"), content.get("made_by")
    if type(steps) is not int or steps < 0 or not isinstance(made_by, dict):
        raise refused(path, _WHAT, f"trained for {steps!r} steps", _MEND)
    parameters = {name: tensor.clone() for name, tensor in mapped.items()}
    state = SharedState(parameters, held, base.base_sha256, steps, made_by, kept)
    _check_parameters(path, base, state)
    return state


def network_digest(base: PreparedBase) -> str:
    """Hash what the names and the meaning of the parameters depend on besides the base: the graph, and how it is quantized."""
    return digest({"graph": structure(base.graph), "quantization": base.quantization.model_dump(mode="json")})


def _front_end(front_end: FrontEnd) -> dict[str, Any]:
    """Describe a front end as a JSON object."""
    spectral = None if front_end.spectral is None else front_end.spectral.model_dump(mode="json")
    setting = front_end.array.setting
    array = setting if isinstance(setting, str) else setting.model_dump(mode="json")
    return {"array": array, "sample_rate": front_end.sample_rate, "spectral": spectral}


def _whole_numbers(path: Path, value: Any, what: str) -> dict[str, tuple[int, ...]]:
    if not isinstance(value, dict) or not all(
        isinstance(numbers, list) and numbers and all(type(each) is int for each in numbers) for numbers in value.values()
    ):
        raise refused(path, _WHAT, f"it does not say {what}", _MEND)
    return {name: tuple(numbers) for name, numbers in value.items()}


def _check_space(path: Path, held: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], difference: str) -> None:
    """Refuse a network that lacks wanted numbers."""
    for name, numbers in wanted.items():
        if missing := [each for each in numbers if each not in held.get(name, ())]:
            said = difference.format(name, list(held.get(name, ())), missing[0])
            raise UserError(f"{path}: the shared network of another search space: it {said}")


def _check_parameters(path: Path, base: PreparedBase, state: SharedState) -> None:
    """Refuse tensors that do not belong to the widths and the structure."""
    widths, found = state.widths, state.parameters
    if widths.keys() != set(base.sites.all):
        raise refused(path, _WHAT, "its sites are not those of the network", _MEND)
    if state.structure and not all(
        name in base.options.by_name and values[-1] == base.options.whole(name) for name, values in state.structure.items()
    ):
        raise refused(path, _WHAT, "what it keeps is not of the network", _MEND)
    check_tensors(path, found, _wanted(base, state))
    check_tied(path, found, tied_names(base, widths), _MEND)
    classes = {group.name + ORDER: group.classes for group in _narrowed_groups(base, state.structure)}
    for name, tensor in found.items():
        kind, _, bits = name.partition("@")
        good = True
        if bits and kind.endswith(SCALE):
            good = bool((tensor > 0).all())
        elif kind.endswith(".zero_point"):
            good = 0 <= int(tensor) < 2 ** int(bits)
        elif name in classes:
            good = sorted(tensor.tolist()) == list(classes[name])
        if not good:
            raise UserError(f"{path}: tensor '{name}' holds values out of range; {_MEND}")


def _narrowed_groups(base: PreparedBase, structure: KeptValues) -> list[ChannelGroup]:
    """Return the groups of channels that may be narrowed."""
    return [group for group in base.options.groups if group.name in structure] if structure else []


def _wanted(base: PreparedBase, state: SharedState) -> dict[str, tuple[torch.dtype, torch.Size]]:
    """Return name, type and shape of every tensor of a shared network."""
    graph, widths, means = base.graph.parameters, state.widths, base.to_train.means
    biases = {_bias(site) for site in base.sites.weights}
    wanted = {name: (torch.float32, tensor.shape) for name, tensor in graph.items() if name not in biases}
    for site in base.sites.weights:
        layer = base.graph.by_name[site.removesuffix(WEIGHT)]
        wanted[_beside(site, OUTPUT)] = torch.float32, graph[_bias(site)].shape
        if layer.name in means:
            wanted[_beside(site, MEAN)] = torch.float32, means[layer.name].shape
        for bits in widths[site]:
            if not is_float(bits):
                wanted[_at(f"{site}.scale", bits)] = torch.float32, scale_shape(layer, graph[site], base.quantization)
    for site in base.sites.activations:
        for bits in widths[site]:
            if not is_float(bits):
                wanted[_at(f"{site}.scale", bits)] = torch.float32, torch.Size()
                wanted[_at(f"{site}.zero_point", bits)] = torch.int32, torch.Size()
    for group in _narrowed_groups(base, state.structure):
        wanted[group.name + ORDER] = torch.int32, torch.Size([len(group.classes)])
    return wanted


def _at(name: str, bits: int) -> str:
    """Return the name of a tensor at a width."""
    return name if is_float(bits) else f"{name}@{bits}"


def _bias(site: str) -> str:
    """Return the name of the bias beside a weight site."""
    return _beside(site, ".bias")


def _beside(site: str, part: str) -> str:
    """Return the name of another tensor of the layer of a weight site."""
    return site.removesuffix(WEIGHT) + part


def _parts(site: str) -> tuple[str, ...]:
    """Return the parts of a site's grid."""
    return ("scale",) if is_weight(site) else ("scale", "zero_point")
