"""Exported small networks."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from hwsearch.experiment import QuantizationConfig, SeparatorConfig
from hwsearch.export.description import ExportDescription, NetworkStructure
from hwsearch.export.network import ExportedNetwork
from hwsearch.export.onnx_export import export_onnx
from hwsearch.network.graph import Graph
from hwsearch.separator.allocation import BitAllocation
from hwsearch.separator.quantized import build_quantized
from tests.separator.small import RELU, small_network

QUANTIZATION = QuantizationConfig()


@cache
def exported_network(config: SeparatorConfig, allocation: BitAllocation) -> ExportedNetwork:
    """A small network at an allocation, as it is exported."""
    separator, graph, calibration = small_network(config)
    return ExportedNetwork(build_quantized(graph, allocation, calibration, QUANTIZATION), separator.front_end).eval()


def description(graph: Graph, allocation: BitAllocation) -> ExportDescription:
    """Metadata for a graph between the features and the mask of the small separators."""
    return ExportDescription(
        sample_rate=8000,
        array="linear4",
        spectral=RELU.spectral,
        network=NetworkStructure.of(graph),
        allocation=allocation.to_json(),
        base_digest="0" * 64,
        hwsearch_version="0",
    )


@cache
def onnx_file(config: SeparatorConfig, allocation: BitAllocation) -> bytes:
    """The ONNX file of a small network."""
    with TemporaryDirectory() as folder:
        network, path = exported_network(config, allocation), Path(folder) / "model.onnx"
        export_onnx(network, path, description(network.network.graph, allocation))
        return path.read_bytes()


def exported(folder: Path, config: SeparatorConfig, allocation: BitAllocation) -> tuple[Path, ExportedNetwork]:
    """The ONNX file of a small network in a folder, and the network."""
    path = folder / "model.onnx"
    path.write_bytes(onnx_file(config, allocation))
    return path, exported_network(config, allocation)


def raw_features(network: ExportedNetwork, frames: int, seed: int = 0) -> torch.Tensor:
    """Features with the statistics that the network was calibrated on."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(1, network.features, frames, generator=random) / network.scale + network.mean
