"""The workload has the shapes of the network's own modules, and the sites of its allocations."""

import pytest
from torch import nn

from hw_models.workload import LayerKind, bits_matrix
from hwsearch.experiment import SeparatorConfig
from hwsearch.separator.allocation import activation_sites, uniform, weight_sites
from hwsearch.separator.folding import fold, run_folded
from hwsearch.separator.workload import build_workload
from tests.separator.small import RELU, normalised_features, small_separator

DEEP = SeparatorConfig(B=6, H=10, P=5, X=3, R=2, n_fft=128, hop_length=64)


@pytest.mark.parametrize("config", [RELU, DEEP])
def test_shapes_are_those_of_the_modules(config):
    network = small_separator(config).network
    workload = build_workload(config, network.feature_mean.numel(), 40, 8000, per_channel=True)
    convolutions = {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv1d)}
    layers = {layer.name: layer for layer in workload.weight_layers}
    assert list(layers) == list(fold(network).layers)
    for name, module in convolutions.items():
        layer = layers[name]
        assert (layer.in_channels, layer.out_channels) == (module.in_channels, module.out_channels)
        assert (layer.kernel_size, layer.dilation) == (module.kernel_size[0], module.dilation[0])
        assert layer.weight_count == module.weight.numel()
        assert (layer.kind is LayerKind.DEPTHWISE) == (module.groups > 1)
        assert layer.weight_site == f"{name}.weight"


@pytest.mark.parametrize("config", [RELU, DEEP])
def test_sites_are_those_of_an_allocation_in_its_order(config):
    workload = build_workload(config, 100, 40, 8000, per_channel=False)
    assert workload.weight_sites == weight_sites(config)
    assert set(workload.activation_sites) == set(activation_sites(config))
    bits = bits_matrix(workload, [uniform(config, 4, 8).by_site])
    assert bits.shape == (1, len(weight_sites(config)) + len(activation_sites(config)))


def test_site_channels_are_those_of_the_tensors():
    separator = small_separator(DEEP)
    features = normalised_features(separator)
    workload = build_workload(DEEP, features.shape[1], features.shape[-1], 8000, per_channel=True)
    seen: dict[str, int] = {}

    def watch(site, x):
        seen[site] = x.shape[1]
        return x

    run_folded(fold(separator.network), features, watch)
    assert dict(workload.site_channels) == seen


def test_the_residual_chain_runs_from_block_to_block_and_ends_behind_the_last():
    workload = build_workload(DEEP, 100, 40, 8000, per_channel=True)
    adds = [layer for layer in workload.layers if layer.kind is LayerKind.ADD]
    trunk = ["input_proj.output", *(f"blocks.{k}.add.output" for k in range(6))]
    assert [layer.input_sites for layer in adds] == [(trunk[k], f"blocks.{k}.project.output") for k in range(6)]
    assert [layer.output_site for layer in adds] == trunk[1:]
    assert workload.layers[-1].input_sites == (trunk[-1],)


def test_frames_and_hop_time():
    workload = build_workload(RELU, 100, 40, 8000, per_channel=True)
    assert workload.frames == 40
    assert workload.frame_seconds == pytest.approx(0.008)
    assert workload.macs == 40 * sum([100 * 8, 2 * (8 * 16 + 3 * 16 + 16 * 8), 8 * 130])
