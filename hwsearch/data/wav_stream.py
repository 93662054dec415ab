"""Reading of WAV data that come through a pipe, while they are made.

A pipe cannot be rewound, and whoever writes to it does not know how long the sound will be. So programs state a length of 0,
or the largest one.
"""

import os
import select
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hwsearch.data.audio import check_samples
from hwsearch.errors import UserError
from hwsearch.process.interrupts import checkpoint

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_LONGEST_CHUNK = 2**20
"""Most bytes of a chunk before the samples."""

_UNKNOWN = 2**31 - 2**8
"""A stated length of this or more means that the length is unknown; `arecord` writes this one."""

_WAIT_SECONDS = 0.2
"""How long a pipe is waited for between two looks whether a signal has come."""


class Pipe:
    """The reading end of a pipe."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read(self, size: int) -> bytes:
        """Read bytes; fewer than `size` at the end.

        Raises:
            KeyboardInterrupt: a signal has come.
        """
        found = b""
        while len(found) < size:
            checkpoint()
            if select.select([self._descriptor], [], [], _WAIT_SECONDS)[0]:
                content = os.read(self._descriptor, size - len(found))
                if not content:
                    break
                found += content
        return found


class Readable(Protocol):
    """What WAV data are read from."""

    def read(self, size: int, /) -> bytes:
        """Read bytes; fewer than `size` at the end."""


@dataclass
class WavStream:
    """WAV data whose header has been read.

    Attributes:
        source: what they come from, in words.
        sample_rate: in Hz.
        channels: number of channels.
        missing: bytes of the samples that are still to come, if the data say how many there are.
    """

    source: str
    sample_rate: int
    channels: int
    _stream: Readable
    _decode: Callable[[bytes], NDArray[np.float32]]
    _sample_bytes: int
    missing: int | None

    @classmethod
    def open(cls, stream: Readable, source: str) -> "WavStream":
        """Read the header.

        Raises:
            UserError: no WAV data, or samples in another form than PCM of 16, 24 or 32 bits or float32.
        """
        wanted = "wanted WAV, with samples in 16, 24 or 32 bits or in float32"
        start = stream.read(12)
        if len(start) < 12 or start[:4] not in (b"RIFF", b"RF64") or start[8:] != b"WAVE":
            raise UserError(f"{source}: no WAV data, it begins with {start[:4]!r}; {wanted}")
        form: tuple[int, int, int, int] | None = None
        while True:
            head = stream.read(8)
            if len(head) < 8:
                raise UserError(f"{source}: ends before the first sample; {wanted}")
            name, size = head[:4], int.from_bytes(head[4:], "little")
            if name == b"data":
                break
            content = stream.read(size + size % 2) if size <= _LONGEST_CHUNK else b""
            if name == b"fmt " and len(content) >= 16:
                kind, channels, rate, _, _, bits = struct.unpack("<HHIIHH", content[:16])
                if kind == _EXTENSIBLE and len(content) >= 26:
                    kind = int.from_bytes(content[24:26], "little")
                form = kind, channels, rate, bits
            elif len(content) < size:
                raise UserError(f"{source}: the chunk {name!r} of {size} bytes is cut off or too long; {wanted}")
        if form is None or (form[0], form[3]) not in _DECODED or not form[1]:
            kind, channels, rate, bits = form or (0, 0, 0, 0)
            raise UserError(f"{source}: {channels} channels of {bits} bits in WAV's format {kind}; {wanted}")
        kind, channels, rate, bits = form
        known = size if 0 < size < _UNKNOWN else None
        return cls(source, rate, channels, stream, _DECODED[kind, bits], bits // 8, known)

    def blocks(self, samples: int) -> Iterator[NDArray[np.float32]]:
        """Give the sound in blocks [channels, samples], as it comes. The last one may be shorter.

        Raises:
            UserError: a sample is not finite or too large.
        """
        frame, done = self.channels * self._sample_bytes, 0
        while True:
            size = frame * samples if self.missing is None else min(frame * samples, self.missing)
            content = self._stream.read(size)
            whole = len(content) - len(content) % frame
            block = self._decode(content[:whole]).reshape(-1, self.channels)
            if len(block):
                check_samples(block, self.source, done)
                done += len(block)
                yield np.ascontiguousarray(block.T)
            if self.missing is not None:
                self.missing -= len(content)
            if len(content) < frame * samples:
                return


def _integers(kind: str) -> Callable[[bytes], NDArray[np.float32]]:
    scale = float(-np.iinfo(kind).min)
    return lambda content: (np.frombuffer(content, kind) / scale).astype(np.float32)


def _three_bytes(content: bytes) -> NDArray[np.float32]:
    """Samples of 24 bits, as the upper three bytes of 32."""
    wide = np.zeros((len(content) // 3, 4), np.uint8)
    wide[:, 1:] = np.frombuffer(content, np.uint8).reshape(-1, 3)
    return (wide.view("<i4")[:, 0] / 2.0**31).astype(np.float32)


_DECODED: dict[tuple[int, int], Callable[[bytes], NDArray[np.float32]]] = {
    (_PCM, 16): _integers("<i2"),
    (_PCM, 24): _three_bytes,
    (_PCM, 32): _integers("<i4"),
    (_FLOAT, 32): lambda content: np.frombuffer(content, "<f4"),
}
"""What turns bytes into samples, by WAV's format and bits."""
