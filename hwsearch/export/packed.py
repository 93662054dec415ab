"""The packed weight file: what ships to a device, byte for byte what `hw_models.packed` charges for.

Little-endian throughout:

    header              16 bytes  magic "HWQW", then u16: format, weight sites, activation sites, 0;
                                  CRC-32 of all that follows (u32)
    weight records      12 bytes  u8: bits, kernel; u16: dilation, in / groups, groups, out, scales
    activation records  12 bytes  bits (u8), zero point (u24), scale (f32), slope (f32)
    normalisation                 float32 mean of every feature, then float32 scale of every feature
    per weight site               weights as a stream of two's complement integers, lowest bit first, rounded
                                  up to whole bytes (float32 at 32 bits); float32 scales; float32 biases

    per other operation           what it has been trained to, float32; of a PReLU's single slope see below

Records and payloads come in the order of execution, so the file holds neither names nor how operations are joined: that is the
graph. The slope is that of the function before an activation site for negative values: 0 for ReLU, 1 for none and where it is no
number. Scales are those of the output channels, or one for all; the groups of a transposed convolution share theirs.
"""

import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hwsearch.errors import UserError
from hwsearch.export.network import ExportedNetwork
from hwsearch.files.reading import MODEL_BYTES, read_content
from hwsearch.files.writing import atomic_write_bytes
from hwsearch.network.graph import Graph
from hwsearch.network.operations import (
    Convolution,
    Elementwise,
    Function,
    LeakyReLU,
    Operation,
    PReLU,
    TransposedConvolution,
)
from hwsearch.network.sites import LAYERS, WEIGHT, Sites, find_sites
from hwsearch.separator.allocation import ACTIVATION_WIDTHS, WEIGHT_WIDTHS, BitAllocation
from hwsearch.separator.quantizers import ActivationGrid, QuantizedWeight, is_float, weight_limit
from hwsearch.separator.weight_scales import scaled_channels, shaped_scale

_MAGIC = b"HWQW"
_FORMAT = 1
_HEADER = struct.Struct("<4sHHHHI")
_WEIGHT = struct.Struct("<BBHHHHH")
_ACTIVATION = struct.Struct("<BBHff")
_FLOAT = np.dtype("<f4")


@dataclass(frozen=True, eq=False)
class PackedNetwork:
    """What a packed file holds.

    Attributes:
        allocation: width of every site.
        weights: by weight site, on their grid; a plain float32 tensor where they stay in floating point.
        biases: by weight site, [out] float32.
        grids: by activation site; none where it stays in floating point.
        slopes: by activation site, the slope for negative values before it.
        trained: what operations without weights have been trained to, by the graph's names.
        feature_mean: [features].
        feature_scale: [features]; the network's input is (features - mean) * scale.
    """

    allocation: BitAllocation
    weights: Mapping[str, QuantizedWeight | Tensor]
    biases: Mapping[str, Tensor]
    grids: Mapping[str, ActivationGrid | None]
    slopes: Mapping[str, float]
    trained: Mapping[str, Tensor]
    feature_mean: Tensor
    feature_scale: Tensor


def write_packed(path: Path, exported: ExportedNetwork) -> None:
    """Write the network's weights and grids as they are now, atomically."""
    atomic_write_bytes(path, pack(exported))


def pack(exported: ExportedNetwork) -> bytes:
    """The bytes of the packed file.

    Raises:
        UserError: a layer too large for its record.
    """
    network = exported.network
    master, sites = network.master_copy(), network.graph_sites
    records: list[bytes] = []
    payloads: list[bytes] = []
    for site, weight in network.quantized_weights().items():
        layer = master.by_name[site.removesuffix(WEIGHT)]
        values, bits = master.parameter(layer, "weight"), network.allocation.by_site[site]
        scale = None if weight is None else weight.scale.flatten()
        kernel = _kernel(layer, values)
        try:
            records.append(_WEIGHT.pack(bits, *kernel, 0 if scale is None else len(scale)))
        except struct.error:
            raise UserError(f"site '{site}': too large for a packed file (kernel {kernel})") from None
        if weight is None or scale is None:
            payloads.append(_floats(values))
        else:
            payloads += [pack_integers(weight.integers.numpy().ravel(), bits), _floats(scale)]
        payloads.append(_floats(master.parameter(layer, "bias")))
    payloads += [_floats(master.parameters[name]) for name in _trained(master, sites)]
    for site, grid in network.activation_grids().items():
        zero_point, step = (0, 0.0) if grid is None else (grid.zero_point, grid.scale)
        fields = network.allocation.by_site[site], zero_point & 0xFF, zero_point >> 8, step
        records.append(_ACTIVATION.pack(*fields, _slope(master, sites, site)))
    normalisation = [_floats(exported.mean), _floats(exported.scale)]
    body = b"".join(records + normalisation + payloads)
    counts = len(sites.weights), len(sites.activations)
    return _HEADER.pack(_MAGIC, _FORMAT, *counts, 0, zlib.crc32(body)) + body


