"""The shared network: one set of weights for every bit allocation of a search space, and a grid for each site and width.

It holds these tensors in CPU memory:

    OPERATION.PART            the floating-point master copy of every parameter of the graph, except for the biases of layers
    LAYER.bias@BITS           the bias of a layer whose weights have BITS bits; `LAYER.bias` for weights in floating point
    LAYER.weight.scale@BITS   the scale of weights of BITS bits, which broadcasts to them; bfloat16 values
    SITE.scale@BITS           [], the scale of an activation of BITS bits; tied ones are equal
    SITE.zero_point@BITS      [] int32, its zero point; not trained

A width is there if the space has it. A layer has a bias for each width, because the bias makes up for the mean error of the
rounded weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hwsearch.errors import UserError
from hwsearch.files.reading import digest
from hwsearch.files.tensors import check_tensors, read_tensors, refused, write_tensors
from hwsearch.network.sites import WEIGHT
from hwsearch.network.structure import structure
from hwsearch.separator.allocation import BitAllocation, is_weight
from hwsearch.separator.calibration import Calibration
from hwsearch.separator.front_end import FrontEnd
from hwsearch.separator.prepare import PreparedBase
from hwsearch.separator.quantizers import ActivationGrid, is_float, quantize_weight
from hwsearch.separator.rounded_weights import scale_shape
from hwsearch.separator.second_order import mean_output
from hwsearch.separator.tied_scales import check_tied, followers
from hwsearch.separator.trained import TrainedState

_KEY = "hwsearch_shared"
_FORMAT = 4
_WHAT = "a shared network"
_MEND = "delete it and train it again"

Widths = Mapping[str, tuple[int, ...]]
"""The widths of each site, in rising order."""


@dataclass(frozen=True, eq=False)
class SharedState:
    """A shared network.

    Attributes:
        parameters: tensors by name, float32 except for the zero points.
        widths: of every site.
        base_sha256: the base that it was trained from.
        steps: training steps.
        made_by: how it was trained, as a JSON object.
    """

    parameters: Mapping[str, Tensor]
    widths: Widths
    base_sha256: str
    steps: int
    made_by: Mapping[str, Any] = field(default_factory=dict)

    def names_at(self, allocation: BitAllocation) -> dict[str, str]:
        """Return the name of each tensor of an allocation's `TrainedState`, and that of the tensor that takes its place.

        Raises:
            ValueError: the network does not have a width of the allocation.
        """
        names = {name: name for name in self.parameters if "@" not in name}
        for site, bits in allocation.widths:
            if bits not in self.widths.get(site, ()):
                raise ValueError(f"the shared network does not have '{site}' at {bits} bits")
            if is_weight(site):
                bias = _bias(site)
                names[bias] = _at(bias, bits)
            if not is_float(bits):
                names |= {f"{site}.{part}": _at(f"{site}.{part}", bits) for part in _parts(site)}
        return names

    def at(self, allocation: BitAllocation) -> TrainedState:
        """Return the state of an allocation, as if it had been trained alone.

        Raises:
            ValueError: the network does not have a width of the allocation.
        """
        parameters = {name: self.parameters[shared].clone() for name, shared in self.names_at(allocation).items()}
        return TrainedState(parameters, allocation, self.base_sha256, self.steps)

    def as_base(self, base: PreparedBase) -> PreparedBase:
        """Return the base with the weights and grids of the shared network in place of its own.

        It computes what `at` does at every allocation that the network has. In floating point a layer has the bias of its widest
        weights, so that the network in floating point is close to the widest allocation.
        """
        widest = {_bias(site): _at(_bias(site), bits[-1]) for site, bits in self.widths.items() if is_weight(site)}
        parameters = {name: self.parameters[widest.get(name, name)].clone() for name in base.graph.parameters}
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

    def _rounded(self) -> dict[str, Tensor]:
        """Return the quantized weights, as `RoundedWeights.to_tensors` does."""
        found = {}
        for site, widths in self.widths.items():
            for bits in widths:
                if is_weight(site) and not is_float(bits):
                    layer, scale = site.removesuffix(WEIGHT), self.parameters[_at(f"{site}.scale", bits)]
                    found[f"{layer}@{bits}.integers"] = quantize_weight(self.parameters[site], scale, bits).integers
                    found[f"{layer}@{bits}.scale"] = scale
                    found[f"{layer}@{bits}.bias"] = self.parameters[_at(_bias(site), bits)]
        return found


def initial_shared(base: PreparedBase, widths: Widths) -> SharedState:
    """Make the shared network that training starts from: the weights of the base, and grids of post-training quantization."""
    outputs = mean_outputs(base)
    parameters = {name: tensor for name, tensor in base.graph.parameters.items() if name not in outputs}
    for site in base.sites.weights:
        for bits in widths[site]:
            if not is_float(bits):
                parameters[_at(f"{site}.scale", bits)] = base.weights.layer(site.removesuffix(WEIGHT), bits).weight.scale
    for site in base.sites.activations:
        for bits in widths[site]:
            if (grid := base.calibration.grid(site, bits)) is not None:
                parameters[_at(f"{site}.scale", bits)] = torch.tensor(grid.scale)
                parameters[_at(f"{site}.zero_point", bits)] = torch.tensor(grid.zero_point, dtype=torch.int32)
    copies = {name: tensor.to("cpu", copy=True) for name, tensor in parameters.items()}
    whole = {site: tuple(widths[site]) for site in base.sites.all}
    return SharedState(copies | biases(base, copies, outputs, whole), whole, base.base_sha256, 0)


def tied_names(base: PreparedBase, widths: Widths) -> dict[str, str]:
    """Return the name of the scale that each scale repeats that follows another (`separator.tied_scales`)."""
    grids = ((site, bits) for site in base.sites.activations for bits in widths[site])
    pairs = followers(base.sites.ties, grids)
    return {_at(f"{site}.scale", bits): _at(f"{first}.scale", of) for (site, bits), (first, of) in pairs.items()}


def mean_outputs(base: PreparedBase) -> dict[str, Tensor]:
    """Return the outputs of the layers of a base for their mean inputs, on the CPU, by name `LAYER.bias`.

    They are trained in place of the biases (`TrainableNetwork`). Without a mean input, it is the bias itself.
    """
    means, parameters = _means(base), base.graph.parameters
    found = {}
    for site in base.sites.weights:
        bias, mean = parameters[_bias(site)].cpu(), means.get(site.removesuffix(WEIGHT))
        found[_bias(site)] = bias if mean is None else bias + mean_output(parameters[site].cpu(), mean)
    return found


def _means(base: PreparedBase) -> dict[str, Tensor]:
    return {name: mean.cpu() for name, mean in base.means.items()}


def biases(
    base: PreparedBase, parameters: Mapping[str, Tensor], outputs: Mapping[str, Tensor], widths: Widths
) -> dict[str, Tensor]:
    """Return the bias of each layer at each width with which it has a given output for its mean input.

    Args:
        base: the base that training starts from.
        parameters: weights and scales of a shared network, on the CPU.
        outputs: as from `mean_outputs`.
        widths: of every site.
    """
    means, found = _means(base), {}
    for site in filter(is_weight, widths):
        mean = means.get(site.removesuffix(WEIGHT))
        for bits in widths[site]:
            weight = parameters[site]
            if not is_float(bits):
                weight = quantize_weight(weight, parameters[_at(f"{site}.scale", bits)], bits).value
            bias = outputs[_bias(site)]
            found[_at(_bias(site), bits)] = bias.clone() if mean is None else bias - mean_output(weight, mean)
    return found


def save_shared(path: Path, base: PreparedBase, state: SharedState) -> None:
    """Write a shared network of a base atomically."""
    content = {
        "format": _FORMAT,
        "front_end": _front_end(base.separator.front_end),
        "network": network_digest(base),
        "base_sha256": state.base_sha256,
        "widths": {site: list(widths) for site, widths in state.widths.items()},
        "steps": state.steps,
        "made_by": dict(state.made_by),
    }
    write_tensors(path, state.parameters, _KEY, content)


def load_shared(path: Path, base: PreparedBase, widths: Widths) -> SharedState:
    """Read a shared network.

    Args:
        path: the file.
        base: the base that it must have been trained from.
        widths: widths that it must have; it may have more.

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
    held = _widths(path, content.get("widths"))
    for site, wanted_widths in widths.items():
        if missing := [bits for bits in wanted_widths if bits not in held.get(site, ())]:
            raise UserError(
                f"{path}: the shared network of another search space: it has '{site}' at {list(held.get(site, ()))} bits; "
                f"wanted {missing[0]} bits, too"
            )
    steps, made_by = content.get("steps"), content.get("made_by")
    if type(steps) is not int or steps < 0 or not isinstance(made_by, dict):
        raise refused(path, _WHAT, f"trained for {steps!r} steps", _MEND)
    parameters = {name: tensor.clone() for name, tensor in mapped.items()}
    _check_parameters(path, base, held, parameters)
    return SharedState(parameters, held, base.base_sha256, steps, made_by)


