"""A base that layers read a wide trunk of, and shared networks of it."""

from dataclasses import replace
from functools import cache

import torch
from hypothesis import strategies as st

from hwsearch.experiment import QuantizationConfig
from hwsearch.network.conditioned import centred, channel_ranges
from hwsearch.network.sites import with_reads
from hwsearch.separator.allocation import ACTIVATION_WIDTHS, WEIGHT_WIDTHS, BitAllocation, is_weight
from hwsearch.separator.calibration import calibrate
from hwsearch.separator.prepare import PreparedBase
from hwsearch.separator.second_order import input_statistics
from hwsearch.separator.shared import SharedState, Widths
from tests.separator.small import RELU, normalised_features, small_network
from tests.training.pools import BASE_SHA256


@cache
def trunk_base(weight_scale: str = "per_channel") -> PreparedBase:
    separator, graph, _ = small_network(RELU)
    features = [normalised_features(separator, 3000, mixture) for mixture in (1, 2)]
    graph = with_reads(graph)
    graph = centred(graph, channel_ranges(graph, features))
    config = QuantizationConfig(weight_scale=weight_scale, weight_scale_method="max")
    statistics = input_statistics(graph, features)
    means = {name: found.mean.float() for name, found in statistics.items()}
    return PreparedBase(separator, graph, calibrate(graph, features), config, BASE_SHA256, lambda: statistics, means=means)


def widths_of(base: PreparedBase, weights: tuple[int, ...] = (2, 4, 8), activations: tuple[int, ...] = (6, 8)) -> Widths:
    return dict.fromkeys(base.sites.weights, weights) | dict.fromkeys(base.sites.activations, activations)


def some_widths(base: PreparedBase) -> st.SearchStrategy[Widths]:
    """Any widths of each site."""
    sites = base.sites.all
    each = (
        st.sets(st.sampled_from(WEIGHT_WIDTHS if is_weight(site) else ACTIVATION_WIDTHS), min_size=1, max_size=3)
        for site in sites
    )
    return st.tuples(*each).map(lambda found: {site: tuple(sorted(bits)) for site, bits in zip(sites, found, strict=True)})


def allocations_of(widths: Widths) -> st.SearchStrategy[BitAllocation]:
    return st.tuples(*map(st.sampled_from, widths.values())).map(
        lambda bits: BitAllocation(tuple(zip(widths, bits, strict=True)))
    )


def trained(state: SharedState, seed: int) -> SharedState:
    """The network as training might leave it: all that is trained a little off."""
    noise = torch.Generator().manual_seed(seed)
    parameters = {
        name: tensor * (1 + 0.1 * torch.randn(tensor.shape, generator=noise)).clamp_min(0.5)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in state.parameters.items()
    }
    return replace(state, parameters=parameters, steps=7, made_by={"training": "t" * 64, "reports": []})
