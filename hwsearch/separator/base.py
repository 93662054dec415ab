"""The base on disk: its weights, what made them, and a digest of both."""

import json
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from hw_models.reading import no_file
from hwsearch.data.arrays import ARRAYS, ArrayName
from hwsearch.errors import UserError
from hwsearch.experiment import ModuleConfig, NetworkConfig, Section
from hwsearch.files import file_digest
from hwsearch.separator.separator import Separator, build_separator
from hwsearch.tensor_files import TensorFileError, read_tensors, write_tensors

EMBEDDED_BASE = Path(__file__).parent / "embedded_base.safetensors"
SHIPPED = (
    "d1b2b5e1d8309732ee6fbe7d3fe595e432a2608c9487a0b91c6fd2d7a5164c55",  # embedded_base.safetensors
    "839a1cc9f55348830b53bfc9326d32d5986227f2c11f9edbb3741a4b9cabfcfb",  # experiments/bases/real_speech.safetensors
)
"""SHA-256 of the bases that come with the project. They carry no digest, because results name them by that of their files."""

_KEY = "hwsearch_base"


class BaseDescription(Section):
    """What a base file says of itself.

    Attributes:
        made_by: experiment digest, seed, versions, validation score: whatever tells how the base came to be.
    """

    format: Literal[1, 2] = 2
    sample_rate: Literal[8000, 16000]
    array: ArrayName
    separator: NetworkConfig
    made_by: dict[str, str]


def save_base(path: Path, separator: Separator, description: BaseDescription) -> None:
    """Write a base atomically."""
    write_tensors(path, separator.state_dict(), _KEY, description.model_dump(mode="json"))


def load_base(path: Path, named: NetworkConfig | None = None) -> tuple[Separator, BaseDescription]:
    """Read a base; the separator comes in eval mode.

    Args:
        path: the file.
        named: the network that the user's experiment names. A module of the user's own is imported from there, never because a
            file of weights says so.

    Raises:
        UserError: no such file, not a base file, one that changed since it was written, a module of the user's own without an
            experiment, or tensors that do not fit the network.
    """
    if (reason := no_file(path)) is not None:
        raise UserError(f"{path}: {reason}; wanted a base made by 'hwsearch train'")
    try:
        content, state = read_tensors(path, _KEY, known=SHIPPED)
        description = BaseDescription.model_validate_json(json.dumps(content))
    except (TensorFileError, ValidationError) as error:
        raise UserError(f"{path}: not a base file ({_first_line(error)}); wanted one made by 'hwsearch train'") from None
    config = description.separator
    if isinstance(config, ModuleConfig):
        if not isinstance(named, ModuleConfig):
            raise UserError(f"{path}: holds weights of the module '{config.module}'; wanted the experiment that names it")
        config = named
    separator = build_separator(config, ARRAYS[description.array], description.sample_rate)
    if description.format == 1:
        state = {_of_format_2(name): tensor for name, tensor in state.items()}
    try:
        separator.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{path}: tensors do not fit the network it describes ({_first_line(error)})") from None
    return separator.eval(), description


def base_digest(path: Path) -> str:
    """SHA-256 of the base file: which base a result belongs to."""
    return file_digest(path)


def _of_format_2(name: str) -> str:
    """The name of a tensor; the statistics of features once were the network's."""
    return name.replace("network.feature_", "front_end.feature_", 1)


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