def network_digest(base: PreparedBase) -> str:
    """Hash what the names and the meaning of the parameters depend on besides the base: the graph, and how it is quantized."""
    return digest({"graph": structure(base.graph), "quantization": base.quantization.model_dump(mode="json")})


def _front_end(front_end: FrontEnd) -> dict[str, Any]:
    """Describe a front end as a JSON object."""
    spectral = None if front_end.spectral is None else front_end.spectral.model_dump(mode="json")
    return {"array": front_end.array.name, "sample_rate": front_end.sample_rate, "spectral": spectral}


def _widths(path: Path, value: Any) -> Widths:
    if not isinstance(value, dict) or not all(
        isinstance(widths, list) and widths and all(type(bits) is int for bits in widths) for widths in value.values()
    ):
        raise refused(path, _WHAT, "it does not say the widths of its sites", _MEND)
    return {site: tuple(widths) for site, widths in value.items()}


def _check_parameters(path: Path, base: PreparedBase, widths: Widths, found: Mapping[str, Tensor]) -> None:
    """Refuse tensors that do not belong to the widths."""
    if widths.keys() != set(base.sites.all):
        raise refused(path, _WHAT, "its sites are not those of the network", _MEND)
    check_tensors(path, found, _wanted(base, widths))
    check_tied(path, found, tied_names(base, widths), _MEND)
    for name, tensor in found.items():
        kind, _, bits = name.partition("@")
        good = True
        if bits and kind.endswith(".scale"):
            good = bool((tensor > 0).all())
        elif kind.endswith(".zero_point"):
            good = 0 <= int(tensor) < 2 ** int(bits)
        if not good:
            raise UserError(f"{path}: tensor '{name}' holds values out of range; {_MEND}")


