"""The eleven systems of the reference's Table 1 (arXiv 2111.14479) on a base of this project, with the paper's own choices.

Only weights are quantized, each layer with one scale and rounding to the nearest integer, and nothing is trained. The first and
the last layer stay in full precision. Widths are 2, 4, 8 and 16 bits. A layer's scale applies to its weights before the norm
behind it is folded in, as in the paper; behind folding, each output channel then has a scale of its own. Norms and biases stay in
floating point, and the file is counted as in the paper, with every parameter of a layer at the width of its weights.

Mixed systems minimise a sum over the layers at the size of a uniform width: the Hessian's trace times the squared error, the KL
divergence of the outputs, or the negative log probability that a differentiable search gave to the width.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from sensitivities import sensitivities
from systems import Kind, System
from torch import Tensor

from hwsearch.executor import LocalExecutor
from hwsearch.experiment import FLOAT_BITS, Experiment, QuantizationConfig, with_search
from hwsearch.network.graph import Graph
from hwsearch.network.sites import WEIGHT
from hwsearch.search.exact.front import front_at
from hwsearch.search.exact.problem import Cost, additive_cost, allocation_problem
from hwsearch.search.nas.expected_cost import SUM_SQRT_BITS, nas_cost
from hwsearch.search.nas.result import NasResult
from hwsearch.search.nas.sweep import NAS_FILE, NasFactory, ensure_nas
from hwsearch.search.priors import separable_loss
from hwsearch.search.space import build_space
from hwsearch.sensitivity.work import WorkFactory
from hwsearch.separator.allocation import BitAllocation, is_weight, uniform
from hwsearch.separator.factory import BaseFactory
from hwsearch.separator.prepare import PreparedBase
from hwsearch.separator.quantizers import quantize_weight, weight_scale
from hwsearch.separator.untrained import untrained_network, untrained_sites
from hwsearch.workspace import Workspace

WIDTHS = (2, 4, 8, 16)
MEANS = (4, 8)
"""Mean widths of the mixed systems."""

METHODS = {"Hessian": "curvature", "KL": "kl"}
"""Sensitivities of this project behind the names of the paper."""

PUBLISHED = {
    "full precision": (0.0, 1.0),
    "uniform, 2 bits": (2.19, 7.65),
    "uniform, 4 bits": (1.04, 5.33),
    "uniform, 8 bits": (0.24, 3.29),
    "uniform, 16 bits": (0.02, 1.86),
    "mixed, Hessian, 4 bits": (0.62, 5.25),
    "mixed, Hessian, 8 bits": (0.04, 3.26),
    "mixed, KL, 4 bits": (0.53, 5.25),
    "mixed, KL, 8 bits": (0.03, 3.26),
    "mixed, NAS, 4 bits": (0.89, 5.25),
    "mixed, NAS, 8 bits": (0.09, 3.26),
}
"""Mean SI-SNR lost in dB, and how many times smaller the file is, in the paper's Table 1."""

_BYTES = "bytes of the reference"
_PER_TENSOR = QuantizationConfig(weight_scale="per_tensor")
_LEAST_PROBABILITY = 1e-12


def reference_experiment(experiment: Experiment) -> Experiment:
    """Return an experiment with the paper's choices in place of its own."""
    weights = untrained_sites(experiment).weights
    changes = {
        "name": f"{experiment.name}-reference",
        "quantization": QuantizationConfig(rounding="nearest", bias_correction=False, equalise=False, centre_trunk=False),
        "sensitivity": experiment.sensitivity.model_copy(update={"probe": "gaussian"}),
        "nas": experiment.nas.model_copy(update={"cost": SUM_SQRT_BITS}),
    }
    search = {
        "weight_bits": list(WIDTHS),
        "activation_bits": [FLOAT_BITS],
        "trunk_bits": [FLOAT_BITS],
        "fixed": dict.fromkeys((weights[0], weights[-1]), FLOAT_BITS),
        "fidelity": "post-training",
    }
    return with_search(experiment.model_copy(update=changes), search)


def with_layer_scales(base: PreparedBase) -> PreparedBase:
    """Return the base with weights rounded as in the paper: one scale for each layer, before the norm is folded in."""
    found = dict(_rounded(base))
    base.weights.take(found, Path("the reference's weights"))
    return base


def _rounded(base: PreparedBase) -> Iterator[tuple[str, Tensor]]:
    """Yield the rounded weights, as `RoundedWeights.to_tensors` names them."""
    for site in base.sites.weights:
        layer, folded = site.removesuffix(WEIGHT), base.graph.parameters[site]
        weight = base.separator.network.get_submodule(layer).weight
        if not isinstance(weight, Tensor):
            raise TypeError(f"layer '{layer}' has no weights")
        gain = _gain(weight.detach(), folded)
        for bits in WIDTHS:
            rounded = quantize_weight(folded, weight_scale(weight, bits, _PER_TENSOR) * gain, bits)
            yield f"{layer}@{bits}.integers", rounded.integers
            yield f"{layer}@{bits}.scale", rounded.scale
            yield f"{layer}@{bits}.bias", base.graph.parameters[f"{layer}.bias"]


def _gain(weight: Tensor, folded: Tensor) -> Tensor:
    """Return by how much folding has scaled each output channel, [out, 1, 1], positive; 1 for a channel of zeros."""
    before, behind = (tensor.double().abs().sum(dim=(1, 2), keepdim=True) for tensor in (weight, folded))
    ratio = behind / before.clamp_min(1e-30)
    return torch.where(ratio > 1e-12, ratio, 1.0).float()


