"""The description that an exported file carries in its metadata.

The entry `hwsearch` is JSON, compressed by zlib and written in base85: what all candidates of a base have in common. The entry
`hwsearch_candidate` is plain JSON: the bit-widths of the sites in their order, and where the candidate came from. Spaces fill it
up to a length that depends on the number of sites alone, or further, up to the promised size of the file. The entry
`hwsearch_sha256` is the SHA-256 of the file, computed with zeros in place of these digits.
"""

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, cast

import numpy as np
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto
from pydantic import Field, ValidationError, model_validator

from hw_models.wording import first_mistake
from hwsearch.data.arrays import MicrophoneArray, microphone_array
from hwsearch.errors import UserError
from hwsearch.experiment import ArraySetting, Fidelity, Section, SpectralConfig, lacks_directions
from hwsearch.network.graph import Graph
from hwsearch.network.sites import Sites, find_sites
from hwsearch.network.structure import STRUCTURE_ERRORS, from_structure, structure
from hwsearch.separator.allocation import BitAllocation
from hwsearch.separator.form import Form, make_form

if TYPE_CHECKING:
    from torch import Tensor

    from hwsearch.separator.front_end import FrontEnd

INPUT, OUTPUT = "features", "mask"
"""Names of an exported graph's input and output. The input is the front end's raw input; both are [1, channels, frames]."""

_KEY, _CANDIDATE_KEY, _DIGEST_KEY = "hwsearch", "hwsearch_candidate", "hwsearch_sha256"
_OF_CANDIDATE = ("base_digest", "fidelity", "training_steps", "processors", "hwsearch_version")
"""Fields of the description that the entry of the candidate holds, beside the widths."""

_CANDIDATE_CHARACTERS, _SITE_CHARACTERS = 320, 3
"""Length of the entry of the candidate, and what each site adds to it."""

_UNSEALED = "0" * 64
_MOST_BYTES = 2**24
"""Most bytes of a description."""

_MOST_OPERATIONS = 4096

