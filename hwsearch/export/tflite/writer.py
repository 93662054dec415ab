"""Writes the tensors and operators of a TensorFlow Lite file, with the schema that the package `ai-edge-litert` ships.

Activations are [1, 1, frames, channels]: frames along the width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

_SCHEMA_VERSION = 3
_IDENTIFIER = b"TFL3"
_ALIGNMENT = 16
"""The schema's `force_align` of buffers, which its Python code leaves out. Microcontrollers read integers in place."""

_NIBBLES = 2

TYPES: Mapping[str, int] = {
    "int4": schema.TensorType.INT4,
    "int8": schema.TensorType.INT8,
    "int16": schema.TensorType.INT16,
    "int32": schema.TensorType.INT32,
    "int64": schema.TensorType.INT64,
}
"""The types of tensors, by name."""


@dataclass(frozen=True)
class Quantization:
    """How the integers of a tensor stand for real values: (integer - zero point) * scale.

    Attributes:
        scale: one for the whole tensor, or one for each channel.
        zero_point: the integer of zero.
        axis: the axis of the channels.
    """

    scale: Sequence[float]
    zero_point: int = 0
    axis: int = 0

    @cached_property
    def table(self) -> Any:
        """The table of the schema."""
        zero_points = np.full(len(self.scale), self.zero_point, np.int64)
        return schema.QuantizationParametersT(
            scale=np.array(self.scale, np.float32), zeroPoint=zero_points, quantizedDimension=self.axis
        )


class TfliteWriter:
    """A file in the making. Tensors are known by their numbers."""

    def __init__(self) -> None:
        self._buffers = [_Buffer(None)]  # the first one is empty, by convention
        self._tensors: list[Any] = []
        self._codes: dict[tuple[int, int], int] = {}
        self._operators: list[Any] = []

    def tensor(self, name: str, shape: Sequence[int], kind: str, quantization: Quantization | None) -> int:
        """Add a tensor that an operator makes, or the input."""
        return self._add(name, shape, kind, quantization, 0)

    def constant(self, name: str, values: NDArray[Any], kind: str, quantization: Quantization | None) -> int:
        """Store a tensor; "int4" puts two values into a byte, the first in the lower half."""
        content = _nibbles(values) if kind == "int4" else values.astype(kind).tobytes()
        return self._add(name, values.shape, kind, quantization, self._store(content))

    def rename(self, tensor: int, name: str) -> None:
        """Give a tensor another name."""
        self._tensors[tensor].name = name

    def operator(self, code: int, version: int, read: Sequence[int], made: int, options: Any = None) -> None:
        """Add an operator that makes one tensor.

        Args:
            code: its `BuiltinOperator`.
            version: the version of its kernel that takes these types.
            read: the tensors that it reads.
            made: the tensor that it makes.
            options: a table of the schema, whose class is named after the kind of the options; None: it has none.
        """
        place = self._codes.setdefault((code, version), len(self._codes))
        kind = 0 if options is None else getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        operator = schema.OperatorT(
            opcodeIndex=place, inputs=_int32(read), outputs=_int32([made]), builtinOptionsType=kind, builtinOptions=options
        )
        self._operators.append(operator)

    def finished(self, inputs: int, outputs: Sequence[int], metadata: Mapping[str, bytes]) -> bytes:
        """Return the content of the file.

        Args:
            inputs: the tensor that the file reads.
            outputs: the tensors that it makes.
            metadata: further content by name.
        """
        buffers = [*self._buffers, *map(_Buffer, metadata.values())]
        entries = [schema.MetadataT(name=name, buffer=len(self._buffers) + place) for place, name in enumerate(metadata)]
        graph = schema.SubGraphT(
            tensors=self._tensors, inputs=_int32([inputs]), outputs=_int32(outputs), operators=self._operators, name="main"
        )
        codes = [
            schema.OperatorCodeT(deprecatedBuiltinCode=min(code, 127), builtinCode=code, version=version)
            for code, version in self._codes
        ]
        model = schema.ModelT(
            version=_SCHEMA_VERSION, operatorCodes=codes, subgraphs=[graph], description="hwsearch", buffers=buffers
        )
        model.metadata = entries
        builder = _Builder(1 << 16)
        builder.Finish(model.Pack(builder), file_identifier=_IDENTIFIER)
        return bytes(builder.Output())

    def _add(self, name: str, shape: Sequence[int], kind: str, quantization: Quantization | None, buffer: int) -> int:
        table = None if quantization is None else quantization.table
        self._tensors.append(schema.TensorT(shape=_int32(shape), type=TYPES[kind], buffer=buffer, name=name, quantization=table))
        return len(self._tensors) - 1

    def _store(self, content: bytes) -> int:
        self._buffers.append(_Buffer(content))
        return len(self._buffers) - 1


class _Builder(flatbuffers.Builder):  # type: ignore[misc]
    """Writes equal vectors once, such as the zero points of weights."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._vectors: dict[tuple[str, bytes], int] = {}

    def CreateNumpyVector(self, x: NDArray[Any]) -> int:  # noqa: N802 (the name of flatbuffers)
        """Write a vector, unless it was written before; return its place."""
        key = x.dtype.str, x.tobytes()
        if key not in self._vectors:
            self._vectors[key] = super().CreateNumpyVector(x)
        return self._vectors[key]


class _Buffer:
    """A buffer of the file, aligned as the schema demands."""

    def __init__(self, content: bytes | None) -> None:
        self._content = content

    def Pack(self, builder: flatbuffers.Builder) -> int:  # noqa: N802 (the schema's name)
        """Write the buffer; return its place."""
        data = None
        if self._content is not None:
            builder.StartVector(1, len(self._content), _ALIGNMENT)
            builder.head -= len(self._content)
            builder.Bytes[builder.head : builder.head + len(self._content)] = self._content
            data = builder.EndVector()
        schema.BufferStart(builder)
        if data is not None:
            schema.BufferAddData(builder, data)
        return int(schema.BufferEnd(builder))


def _nibbles(values: NDArray[Any]) -> bytes:
    flat = values.astype(np.int8).ravel()
    halves = np.pad(flat, (0, -len(flat) % _NIBBLES)).view(np.uint8) & 0xF
    return (halves[0::2] | halves[1::2] << 4).astype(np.uint8).tobytes()


def _int32(values: Sequence[int]) -> NDArray[np.int32]:
    return np.array(values, np.int32)