class _LayerScales(BaseFactory):
    """Work on the base with the paper's weights."""

    def prepared(self) -> PreparedBase:
        return with_layer_scales(super().prepared())


class _Work(_LayerScales, WorkFactory):
    pass


class _Nas(_LayerScales, NasFactory):
    pass


def layer_parameters(graph: Graph) -> dict[str, int]:
    """Count the parameters of each layer, by its weight site."""
    found: dict[str, int] = {}
    for name, tensor in graph.parameters.items():
        site = f"{name.rpartition('.')[0]}{WEIGHT}"
        found[site] = found.get(site, 0) + tensor.numel()
    return found


def bytes_at(parameters: Mapping[str, int], widths: Mapping[str, int]) -> int:
    """Count the bytes of a file as the paper does: every parameter of a layer at the width of its weights."""
    return math.ceil(sum(count * widths[site] for site, count in parameters.items()) / 8)


def float_bytes(experiment: Experiment) -> int:
    """Count the bytes of the float32 file: the parameters of the network, norms folded in, in 4 bytes each."""
    parameters = layer_parameters(untrained_network(experiment).graph)
    return bytes_at(parameters, dict.fromkeys(parameters, FLOAT_BITS))


class Reference:
    """The reference's systems on the base of a workspace, whose experiment is that of `reference_experiment`."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self.experiment = workspace.experiment
        network = untrained_network(self.experiment)
        self._parameters = layer_parameters(network.graph)
        self._space = build_space(self.experiment.search, untrained_sites(self.experiment))

    def systems(self, pool: Path) -> list[System]:
        """Return full precision and the ten quantized systems.

        Args:
            pool: training mixtures, on which the differentiable search runs.
        """
        uniforms = [self._system(f"uniform, {bits} bits", self._uniform(bits)) for bits in WIDTHS]
        factory = _Work.of(self._workspace, None)
        methods, folder = list(METHODS.values()), self._workspace.folder / "sensitivities"
        tables = sensitivities(factory, methods, self._space.free_sites, folder)
        losses = {
            name: dict.fromkeys(MEANS, separable_loss(table, self._space)) for name, table in zip(METHODS, tables, strict=True)
        }
        results = self._nas(pool)
        losses["NAS"] = {bits: self._improbability(results, bits) for bits in MEANS}
        mixed = [
            self._system(f"mixed, {name}, {bits} bits", self._optimum(by_mean[bits], bits))
            for name, by_mean in losses.items()
            for bits in MEANS
        ]
        whole = self._space.full_precision.allocation
        full = System(Kind.FULL, "full precision", whole, float_bytes(self.experiment), FLOAT_BITS, (0, 1))
        return [full, *uniforms, *mixed]

    def _uniform(self, bits: int) -> BitAllocation:
        """All weights at a width but for those of the first and the last layer."""
        return BitAllocation.of(uniform(untrained_sites(self.experiment), bits).by_site | self.experiment.search.fixed)

    def _cost(self) -> Cost:
        charges = {
            site: {bits: self._parameters[site] * bits / 8 for bits in widths}
            for site, widths in self._space.widths
            if is_weight(site)
        }
        return additive_cost(_BYTES, self._space.widths, charges)

    def _optimum(self, loss: Mapping[str, Mapping[int, float]], bits: int) -> BitAllocation:
        """The allocation of least loss in the bytes of a uniform width."""
        problem = allocation_problem(self._space, loss, (self._cost(),))
        budget = bytes_at(self._parameters, self._uniform(bits).by_site)
        return problem.allocation(front_at(problem, _BYTES, [budget]).indices[0])

    def _nas(self, pool: Path) -> list[NasResult]:
        place, experiment = self._workspace, self.experiment
        nothing = {site: dict.fromkeys(widths, 0.0) for site, widths in self._space.free_sites}
        factory = _Nas(
            experiment,
            place.base_path.resolve(),
            place.data_folder.resolve(),
            place.calibration_path.resolve(),
            pool.resolve(),
            problem=allocation_problem(self._space, nothing, ()),
            cost=nas_cost(experiment, self._space.widths),
        )
        return ensure_nas(factory, place.folder / NAS_FILE, LocalExecutor)

    def _improbability(self, results: list[NasResult], bits: int) -> dict[str, dict[int, float]]:
        """The negative log probabilities of the widths, from the cost weight whose likeliest allocation is nearest in size."""
        budget = bytes_at(self._parameters, self._uniform(bits).by_site)
        nearest = min(results, key=lambda found: abs(bytes_at(self._parameters, found.allocation.by_site) - budget))
        found: dict[str, dict[int, float]] = {}
        for (site, widths), shares in zip(self._space.widths, nearest.probabilities, strict=True):
            if len(widths) > 1:
                losses = -np.log(np.clip(shares, _LEAST_PROBABILITY, 1.0))
                found[site] = dict(zip(widths, losses.tolist(), strict=True))
        return found

    def _system(self, name: str, allocation: BitAllocation) -> System:
        widths = allocation.by_site
        inner = [site for site, options in self._space.widths if is_weight(site) and len(options) > 1]
        counts = np.array([self._parameters[site] for site in inner])
        average = float(counts @ [widths[site] for site in inner] / counts.sum())
        size = bytes_at(self._parameters, widths)
        return System(Kind.REFERENCE, name, allocation, size, average, PUBLISHED[name])
