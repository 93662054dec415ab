"""The packed weight file: what ships to a device, byte for byte what `hw_models.packed` charges for.

Little-endian throughout:

    header              16 bytes  magic "HWQW"; u16: format, weight sites, activation sites, 0;
                                  u32: CRC-32 of all that follows
    weight records      12 bytes  u8: bits, kernel; u16: dilation, in / groups, groups, out, scales
    activation records  12 bytes  bits (u8), zero point (u24), scale (f32), slope (f32)
    normalisation                 float32 mean of every feature, then float32 scale of every feature
    per weight site               weights (float32 at 32 bits); bfloat16 scales; float32 biases
    per other operation           its trained parameters, float32, without the slopes in activation records

Records and payloads come in the order of execution. The file holds no names and no connections; the graph does. A slope belongs
to the function before an activation site: 0 for a ReLU, the slope of a LeakyReLU or of a PReLU with one slope, 1 for all others.
A layer has one scale, or one for each output channel, which the groups of a transposed convolution share.

Weights of 2 bits are -1, 0 or 1. Five of them, w0 to w4, make a byte: (w0 + 1) + 3 (w1 + 1) + 9 (w2 + 1) + 27 (w3 + 1) +
81 (w4 + 1). So a table of 243 rows decodes a byte. The last byte is filled up with zero weights. Weights of other widths are a
stream of two's complement integers, lowest bit first, rounded up to whole bytes. A bfloat16 is the upper half of a float32 whose
lower half is zero; weights are rounded with such scales (`separator.quantizers.stored_scale`), so nothing is lost here.
"""

import struct
import zlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hw_models.packed import TERNARY_BITS, TERNARY_PER_BYTE
from hwsearch.errors import UserError
from hwsearch.export.network import ExportedNetwork
from hwsearch.network.graph import Graph
from hwsearch.network.operations import Convolution, Elementwise, Function, LeakyReLU, Operation, PReLU, TransposedConvolution
from hwsearch.network.sites import LAYERS, WEIGHT, Sites

_MAGIC = b"HWQW"
_FORMAT = 2
_HEADER = struct.Struct("<4sHHHHI")
_WEIGHT = struct.Struct("<BBHHHHH")
_ACTIVATION = struct.Struct("<BBHff")
_FLOAT = np.dtype("<f4")
_HALF = np.dtype("<u2")


def pack(exported: ExportedNetwork) -> bytes:
    """The bytes of the packed file of a network with the weights and grids that it has now.

    Raises:
        UserError: a layer is too large for its record.
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
            payloads += [pack_integers(weight.integers.numpy().ravel(), bits), _scales(scale)]
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


def _kernel(layer: Operation, weight: Tensor) -> tuple[int, int, int, int, int]:
    """The shape of a layer as its record holds it: kernel, dilation, in / groups, groups, out."""
    match layer:
        case Convolution(dilation=dilation, groups=groups):
            return weight.shape[2], dilation, weight.shape[1], groups, weight.shape[0]
        case TransposedConvolution(dilation=dilation, groups=groups):
            return weight.shape[2], dilation, weight.shape[0] // groups, groups, weight.shape[1] * groups
        case _:
            return 1, 1, weight.shape[1], 1, weight.shape[0]


def _slope(graph: Graph, sites: Sites, site: str) -> float:
    """The slope in the record of an activation site."""
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
    """Names of the parameters that stand behind the layers: those of other operations, without slopes in records."""
    recorded = set(sites.tensors.values())
    found = []
    for operation in graph.operations:
        names = [f"{operation.name}.{part}" for part in operation.parameters]
        single = isinstance(operation, PReLU) and operation.name in recorded and len(graph.parameters[names[0]]) == 1
        if not single and not isinstance(operation, LAYERS):
            found += names
    return found


def pack_integers(values: NDArray[np.int32], bits: int) -> bytes:
    """The bytes of weights of a width below 32 bits."""
    if bits == TERNARY_BITS:
        return _pack_ternary(values)
    shifts = np.arange(bits, dtype=np.int32)
    return np.packbits(((values[:, None] >> shifts) & 1).astype(np.uint8).ravel(), bitorder="little").tobytes()


def _pack_ternary(values: NDArray[np.int32]) -> bytes:
    if np.abs(values).max(initial=0) > 1:
        raise ValueError("weights of 2 bits beyond -1, 0 and 1")
    digits = np.pad(values + 1, (0, -len(values) % TERNARY_PER_BYTE), constant_values=1).reshape(-1, TERNARY_PER_BYTE)
    return (digits @ 3 ** np.arange(TERNARY_PER_BYTE)).astype(np.uint8).tobytes()


def _scales(values: Tensor) -> bytes:
    """The bytes of scales of weights, which are bfloat16 values.

    Raises:
        ValueError: others.
    """
    stored = values.detach().to(torch.bfloat16)
    if not torch.equal(stored.float(), values.detach()):
        raise ValueError("scales of weights that are not bfloat16 values")
    return stored.view(torch.int16).numpy().astype(_HALF).tobytes()


def _floats(values: Tensor) -> bytes:
    return values.detach().numpy().astype(_FLOAT).tobytes()
