"""Exported small networks."""

import torch

from hwsearch.experiment import QuantizationConfig, SeparatorConfig
from hwsearch.export.description import ExportDescription, NetworkStructure
from hwsearch.export.network import ExportedNetwork
from hwsearch.separator.allocation import BitAllocation
from hwsearch.separator.quantized import build_quantized
from tests.separator.small import small_network

QUANTIZATION = QuantizationConfig()


def exported_network(config: SeparatorConfig, allocation: BitAllocation) -> ExportedNetwork:
    """A small network at an allocation, as it is exported."""
    separator, graph, calibration = small_network(config)
    return ExportedNetwork(build_quantized(graph, allocation, calibration, QUANTIZATION), separator.front_end).eval()


def description(config: SeparatorConfig, allocation: BitAllocation) -> ExportDescription:
    """Metadata for it."""
    return ExportDescription(
        sample_rate=8000,
        array="linear4",
        spectral=config.spectral,
        network=NetworkStructure.of(small_network(config)[1]),
        allocation=allocation.to_json(),
        base_digest="0" * 64,
        hwsearch_version="0",
    )


def raw_features(network: ExportedNetwork, frames: int, seed: int = 0) -> torch.Tensor:
    """Features with the statistics that the network was calibrated on."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(1, network.features, frames, generator=random) / network.scale + network.mean