def read_packed(path: Path, graph: Graph, features: int) -> PackedNetwork:
    """Read a packed file of a network of this graph, of which only the shapes of its parameters matter.

    Raises:
        UserError: no such file, not a packed file, damaged, cut short, too long, or of another network.
    """
    content = read_content(path, "a packed weight file", MODEL_BYTES)
    try:
        return unpack(content, graph, features)
    except _DamagedError as error:
        raise UserError(f"{path}: {error}; wanted a packed weight file of this network") from None


def unpack(content: bytes, graph: Graph, features: int) -> PackedNetwork:
    """The network in the bytes of a packed file."""
    sites = find_sites(graph)
    reader = _Reader(content)
    magic, version, weight_count, activation_count, reserved, checksum = reader.unpack(_HEADER)
    if magic != _MAGIC or version != _FORMAT or reserved != 0:
        raise _DamagedError(f"found magic {magic!r} and format {version}, not {_MAGIC!r} and {_FORMAT}")
    if zlib.crc32(content[_HEADER.size :]) != checksum:
        raise _DamagedError("its checksum does not fit its content (damaged or cut short)")
    wanted = len(sites.weights), len(sites.activations)
    if (weight_count, activation_count) != wanted:
        found = f"{weight_count} weight and {activation_count} activation sites"
        raise _DamagedError(f"found {found}, not {wanted[0]} and {wanted[1]}")
    weight_records = {site: reader.unpack(_WEIGHT) for site in sites.weights}
    activation_records = {site: reader.unpack(_ACTIVATION) for site in sites.activations}
    grids = {site: _grid(site, record) for site, record in activation_records.items()}
    feature_mean, feature_scale = reader.floats((features,)), reader.floats((features,))
    tensors: dict[str, QuantizedWeight | Tensor] = {}
    biases: dict[str, Tensor] = {}
    for site, record in weight_records.items():
        layer = graph.by_name[site.removesuffix(WEIGHT)]
        tensors[site] = _weight(layer, graph.parameter(layer, "weight"), record, reader)
        biases[site] = reader.floats((record[5],))
    trained = {name: reader.floats(tuple(graph.parameters[name].shape)) for name in _trained(graph, sites)}
    reader.finish()
    widths = {site: int(record[0]) for site, record in (weight_records | activation_records).items()}
    slopes = {site: float(record[-1]) for site, record in activation_records.items()}
    return PackedNetwork(BitAllocation.of(widths), tensors, biases, grids, slopes, trained, feature_mean, feature_scale)


def _kernel(layer: Operation, weight: Tensor) -> tuple[int, int, int, int, int]:
    """What a weight record says of a layer's shape: kernel, dilation, in / groups, groups, out."""
    match layer:
        case Convolution(dilation=dilation, groups=groups):
            return weight.shape[2], dilation, weight.shape[1], groups, weight.shape[0]
        case TransposedConvolution(dilation=dilation, groups=groups):
            return weight.shape[2], dilation, weight.shape[0] // groups, groups, weight.shape[1] * groups
        case _:
            return 1, 1, weight.shape[1], 1, weight.shape[0]


def _slope(graph: Graph, sites: Sites, site: str) -> float:
    """The slope for negative values before a site; 1 where it is not one number."""
    operation = graph.by_name.get(sites.tensors[site])
    match operation:
        case Elementwise(function=Function.RELU):
            return 0.0
        case LeakyReLU(slope=slope):
            return slope
        case PReLU() if len(trained := graph.parameter(operation, "slope")) == 1:
            return float(trained)
        case _:
            return 1.0


