"""What an exported file says of itself, in its own metadata."""

from typing import Annotated, Literal

from onnx import ModelProto
from pydantic import Field, ValidationError

from hwsearch.data.arrays import ARRAYS, ArrayName, MicrophoneArray
from hwsearch.errors import UserError
from hwsearch.experiment import Section, SeparatorConfig
from hwsearch.separator.allocation import BitAllocation

_KEY = "hwsearch"


class ExportDescription(Section):
    """All that is needed around the graph to separate a recording with it, and where the graph came from.

    Attributes:
        sample_rate: Hz.
        array: the microphone array that the network was trained for.
        separator: front end and shape of the network.
        allocation: width of every site.
        base_digest: SHA-256 of the full-precision base.
        hwsearch_version: the version that exported.
    """

    format: Literal[1] = 1
    sample_rate: Literal[8000, 16000]
    array: ArrayName
    separator: SeparatorConfig
    allocation: dict[str, int]
    base_digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    hwsearch_version: str

    @property
    def microphones(self) -> MicrophoneArray:
        """The array's geometry."""
        return ARRAYS[self.array]

    def bit_allocation(self, source: str) -> BitAllocation:
        """The allocation, validated against the network's sites; `source` names the file in errors."""
        return BitAllocation.from_json(self.allocation, self.separator, source)


def describe(model: ModelProto, description: ExportDescription) -> None:
    """Write a description into a model's metadata."""
    entry = model.metadata_props.add()
    entry.key = _KEY
    entry.value = description.model_dump_json()


def read_description(model: ModelProto, source: str) -> ExportDescription:
    """The description in a model's metadata.

    Raises:
        UserError: none there, or not a valid one; names `source`.
    """
    found = [entry.value for entry in model.metadata_props if entry.key == _KEY]
    if len(found) != 1:
        raise UserError(
            f"{source}: an ONNX file without a separator's description; wanted one made by 'hwsearch export'"
        )
    try:
        description = ExportDescription.model_validate_json(found[0])
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{source}: its description is damaged ({key}: {first['msg']}); export it again"
        ) from None
    description.bit_allocation(source)
    return description
