"""Tensors on disk: safetensors files whose metadata hold a description, and a seal over description and tensors."""

import hashlib
import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hw_models.reading import no_file
from hwsearch.errors import UserError
from hwsearch.files.reading import canonical_json, file_digest
from hwsearch.files.seals import SEAL
from hwsearch.files.writing import atomic_write


def write_tensors(path: Path, tensors: Mapping[str, Tensor], key: str, description: Mapping[str, Any]) -> None:
    """Write tensors and their description atomically.

    Args:
        path: the file.
        tensors: the tensors by name. They share no memory.
        key: the key of the description in the metadata.
        description: a JSON object.
    """
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # One key only: safetensors writes several keys in any order, and equal content must give equal files.
    metadata = {key: json.dumps({**description, SEAL: _digest(stored, description)}, sort_keys=True)}
    atomic_write(path, lambda temporary: save_file(stored, temporary, metadata=metadata))


def load_tensors(path: Path, what: str, mend: str = "") -> tuple[dict[str, str], dict[str, Tensor]]:
    """Read any safetensors file; return its metadata and its tensors, which are mapped into memory.

    Args:
        path: the file.
        what: what the file should hold, such as 'a network graph'.
        mend: what to do if it holds something else.

    Raises:
        UserError: there is no such file, or it is no safetensors file.
    """
    if (reason := no_file(path)) is not None:
        raise UserError(f"{path}: {reason}; wanted {what}")
    try:
        with safe_open(path, framework="pt") as stored:
            return stored.metadata() or {}, {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise refused(path, what, error, mend) from None


def read_tensors(
    path: Path, key: str, what: str, mend: str = "", *, known: Collection[str] = (), check: bool = True
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what `write_tensors` wrote; return the description and the tensors, which are mapped into memory.

    Args:
        path: the file.
        key: the key of the description.
        what: what the file should hold.
        mend: what to do if it holds something else.
        known: SHA-256 of files that are accepted without a seal.
        check: whether to check the seal, which reads all tensors.

    Raises:
        UserError: there is no such file, it is no safetensors file, it has no description under the key, or it has changed since
            it was written.
    """
    metadata, tensors = load_tensors(path, what, mend)
    try:
        description = json.loads(metadata[key])
    except (KeyError, ValueError, RecursionError) as error:
        raise refused(path, what, error, mend) from None
    if not isinstance(description, dict):
        raise refused(path, what, f"'{key}' describes nothing", mend)
    seal = description.pop(SEAL, None)
    if not check or (seal is None and file_digest(path) in known):
        return description, tensors
    if seal is None:
        raise refused(path, what, "it carries no digest of its content", mend)
    with suppress(ValueError):  # the description holds numbers that are never written
        if seal == _digest(tensors, description):
            return description, tensors
    raise refused(path, what, "it changed since it was written: its SHA-256 differs", mend)


def refused(path: Path, what: str, reason: object, mend: str = "") -> UserError:
    """Make the error that says what a file should hold, why it does not, and what to do."""
    said = " ".join(str(reason).split())[:160]
    return UserError(f"{path}: not {what} ({said})" + (f"; {mend}" if mend else ""))


def check_tensors(path: Path, found: Mapping[str, Tensor], wanted: Mapping[str, tuple[torch.dtype, torch.Size]]) -> None:
    """Raise `UserError` if the name, type or shape of a tensor differs from the wanted one, or a value is not finite."""
    if found.keys() != wanted.keys():
        name = min(found.keys() ^ wanted.keys())
        problem = "missing" if name in wanted else "unknown"
        raise UserError(f"{path}: tensor '{name}' is {problem}; wanted those that were written")
    for name, (kind, shape) in wanted.items():
        tensor = found[name]
        if tensor.dtype != kind or tensor.shape != shape:
            raise UserError(f"{path}: tensor '{name}' is {tensor.dtype} {list(tensor.shape)}; wanted {kind} {list(shape)}")
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{path}: tensor '{name}' holds values out of range; wanted finite numbers")


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Hash tensors in CPU memory with their names, in hex."""
    return _digest({name: tensor.contiguous() for name, tensor in tensors.items()}, {})


def _digest(tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> str:
    found = hashlib.sha256(canonical_json(description).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(canonical_json([name, str(tensor.dtype), list(tensor.shape)]).encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