Processors = Literal["any", "vnni"]
"""Processors on which a file gives the integers of its network: all, or those with VNNI instructions."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class NetworkStructure(Section):
    """A graph as `network.structure` writes it, with the shapes of its parameters by name."""

    inputs: Annotated[tuple[str, ...], Field(min_length=1, max_length=1)]
    outputs: Annotated[tuple[str, ...], Field(min_length=1, max_length=1)]
    operations: Annotated[tuple[dict[str, Any], ...], Field(max_length=_MOST_OPERATIONS)]
    shapes: dict[str, Annotated[tuple[Annotated[int, Field(ge=1, le=2**20)], ...], Field(max_length=3)]]

    @classmethod
    def of(cls, graph: Graph) -> Self:
        """The structure of a graph."""
        shapes = {name: tuple(tensor.shape) for name, tensor in graph.parameters.items()}
        return cls.model_validate(structure(graph) | {"shapes": shapes})

    @cached_property
    def graph(self) -> Graph:
        """The graph, with numpy's zeros for its parameters, which take no memory.

        Raises:
            Exception: one of `STRUCTURE_ERRORS`: it is no graph.
        """
        zeros = {name: np.broadcast_to(np.float32(0), shape) for name, shape in self.shapes.items()}
        # Whoever reads a structure reads the shapes, and numpy is there without torch.
        parameters = cast("Mapping[str, Tensor]", zeros)
        content = {"inputs": self.inputs, "outputs": self.outputs, "operations": self.operations}
        return from_structure(content, parameters)


class ExportDescription(Section):
    """What separating a recording with the graph needs beside the graph, and where the graph came from.

    Attributes:
        sample_rate: Hz.
        array: the microphone array that the network was trained for.
        spectral: the spectral front end, or none if the network takes and gives waveforms.
        network: the operations between the front end's input and output.
        allocation: bit-width of every site.
        base_digest: SHA-256 of the file of the full-precision base.
        fidelity: how far the quantized network was trained.
        training_steps: number of steps of that training.
        processors: what the weights are stored for.
        hwsearch_version: the version that exported the file.
    """

    format: Literal[5] = 5
    sample_rate: Literal[8000, 16000]
    array: ArraySetting
    spectral: SpectralConfig | None
    network: NetworkStructure
    allocation: dict[str, int]
    base_digest: Sha256
    fidelity: Fidelity = Fidelity.POST_TRAINING
    training_steps: Annotated[int, Field(ge=0)] = 0
    processors: Processors = "any"
    hwsearch_version: str

    @model_validator(mode="after")
    def _check(self) -> Self:
        if lacks_directions(self.array, self.spectral):
            raise ValueError("one microphone, and a network that wants a direction")
        return self

    @classmethod
    def of(
        cls,
        graph: Graph,
        allocation: BitAllocation,
        front_end: "FrontEnd",
        base_digest: str,
        fidelity: Fidelity = Fidelity.POST_TRAINING,
        training_steps: int = 0,
        processors: Processors = "any",
    ) -> Self:
        """Describe a network behind a front end."""
        return cls.model_validate(
            {
                "sample_rate": front_end.sample_rate,
                "array": front_end.array.setting,
                "spectral": front_end.spectral,
                "network": NetworkStructure.of(graph),
                "allocation": allocation.to_json(),
                "base_digest": base_digest,
                "fidelity": fidelity,
                "training_steps": training_steps,
                "processors": processors,
                "hwsearch_version": version("hwsearch"),
            }
        )

    @property
    def widths(self) -> list[int]:
        """The bit-widths of the sites, in their order."""
        return [self.allocation[site] for site in find_sites(self.network.graph).all]

    @property
    def microphones(self) -> MicrophoneArray:
        """The array's geometry."""
        return microphone_array(self.array)

    @property
    def form(self) -> Form:
        """The form of the front end."""
        return make_form(self.spectral, self.microphones, self.sample_rate)

    def sites(self, source: str) -> Sites:
        """Return the sites of the network; `source` names the file in errors."""
        try:
            return find_sites(self.network.graph)
        except STRUCTURE_ERRORS as error:
            reason = " ".join(str(error).split())[:120]
            raise UserError(f"{source}: its description holds no network ({reason}); export it again") from None

    def bit_allocation(self, source: str) -> BitAllocation:
        """Return the allocation, validated against the network's sites; `source` names the file in errors."""
        return BitAllocation.from_json(self.allocation, self.sites(source), source)


def seal(model: ModelProto, description: ExportDescription, size: int | None = None) -> bytes:
    """Return the bytes of the file, with the description and the digest of the whole file inside.

    Args:
        model: the graph; the description is added to it.
        description: of the graph.
        size: number of bytes to fill the file up to.

    Raises:
        ValueError: the file is larger than `size`.
    """
    describe(model, description)
    if size is not None:
        _fill(model, size)
    content: bytes = model.SerializeToString()
    return content.replace(_digest_field(_UNSEALED), _digest_field(hashlib.sha256(content).hexdigest()))


def describe(model: ModelProto, description: ExportDescription) -> None:
    """Add a description to a graph, with zeros for the digest."""
    own = {"widths": description.widths, **description.model_dump(mode="json", include=set(_OF_CANDIDATE))}
    length = _CANDIDATE_CHARACTERS + _SITE_CHARACTERS * len(description.allocation)
    common = description.model_dump_json(exclude={*_OF_CANDIDATE, "allocation"})
    candidate = json.dumps(own, separators=(",", ":")).ljust(length)
    for key, value in ((_KEY, encoded(common)), (_CANDIDATE_KEY, candidate), (_DIGEST_KEY, _UNSEALED)):
        model.metadata_props.add(key=key, value=value)


