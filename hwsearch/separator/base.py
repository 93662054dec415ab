"""The file of a base: its weights, how they were trained, and a digest of both."""

import json
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import ValidationError, model_validator

from hwsearch.data.arrays import microphone_array
from hwsearch.errors import UserError
from hwsearch.experiment import ArraySetting, ModuleConfig, NetworkConfig, Section, lacks_directions
from hwsearch.files.reading import file_digest
from hwsearch.files.tensors import check_tensors, read_tensors, refused, write_tensors
from hwsearch.separator.separator import Separator, build_separator

EMBEDDED_BASE = Path(__file__).parent / "embedded_base.safetensors"
SHIPPED = (
    "d1b2b5e1d8309732ee6fbe7d3fe595e432a2608c9487a0b91c6fd2d7a5164c55",  # embedded_base.safetensors
    "839a1cc9f55348830b53bfc9326d32d5986227f2c11f9edbb3741a4b9cabfcfb",  # experiments/bases/real_speech.safetensors
)
"""SHA-256 of the bases that come with the project. They have no digest inside."""

_KEY = "hwsearch_base"
_WHAT = "a base made by 'hwsearch train'"

_SAMPLE_SAMPLES = 4000
_SUMS = 16
_NEAR = 1e-4
"""Largest difference of two samples of one network on different processors, relative to the largest number in them."""


class BaseDescription(Section):
    """The description in a base file.

    Attributes:
        made_by: experiment digest, seed, versions, validation score and the like.
        output: for a user's own module, the result of `output_sample`, which detects changes of its code.
    """

    format: Literal[1, 2] = 2
    sample_rate: Literal[8000, 16000]
    array: ArraySetting
    separator: NetworkConfig
    made_by: dict[str, str]
    output: tuple[float, ...] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if lacks_directions(self.array, self.separator.spectral):
            raise ValueError("one microphone, and a network that wants a direction")
        return self


def save_base(path: Path, separator: Separator, description: BaseDescription) -> None:
    """Write a base atomically."""
    if isinstance(description.separator, ModuleConfig):
        again = build_separator(description.separator, microphone_array(description.array), description.sample_rate)
        again.load_state_dict(separator.state_dict())
        description = description.model_copy(update={"output": output_sample(again.eval())})
    write_tensors(path, separator.state_dict(), _KEY, description.model_dump(mode="json"))


def load_base(path: Path, named: NetworkConfig | None = None) -> tuple[Separator, BaseDescription]:
    """Read a base; the separator is in eval mode.

    Args:
        path: the file.
        named: the network in the user's experiment. A module of the user's own is only imported if an experiment names it.

    Raises:
        UserError: no such file, not a base file, one that changed since it was written, a module of the user's own without an
            experiment or whose code has changed, or tensors that do not fit the network.
    """
    content, state = read_tensors(path, _KEY, _WHAT, known=SHIPPED)
    try:
        description = BaseDescription.model_validate_json(json.dumps(content))
    except ValidationError as error:
        raise refused(path, _WHAT, error) from None
    config = description.separator
    if isinstance(config, ModuleConfig):
        if not isinstance(named, ModuleConfig):
            raise UserError(f"{path}: holds weights of the module '{config.module}'; wanted the experiment that names it")
        config = named
    separator = build_separator(config, microphone_array(description.array), description.sample_rate)
    if description.format == 1:
        state = {name.replace("network.feature_", "front_end.feature_", 1): tensor for name, tensor in state.items()}
    check_tensors(path, state, {name: (tensor.dtype, tensor.shape) for name, tensor in separator.state_dict().items()})
    separator.load_state_dict(state)
    separator.eval()
    if isinstance(config, ModuleConfig) and not _is_near(output_sample(separator), description.output):
        raise UserError(
            f"{path}: '{config.module}' computed something else when it was trained; wanted the code as it was, another name, or "
            "another --runs-dir"
        )
    return separator, description


def output_sample(separator: Separator) -> tuple[float, ...]:
    """Compute sums with random signs over the output of a network for noise; they change with the code of the network."""
    random = torch.Generator().manual_seed(0)
    frames = separator.front_end.frames(_SAMPLE_SAMPLES)
    with torch.no_grad():
        output = separator.network(torch.randn(1, separator.front_end.inputs, frames, generator=random)).flatten()
        signs = torch.randint(0, 2, (_SUMS, len(output)), generator=random) * 2.0 - 1.0
        return tuple((signs @ output / len(output) ** 0.5).tolist())


def _is_near(found: tuple[float, ...], wanted: tuple[float, ...] | None) -> bool:
    if wanted is None or len(found) != len(wanted):
        return False
    return max(abs(one - other) for one, other in zip(found, wanted, strict=True)) <= _NEAR * max(map(abs, wanted))


def base_digest(path: Path) -> str:
    """Compute the SHA-256 of a base file, by which results name it."""
    return file_digest(path)