def _wanted(base: PreparedBase, widths: Widths) -> dict[str, tuple[torch.dtype, torch.Size]]:
    """Return name, type and shape of every tensor of a shared network."""
    graph = base.graph.parameters
    biases = {_bias(site) for site in base.sites.weights}
    wanted = {name: (torch.float32, tensor.shape) for name, tensor in graph.items() if name not in biases}
    for site in base.sites.weights:
        layer = base.graph.by_name[site.removesuffix(WEIGHT)]
        for bits in widths[site]:
            wanted[_at(_bias(site), bits)] = torch.float32, graph[_bias(site)].shape
            if not is_float(bits):
                wanted[_at(f"{site}.scale", bits)] = torch.float32, scale_shape(layer, graph[site], base.quantization)
    for site in base.sites.activations:
        for bits in widths[site]:
            if not is_float(bits):
                wanted[_at(f"{site}.scale", bits)] = torch.float32, torch.Size()
                wanted[_at(f"{site}.zero_point", bits)] = torch.int32, torch.Size()
    return wanted


def _at(name: str, bits: int) -> str:
    """Return the name of a tensor at a width."""
    return name if is_float(bits) else f"{name}@{bits}"


def _bias(site: str) -> str:
    """Return the name of the bias beside a weight site."""
    return f"{site.removesuffix(WEIGHT)}.bias"


def _parts(site: str) -> tuple[str, ...]:
    """Return the parts of a site's grid."""
    return ("scale",) if is_weight(site) else ("scale", "zero_point")
