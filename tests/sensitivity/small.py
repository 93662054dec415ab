"""A tiny base and mixtures to take sensitivities of, in single or double precision."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from hwsearch.experiment import FLOAT_BITS, QuantizationConfig, SeparatorConfig
from hwsearch.network.graph import Graph
from hwsearch.network.run import run
from hwsearch.network.sites import find_sites
from hwsearch.sensitivity.choices import Candidates, SiteChoices, make_choices
from hwsearch.sensitivity.mixture import AnalysedMixture, analyse_mixture, separation_loss
from hwsearch.sensitivity.prefix import run_keeping
from hwsearch.separator.allocation import ACTIVATION_WIDTHS, WEIGHT_WIDTHS, BitAllocation, is_weight
from hwsearch.separator.front_end import Analysis
from hwsearch.separator.prepare import PreparedBase
from hwsearch.separator.rounded_weights import RoundedLayer
from tests.separator.small import RELU, all_sites, noise_mixture, small_network

WIDTHS = (2, 4, 8, 32)


def candidates(sites: Sequence[str], widths: Sequence[int] = WIDTHS) -> Candidates:
    """Sites with those of the widths that each may take."""
    return tuple(
        (site, tuple(bits for bits in widths if bits in (WEIGHT_WIDTHS if is_weight(site) else ACTIVATION_WIDTHS)))
        for site in sites
    )


@cache
def small_base(config: SeparatorConfig = RELU) -> PreparedBase:
    separator, graph, calibration = small_network(config)
    return PreparedBase(separator, graph, calibration, QuantizationConfig(), "")


def small_mixture(base: PreparedBase, seed: int = 3, samples: int = 1000) -> AnalysedMixture:
    """Noise, with a target that the reference microphone holds in part."""
    sound = noise_mixture(samples, seed)
    target = sound[0] + 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed + 1000))
    return analyse_mixture(base, f"noise-{seed}", sound, 60.0, target)


@cache
def double_base(config: SeparatorConfig = RELU) -> PreparedBase:
    return in_double(small_base(config))


def in_double(base: PreparedBase) -> PreparedBase:
    parameters = {name: tensor.double() for name, tensor in base.graph.parameters.items()}
    return replace(base, graph=replace(base.graph, parameters=parameters), separator=copy.deepcopy(base.separator).double())


def double_mixture(base: PreparedBase, seed: int = 3, samples: int = 1000) -> AnalysedMixture:
    """`small_mixture` for a base in double precision."""
    single = small_mixture(small_base(base.separator.network.config), seed, samples)
    reference, start = single.analysis.context
    analysis = Analysis(single.analysis.normalised.double(), (reference.to(torch.complex128), start.double()))
    with torch.no_grad():
        output, tensors = run_keeping(base.graph, base.sites, analysis.normalised)
    return AnalysedMixture(single.name, analysis, single.target.double(), output, tensors)


def double_choices(base: PreparedBase, sites: Sequence[str], widths: Sequence[int]) -> SiteChoices:
    choices = make_choices(base, candidates(sites, widths))

    def double(layer: RoundedLayer) -> RoundedLayer:
        return RoundedLayer(replace(layer.weight, scale=layer.weight.scale.double()), layer.bias.double())

    return replace(choices, weights={key: double(layer) for key, layer in choices.weights.items()})


def broken_base() -> PreparedBase:
    """A base with one bias that is not a number."""
    base = small_base()
    bias = base.graph.parameters["blocks.0.project.bias"].clone()
    bias[0] = float("nan")
    return replace(base, graph=with_parameter(base.graph, "blocks.0.project.bias", bias))


def with_parameter(graph: Graph, name: str, value: Tensor) -> Graph:
    return replace(graph, parameters={**graph.parameters, name: value})


def run_sites(graph: Graph, x: Tensor, at_site: Callable[[str, Tensor], Tensor] = lambda _, y: y) -> Tensor:
    """The plain forward pass, with the tensor of every activation site changed on its way."""
    site_of = {tensor: site for site, tensor in find_sites(graph).tensors.items()}
    (output,) = run(graph, {graph.inputs[0]: x}, lambda name, y: at_site(site_of[name], y) if name in site_of else y)
    return output


def loss_with(base: PreparedBase, mixture: AnalysedMixture, site: str, value: Tensor) -> Tensor:
    """The loss of a plain forward pass with other weights or another activation at a site."""
    graph = with_parameter(base.graph, site, value) if is_weight(site) else base.graph
    mask = run_sites(graph, mixture.analysis.normalised, lambda at, x: value if at == site else x)
    return separation_loss(base.separator, mask, mixture)


def only(config: SeparatorConfig, site: str, bits: int) -> BitAllocation:
    """The allocation with one site quantized."""
    return BitAllocation.of({other: bits if other == site else FLOAT_BITS for other in all_sites(config)})
