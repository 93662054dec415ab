"""Tensors on disk: safetensors with a description in the metadata, and in that a seal: a digest of description and tensors."""

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hwsearch.files import atomic_write, canonical_json, file_digest
from hwsearch.seals import SEAL


class TensorFileError(ValueError):
    """A file of tensors is not as it was written; the message says in what."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], key: str, description: Mapping[str, Any]) -> None:
    """Write tensors and what they are, atomically.

    Args:
        path: of the file.
        tensors: by name; none shares its memory with another.
        key: under which the description stands in the metadata.
        description: JSON.
    """
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # Under one key: safetensors writes several in any order, and equal content is to give equal files.
    metadata = {key: json.dumps({**description, SEAL: _digest(stored, description)}, sort_keys=True)}
    atomic_write(path, lambda temporary: save_file(stored, temporary, metadata=metadata))


def read_tensors(
    path: Path, key: str, *, known: Collection[str] = (), check: bool = True
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what `write_tensors` wrote: the description and the tensors, which are mapped into memory.

    Args:
        path: of a file that is there.
        key: of the description.
        known: SHA-256 of files without a seal that are taken nevertheless.
        check: whether the seal is checked, for which all tensors are read.

    Raises:
        TensorFileError: no safetensors, no description under the key, or not as it was written.
    """
    try:
        with safe_open(path, framework="pt") as stored:
            description = json.loads((stored.metadata() or {})[key])
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise TensorFileError(" ".join(str(error).split())[:120]) from None
    if not isinstance(description, dict):
        raise TensorFileError(f"'{key}' describes nothing")
    seal = description.pop(SEAL, None)
    if check and seal is None and file_digest(path) not in known:
        raise TensorFileError("it carries no digest of its content")
    if check and seal is not None and not _is_sealed(tensors, description, seal):
        raise TensorFileError("it changed since it was written: its SHA-256 differs")
    return description, tensors


def _is_sealed(tensors: Mapping[str, Tensor], description: Mapping[str, Any], seal: object) -> bool:
    try:
        return seal == _digest(tensors, description)
    except ValueError:  # the description holds numbers that are never written
        return False


def _digest(tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> str:
    found = hashlib.sha256(canonical_json(description).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(canonical_json([name, str(tensor.dtype), list(tensor.shape)]).encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
