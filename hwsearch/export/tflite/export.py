"""Export to TensorFlow Lite: integer kernels for Ethos-U, Cortex-M (TensorFlow Lite Micro with CMSIS-NN) and Android.

The file reads features that are normalised and quantized already, and makes the quantized mask. So it holds no floating-point
operators, which a microcontroller would need code for, and an NPU would leave to the processor. The number of frames is fixed.

The file's metadata hold what the host needs:

- `hwsearch`: the description of the export, as ONNX files hold theirs (`hwsearch.export.description`);
- `hwsearch_features`: mean and scale of the features, float32, little-endian, [2, features];
- `hwsearch_sha256`: "sha256:" and the SHA-256 of the file, computed with zeros in place of its 64 digits.
"""

import hashlib
import struct
from pathlib import Path

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from hwsearch.errors import UserError
from hwsearch.export.description import ExportDescription, decoded, encoded
from hwsearch.export.integer_only import check_integer_only
from hwsearch.export.network import ExportedNetwork
from hwsearch.export.tflite.graph import TfliteGraph, write_graph
from hwsearch.files.writing import atomic_write_bytes

_DESCRIPTION, _FEATURES, _DIGEST = "hwsearch", "hwsearch_features", "hwsearch_sha256"
_MOST_ENTRIES = 16
_SEAL = b"sha256:"
_UNSEALED = _SEAL + b"0" * 64


def export_tflite(
    network: ExportedNetwork, path: Path, description: ExportDescription, frames: int, *, int4: bool
) -> TfliteGraph:
    """Write the network as one file for quantized features [1, 1, frames, features], atomically.

    Args:
        network: the network.
        path: where to write.
        description: of the network.
        frames: number of frames.
        int4: whether dense layers of one tap have their weights of at most 4 bits in int4; else all weights are int8.

    Raises:
        UserError: the format does not take a width or an operation of the network.
    """
    check_integer_only(network.network.allocation, "tflite-int4" if int4 else "tflite")
    graph = write_graph(network, frames, int4=int4)
    features = np.stack([network.mean[:, 0].numpy(), network.scale[:, 0].numpy()]).astype("<f4")
    content = graph.content(
        {
            _DESCRIPTION: encoded(description.model_dump_json()).encode(),
            _FEATURES: features.tobytes(),
            _DIGEST: _UNSEALED,
        }
    )
    atomic_write_bytes(path, content.replace(_UNSEALED, _SEAL + hashlib.sha256(content).hexdigest().encode()))
    return graph


def read_tflite(content: bytes, source: str) -> tuple[ExportDescription, NDArray[np.float32]]:
    """Read what the metadata of a file say.

    Returns:
        The description, and mean and scale of the features, [2, features].

    Raises:
        UserError: no file of `export_tflite`, or one that was changed; names `source`.
    """
    try:
        entries = _metadata(content)
        seal = entries[_DIGEST]
        unsealed = content.replace(seal, _UNSEALED) if len(seal) == len(_UNSEALED) else b""
        intact = seal == _SEAL + hashlib.sha256(unsealed).hexdigest().encode()
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, struct.error):
        raise UserError(f"{source}: no described TensorFlow Lite file; wanted one made by 'hwsearch export'") from None
    if not intact:
        raise UserError(f"{source}: damaged or changed since it was exported; export it again")
    try:
        description = ExportDescription.model_validate_json(decoded(entries[_DESCRIPTION].decode()))
        features = np.frombuffer(entries[_FEATURES], "<f4").reshape(2, description.form.inputs)
    except (KeyError, ValueError):  # pydantic's errors, too
        raise UserError(
            f"{source}: its description, or mean and scale of its features, are missing or of another version; export it again"
        ) from None
    description.bit_allocation(source)
    return description, features


def _metadata(content: bytes) -> dict[str, bytes]:
    """The metadata of a file, by name."""
    model = schema.Model.GetRootAs(content, 0)
    if model.MetadataLength() > _MOST_ENTRIES:
        raise ValueError("too many entries")
    entries = [model.Metadata(place) for place in range(model.MetadataLength())]
    return {entry.Name().decode(): model.Buffers(entry.Buffer()).DataAsNumpy().tobytes() for entry in entries}
