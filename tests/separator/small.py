"""Small untrained separators with batch-norm statistics that are not those of a fresh network."""

from functools import cache

import torch
from hypothesis import strategies as st
from torch import nn

from hwsearch.data.arrays import ARRAYS
from hwsearch.experiment import FLOAT_BITS, SeparatorConfig
from hwsearch.network.graph import Graph
from hwsearch.network.sites import Sites
from hwsearch.separator import allocation
from hwsearch.separator.allocation import ACTIVATION_WIDTHS, WEIGHT_WIDTHS, BitAllocation, is_weight
from hwsearch.separator.calibration import Calibration, calibrate
from hwsearch.separator.separator import Separator, build_separator
from hwsearch.separator.tcn import MaskNetwork
from hwsearch.separator.traced import traced
from hwsearch.separator.untrained import UntrainedNetwork, network_of

RELU = SeparatorConfig(B=8, H=16, X=2, R=1, n_fft=128, hop_length=64)
CAUSAL = RELU.model_copy(update={"causal": True})
PRELU = RELU.model_copy(update={"activation": "prelu"})
KINDS = {"relu": RELU, "causal": CAUSAL, "prelu": PRELU}


@cache
def small_shapes(config: SeparatorConfig, features: int) -> UntrainedNetwork:
    """A network for so many features, without its numbers."""
    with torch.random.fork_rng():
        return network_of(MaskNetwork(config, features).eval(), features)


def sites_of(config: SeparatorConfig) -> Sites:
    """The sites of a network, whatever the number of features."""
    return small_shapes(config, 1).sites


def all_sites(config: SeparatorConfig) -> tuple[str, ...]:
    return sites_of(config).all


def weight_sites(config: SeparatorConfig) -> tuple[str, ...]:
    return sites_of(config).weights


def activation_sites(config: SeparatorConfig) -> tuple[str, ...]:
    return sites_of(config).activations


def uniform(config: SeparatorConfig, weight_bits: int, activation_bits: int = FLOAT_BITS) -> BitAllocation:
    return allocation.uniform(sites_of(config), weight_bits, activation_bits)


def small_separator(config: SeparatorConfig = RELU, seed: int = 0) -> Separator:
    """A separator for four microphones whose norms and feature statistics are random."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        separator = build_separator(config, ARRAYS["linear4"], 8000).eval()
        for module in separator.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.normal_(0.0, 0.3)
                module.running_var.uniform_(0.3, 1.5)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0.0, 0.3)
            if isinstance(module, nn.PReLU):
                nn.init.constant_(module.weight, 0.2)
        # A fresh head is zero, so that training starts from the front end's own mask.
        nn.init.normal_(separator.network.mask_head.weight, 0.0, 0.3)
        nn.init.normal_(separator.network.mask_head.bias, 0.0, 0.3)
        separator.front_end.feature_mean.normal_()
        separator.front_end.feature_scale.uniform_(0.5, 1.5)
    return separator


def noise_mixture(samples: int = 3000, seed: int = 0) -> torch.Tensor:
    """White noise at four microphones."""
    return 0.1 * torch.randn(4, samples, generator=torch.Generator().manual_seed(seed))


def normalised_features(separator: Separator, samples: int = 3000, seed: int = 0) -> torch.Tensor:
    """Normalised features of a noise mixture, [1, features, frames]."""
    with torch.no_grad():
        return separator.analyse(noise_mixture(samples, seed)[None], torch.tensor([60.0])).normalised


@cache
def small_network(config: SeparatorConfig = RELU, seed: int = 0) -> tuple[Separator, Graph, Calibration]:
    """A separator, its graph, and that calibrated on two mixtures."""
    separator = small_separator(config, seed)
    graph = traced(separator)
    features = [normalised_features(separator, 3000, mixture) for mixture in (1, 2)]
    return separator, graph, calibrate(graph, features)


def allocations(config: SeparatorConfig) -> st.SearchStrategy[BitAllocation]:
    """Any allocation of a network."""
    return st.tuples(
        *(st.sampled_from(WEIGHT_WIDTHS if is_weight(site) else ACTIVATION_WIDTHS) for site in sites_of(config).all)
    ).map(lambda widths: BitAllocation(tuple(zip(sites_of(config).all, widths, strict=True))))
