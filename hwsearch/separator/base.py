"""The base on disk: weights in safetensors, and what made them in its metadata."""

import json
from pathlib import Path
from typing import Literal

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hw_models.reading import no_file
from hwsearch.data.arrays import ARRAYS, ArrayName
from hwsearch.errors import UserError
from hwsearch.experiment import Section, SeparatorConfig
from hwsearch.files import atomic_write, file_digest
from hwsearch.separator.separator import Separator

EMBEDDED_BASE = Path(__file__).parent / "embedded_base.safetensors"
_KEY = "hwsearch_base"


class BaseDescription(Section):
    """What a base file says of itself.

    Attributes:
        made_by: experiment digest, seed, versions, validation score: whatever tells how the base came to be.
    """

    format: Literal[1] = 1
    sample_rate: Literal[8000, 16000]
    array: ArrayName
    separator: SeparatorConfig
    made_by: dict[str, str]


def save_base(path: Path, separator: Separator, description: BaseDescription) -> None:
    """Write a base atomically."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in separator.state_dict().items()}
    metadata = {_KEY: json.dumps(description.model_dump(mode="json"), sort_keys=True)}
    atomic_write(path, lambda temporary: save_file(state, temporary, metadata=metadata))


def load_base(path: Path) -> tuple[Separator, BaseDescription]:
    """Read a base; the separator comes in eval mode.

    Raises:
        UserError: no such file, not a base file, or tensors that do not fit its own description.
    """
    if (reason := no_file(path)) is not None:
        raise UserError(f"{path}: {reason}; wanted a base made by 'hwsearch train'")
    try:
        with safe_open(path, framework="pt") as stored:
            metadata = stored.metadata() or {}
            state = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (no mapping)
        description = BaseDescription.model_validate_json(metadata[_KEY])
    except (SafetensorError, KeyError, ValidationError) as error:
        raise UserError(f"{path}: not a base file ({_first_line(error)}); wanted one made by 'hwsearch train'") from None
    separator = Separator(description.separator, ARRAYS[description.array], description.sample_rate)
    try:
        separator.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{path}: tensors do not fit the network it describes ({_first_line(error)})") from None
    return separator.eval(), description


def base_digest(path: Path) -> str:
    """SHA-256 of the base file: which base a result belongs to."""
    return file_digest(path)


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
