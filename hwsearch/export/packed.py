"""The packed weight file: what ships to a device, byte for byte what `hw_models.packed` charges for.

Little-endian throughout:

    header              16 bytes  magic "HWQW", then u16: format, weight sites, activation sites, 0;
                                  CRC-32 of all that follows (u32)
    weight records      12 bytes  u8: bits, kernel; u16: dilation, in / groups, groups, out, scales
    activation records  12 bytes  bits (u8), zero point (u8), 0 (u16), scale (f32), slope (f32)
    normalisation                 float32 mean of every feature, then float32 scale of every feature
    per weight site               weights as a stream of two's complement integers, lowest bit first, rounded
                                  up to whole bytes (float32 at 32 bits); float32 scales; float32 biases

Records and payloads come in the order of execution, so the file holds no names. The slope is that of the
non-linearity before an activation site for negative values: 0 for ReLU, 1 for none.
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
from hwsearch.experiment import SeparatorConfig
from hwsearch.export.network import ExportedNetwork
from hwsearch.files import MODEL_BYTES, atomic_write_bytes, read_content
from hwsearch.separator.allocation import (
    ACTIVATION_WIDTHS,
    WEIGHT_WIDTHS,
    BitAllocation,
    activation_sites,
    weight_sites,
)
from hwsearch.separator.folding import has_activation
from hwsearch.separator.quantizers import ActivationGrid, QuantizedWeight, is_float, weight_limit

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
        feature_mean: [features].
        feature_scale: [features]; the network's input is (features - mean) * scale.
    """

    allocation: BitAllocation
    weights: Mapping[str, QuantizedWeight | Tensor]
    biases: Mapping[str, Tensor]
    grids: Mapping[str, ActivationGrid | None]
    slopes: Mapping[str, float]
    feature_mean: Tensor
    feature_scale: Tensor


def write_packed(path: Path, exported: ExportedNetwork) -> None:
    """Write the network's weights and grids as they are now, atomically."""
    atomic_write_bytes(path, pack(exported))


def pack(exported: ExportedNetwork) -> bytes:
    """The bytes of the packed file."""
    network = exported.network
    master = network.master_copy()
    quantized = network.quantized_weights()
    records: list[bytes] = []
    payloads: list[bytes] = []
    for site in weight_sites(network.config):
        layer = master.layers[site.removesuffix(".weight")]
        weight = quantized[site]
        out, per_group, kernel = layer.weight.shape
        bits = network.allocation.by_site[site]
        scales = 0 if weight is None else weight.scale.numel()
        records.append(_WEIGHT.pack(bits, kernel, layer.dilation, per_group, layer.groups, out, scales))
        if weight is None:
            payloads.append(_floats(layer.weight))
        else:
            payloads += [pack_integers(weight.integers.numpy().ravel(), bits), _floats(weight.scale)]
        payloads.append(_floats(layer.bias))
    for site, grid in network.activation_grids().items():
        slope = master.slopes.get(site, 0.0 if has_activation(site) else 1.0)
        fields = (network.allocation.by_site[site], 0, 0, 0.0) if grid is None else (grid.bits, grid.zero_point, 0, grid.scale)
        records.append(_ACTIVATION.pack(*fields, slope))
    normalisation = [_floats(exported.mean), _floats(exported.scale)]
    body = b"".join(records + normalisation + payloads)
    counts = len(quantized), len(records) - len(quantized)
    return _HEADER.pack(_MAGIC, _FORMAT, *counts, 0, zlib.crc32(body)) + body


def read_packed(path: Path, config: SeparatorConfig) -> PackedNetwork:
    """Read a packed file of a network of this shape.

    Raises:
        UserError: no such file, not a packed file, damaged, cut short, too long, or of another network.
    """
    content = read_content(path, "a packed weight file", MODEL_BYTES)
    try:
        return unpack(content, config)
    except _DamagedError as error:
        raise UserError(f"{path}: {error}; wanted a packed weight file of this network") from None


def unpack(content: bytes, config: SeparatorConfig) -> PackedNetwork:
    """The network in the bytes of a packed file."""
    weights, activations = weight_sites(config), activation_sites(config)
    reader = _Reader(content)
    magic, version, weight_count, activation_count, reserved, checksum = reader.unpack(_HEADER)
    if magic != _MAGIC or version != _FORMAT or reserved != 0:
        raise _DamagedError(f"found magic {magic!r} and format {version}, not {_MAGIC!r} and {_FORMAT}")
    if zlib.crc32(content[_HEADER.size :]) != checksum:
        raise _DamagedError("its checksum does not fit its content (damaged or cut short)")
    if (weight_count, activation_count) != (len(weights), len(activations)):
        raise _DamagedError(
            f"found {weight_count} weight and {activation_count} activation sites, not {len(weights)} and {len(activations)}"
        )
    weight_records = {site: reader.unpack(_WEIGHT) for site in weights}
    activation_records = {site: reader.unpack(_ACTIVATION) for site in activations}
    grids = {site: _grid(site, record) for site, record in activation_records.items()}
    features = (weight_records[weights[0]][3],)
    feature_mean, feature_scale = reader.floats(features), reader.floats(features)
    tensors: dict[str, QuantizedWeight | Tensor] = {}
    biases: dict[str, Tensor] = {}
    for site, record in weight_records.items():
        tensors[site] = _weight(site, record, reader)
        biases[site] = reader.floats((record[5],))
    reader.finish()
    widths = {site: int(record[0]) for site, record in (weight_records | activation_records).items()}
    return PackedNetwork(
        BitAllocation.of(widths),
        tensors,
        biases,
        grids,
        {site: float(record[4]) for site, record in activation_records.items()},
        feature_mean,
        feature_scale,
    )


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


def _weight(site: str, record: tuple[Any, ...], reader: _Reader) -> QuantizedWeight | Tensor:
    bits, kernel, _, per_group, _, out, scales = record
    shape = out, per_group, kernel
    if bits not in WEIGHT_WIDTHS or 0 in shape or scales not in ((0,) if is_float(bits) else (1, out)):
        raise _DamagedError(f"site '{site}' has {bits} bits, shape {shape} and {scales} scales")
    if is_float(bits):
        return reader.floats(shape)
    count = math.prod(shape)
    integers = unpack_integers(reader.take((count * bits + 7) // 8), bits, count)
    scale = reader.floats((scales, 1, 1))
    if np.abs(integers).max() > weight_limit(bits) or float(scale.min()) <= 0:
        raise _DamagedError(f"site '{site}' has a weight or scale out of range")
    return QuantizedWeight(bits, torch.from_numpy(integers).reshape(shape), scale)


def _grid(site: str, record: tuple[Any, ...]) -> ActivationGrid | None:
    bits, zero_point, _, scale, slope = record
    if bits not in ACTIVATION_WIDTHS or not math.isfinite(slope):
        raise _DamagedError(f"site '{site}' has {bits} bits and slope {slope}")
    if is_float(bits):
        return None
    if zero_point >= 2**bits or not 0 < scale < math.inf:
        raise _DamagedError(f"site '{site}' has zero point {zero_point} and scale {scale}")
    return ActivationGrid(bits, float(scale), zero_point)


def _floats(values: Tensor) -> bytes:
    return values.detach().numpy().astype(_FLOAT).tobytes()
