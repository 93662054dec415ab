"""A reader of packed files that knows nothing but the documented layout and the graph, as a device would have one."""

import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hwsearch.network.graph import Graph
from hwsearch.network.operations import Operation, PReLU, TransposedConvolution
from hwsearch.network.sites import LAYERS, find_sites
from hwsearch.separator.allocation import BitAllocation
from hwsearch.separator.quantizers import ActivationGrid, QuantizedWeight

TERNARY = [digits[::-1] for digits in product((-1, 0, 1), repeat=5)]
"""The five weights of each byte: the first of them changes from byte to byte."""


@dataclass(frozen=True, eq=False)
class Unpacked:
    """What a packed file holds, by site; trained parameters of other operations by name."""

    allocation: BitAllocation
    weights: Mapping[str, QuantizedWeight | Tensor]
    biases: Mapping[str, Tensor]
    grids: Mapping[str, ActivationGrid | None]
    slopes: Mapping[str, float]
    trained: Mapping[str, Tensor]
    feature_mean: Tensor
    feature_scale: Tensor


class Reader:
    """Takes the parts of a file from its front."""

    def __init__(self, content: bytes) -> None:
        self.left = content

    def take(self, size: int) -> bytes:
        part, self.left = self.left[:size], self.left[size:]
        assert len(part) == size
        return part

    def numbers(self, layout: str) -> tuple[int, ...]:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))

    def floats(self, *shape: int) -> Tensor:
        return torch.from_numpy(np.frombuffer(self.take(4 * int(np.prod(shape))), "<f4").copy()).reshape(shape)

    def scales(self, *shape: int) -> Tensor:
        """Upper halves of float32 values."""
        halves = np.frombuffer(self.take(2 * int(np.prod(shape))), "<u2")
        return torch.from_numpy((halves.astype(np.uint32) << 16).view(np.float32)).reshape(shape)


def unpack(content: bytes, graph: Graph, features: int) -> Unpacked:
    """The network in the bytes of a packed file."""
    sites, reader = find_sites(graph), Reader(content)
    assert reader.numbers("<4sHHHH") == (b"HWQW", 2, len(sites.weights), len(sites.activations), 0)
    assert reader.numbers("<I") == (zlib.crc32(content[16:]),)
    layers = {site: reader.numbers("<BBHHHHH") for site in sites.weights}
    activations = {site: reader.numbers("<BBHff") for site in sites.activations}
    mean, scale = reader.floats(features), reader.floats(features)
    weights, biases = {}, {}
    for site, record in layers.items():
        layer = graph.by_name[site.removesuffix(".weight")]
        weights[site] = weight_of(layer, graph.parameter(layer, "weight"), record, reader)
        biases[site] = reader.floats(record[5])
    recorded = {tensor for site, tensor in sites.tensors.items() if isinstance(graph.by_name.get(tensor), PReLU)}
    trained = {}
    for operation in graph.operations:
        for part in () if isinstance(operation, LAYERS) else operation.parameters:
            shape = graph.parameter(operation, part).shape
            if operation.name not in recorded or shape.numel() > 1:
                trained[f"{operation.name}.{part}"] = reader.floats(*shape)
    assert not reader.left
    widths = {site: record[0] for site, record in (layers | activations).items()}
    grids = {
        site: None if bits == 32 else ActivationGrid(bits, step, lowest + 256 * higher)
        for site, (bits, lowest, higher, step, _) in activations.items()
    }
    slopes = {site: record[-1] for site, record in activations.items()}
    return Unpacked(BitAllocation.of(widths), weights, biases, grids, slopes, trained, mean, scale)


def weight_of(layer: Operation, like: Tensor, record: tuple[int, ...], reader: Reader) -> QuantizedWeight | Tensor:
    bits, kernel, dilation, inputs, groups, outputs, scales = record
    assert (dilation, groups) == (getattr(layer, "dilation", 1), getattr(layer, "groups", 1))
    assert kernel == (like.shape[2] if like.ndim == 3 else 1)
    transposed = isinstance(layer, TransposedConvolution)
    assert like.shape[:2] == ((inputs * groups, outputs // groups) if transposed else (outputs, inputs))
    if bits == 32:
        assert scales == 0
        return reader.floats(*like.shape)
    size = math.ceil(like.numel() / 5) if bits == 2 else math.ceil(like.numel() * bits / 8)
    integers = unpack_integers(reader.take(size), bits, like.numel())
    axis = 1 if transposed else 0  # of the output channels
    shape = [scales if each == axis else 1 for each in range(like.ndim)]
    return QuantizedWeight(bits, torch.from_numpy(integers).reshape(like.shape), reader.scales(*shape))


def unpack_integers(stream: bytes, bits: int, count: int) -> NDArray[np.int32]:
    """Signed integers: of 2 bits, five in a byte; of other widths, so many bits each, lowest bit first."""
    if bits == 2:
        return np.array([weight for byte in stream for weight in TERNARY[byte]][:count], np.int32)
    whole = int.from_bytes(stream, "little")
    unsigned = [whole >> place * bits & (1 << bits) - 1 for place in range(count)]
    return np.array([value - (value >> bits - 1 << bits) for value in unsigned], np.int32)