def _fill(model: ModelProto, size: int) -> None:
    """Fill a described model up with spaces.

    From some lengths on, the length of a string takes one byte more. A space in another place makes up for it.
    """
    (entry,) = (entry for entry in model.metadata_props if entry.key == _CANDIDATE_KEY)
    candidate = entry.value
    for model.doc_string in ("", " "):
        missing = size - model.ByteSize()
        for spaces in range(missing, max(missing - 8, -1), -1):
            entry.value = candidate + " " * spaces
            if model.ByteSize() == size:
                return
        entry.value = candidate
    raise ValueError(f"a file of {model.ByteSize()} bytes; wanted {size}")


def encoded(text: str) -> str:
    """Compress a description (zlib), in characters that metadata may hold (base85)."""
    return base64.b85encode(zlib.compress(text.encode(), 9)).decode()


def decoded(value: str) -> str:
    """Return what `encoded` was given.

    Raises:
        ValueError: no such value, or one of more than `_MOST_BYTES`.
    """
    unpacker = zlib.decompressobj()
    try:
        content = unpacker.decompress(base64.b85decode(value), _MOST_BYTES)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if not unpacker.eof or unpacker.unused_data:
        raise ValueError("not one whole description")
    return content.decode()


def read_model(content: bytes, source: str) -> tuple[ModelProto, ExportDescription]:
    """The model in a file's bytes, and its description.

    Raises:
        UserError: no ONNX, no valid description in it, or changed since it was sealed; names `source`.
    """
    try:
        model = ModelProto.FromString(content)
        keys = (_KEY, _CANDIDATE_KEY, _DIGEST_KEY)
        found, own, digests = ([entry.value for entry in model.metadata_props if entry.key == key] for key in keys)
    except (DecodeError, UnicodeDecodeError):
        raise UserError(f"{source}: not an ONNX file; wanted one made by 'hwsearch export'") from None
    if len(found) != 1 or len(own) > 1:
        raise UserError(f"{source}: an ONNX file without a separator's description; wanted one made by 'hwsearch export'")
    try:
        description = _description(decoded(found[0]), own[0] if own else "{}", source)
    except ValidationError as error:
        raise UserError(
            f"{source}: its description is damaged or of another version ({first_mistake(error).said}); export it again"
        ) from None
    except ValueError:
        raise UserError(f"{source}: its description is damaged or of another version; export it again") from None
    description.bit_allocation(source)
    (digest,) = digests if len(digests) == 1 else (_UNSEALED,)
    unsealed = content.replace(_digest_field(digest), _digest_field(_UNSEALED))
    if hashlib.sha256(unsealed).hexdigest() != digest:
        raise UserError(f"{source}: damaged or changed since it was exported; export it again")
    return model, description


def _description(common: str, own: str, source: str) -> ExportDescription:
    """Read both entries of a description.

    Raises:
        UserError: they describe no network, or have widths for other sites; names `source`.
        ValueError: they are no description.
    """
    fields, candidate = json.loads(common), json.loads(own)
    if not isinstance(fields, dict) or not isinstance(candidate, dict):
        raise ValueError("no description")  # noqa: TRY004 (what a file holds, not what a caller gives)
    widths = candidate.pop("widths", None)
    # Validated before the sites are looked for: what another file says about its structure may be anything.
    described = ExportDescription.model_validate_json(json.dumps({**fields, **candidate, "allocation": {}}))
    sites = described.sites(source).all
    if not isinstance(widths, list) or len(widths) != len(sites):
        raise UserError(f"{source}: its description has no width for each of its {len(sites)} sites; export it again")
    allocation = dict(zip(sites, widths, strict=True))
    return ExportDescription.model_validate_json(json.dumps({**fields, **candidate, "allocation": allocation}))


def _digest_field(digest: str) -> bytes:
    """The digest as the metadata hold it: key, type and length of the value, and the value."""
    return _DIGEST_KEY.encode() + b"\x12\x40" + digest.encode(errors="replace")