def _trained(graph: Graph, sites: Sites) -> list[str]:
    """The parameters that are in no record and belong to no layer."""
    recorded = set(sites.tensors.values())
    found = []
    for operation in graph.operations:
        if not isinstance(operation, LAYERS):
            names = [f"{operation.name}.{part}" for part in operation.parameters]
            single = isinstance(operation, PReLU) and operation.name in recorded and len(graph.parameters[names[0]]) == 1
            found += [] if single else names
    return found


def pack_integers(values: NDArray[np.int32], bits: int) -> bytes:
    """Signed integers of `bits` bits as one stream, lowest bit first, rounded up to whole bytes."""
    shifts = np.arange(bits, dtype=np.int32)
    return np.packbits(((values[:, None] >> shifts) & 1).astype(np.uint8).ravel(), bitorder="little").tobytes()


def unpack_integers(stream: bytes, bits: int, count: int) -> NDArray[np.int32]:
    """Inverse of `pack_integers` for `count` integers."""
    unpacked = np.unpackbits(np.frombuffer(stream, np.uint8), count=count * bits, bitorder="little")
    places = (1 << np.arange(bits, dtype=np.int32)).astype(np.int32)
    places[-1] = -places[-1]  # two's complement: the highest bit counts negative
    integers: NDArray[np.int32] = (unpacked.reshape(count, bits).astype(np.int32) @ places).astype(np.int32)
    return integers


class _DamagedError(Exception):
    """The content is not that of a packed file of the network wanted."""


class _Reader:
    """Takes bytes from the front; running out of them is damage."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._position = 0

    def take(self, count: int) -> bytes:
        part = self._content[self._position : self._position + count]
        if len(part) < count:
            raise _DamagedError(f"it ends after {len(self._content)} bytes, cut short")
        self._position += count
        return part

    def unpack(self, layout: struct.Struct) -> tuple[Any, ...]:
        return layout.unpack(self.take(layout.size))

    def floats(self, shape: tuple[int, ...]) -> Tensor:
        values = np.frombuffer(self.take(_FLOAT.itemsize * math.prod(shape)), _FLOAT)
        if not np.isfinite(values).all():
            raise _DamagedError("it holds a number that is not finite")
        return torch.from_numpy(values.astype(np.float32)).reshape(shape)

    def finish(self) -> None:
        if self._position != len(self._content):
            raise _DamagedError(f"{len(self._content) - self._position} bytes follow its end")


def _weight(layer: Operation, like: Tensor, record: tuple[Any, ...], reader: _Reader) -> QuantizedWeight | Tensor:
    """The weights of a layer that are like those of the graph."""
    bits, *kernel, scales = record
    site, shape = layer.name + WEIGHT, tuple(like.shape)
    counts = (0,) if is_float(bits) else (1, scaled_channels(layer, like))
    if bits not in WEIGHT_WIDTHS or tuple(kernel) != _kernel(layer, like) or scales not in counts:
        raise _DamagedError(f"site '{site}' has {bits} bits, kernel {kernel} and {scales} scales")
    if is_float(bits):
        return reader.floats(shape)
    count = math.prod(shape)
    integers = unpack_integers(reader.take((count * bits + 7) // 8), bits, count)
    scale = shaped_scale(layer, reader.floats((scales,)))
    if np.abs(integers).max() > weight_limit(bits) or float(scale.min()) <= 0:
        raise _DamagedError(f"site '{site}' has a weight or scale out of range")
    return QuantizedWeight(bits, torch.from_numpy(integers).reshape(shape), scale)


def _grid(site: str, record: tuple[Any, ...]) -> ActivationGrid | None:
    bits, lowest, higher, scale, slope = record
    zero_point = lowest + (higher << 8)
    if bits not in ACTIVATION_WIDTHS or not math.isfinite(slope):
        raise _DamagedError(f"site '{site}' has {bits} bits and slope {slope}")
    if is_float(bits):
        return None
    if zero_point >= 2**bits or not 0 < scale < math.inf:
        raise _DamagedError(f"site '{site}' has zero point {zero_point} and scale {scale}")
    return ActivationGrid(bits, float(scale), zero_point)


def _floats(values: Tensor) -> bytes:
    return values.detach().numpy().astype(_FLOAT).tobytes()
