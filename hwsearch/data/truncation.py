"""Sound files whose end is missing: libsndfile quietly shortens them."""

import os
import struct
from collections.abc import Iterator
from io import FileIO
from itertools import islice
from pathlib import Path

from hwsearch.errors import UserError

_STREAMED = 0xFFFF_FFFF
"""The size that programs write into a header when they do not know it yet; in RF64, that it stands in the chunk `ds64`."""

_MOST_CHUNKS = 10_000
"""Chunks that are looked through for the samples: a file of zeros is one without end."""

_W64_DATA = b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"
"""The name of the samples in Sony's Wave64 format, a GUID."""


def refuse_truncated(file: FileIO, path: Path) -> None:
    """Refuse a WAV, RF64, Wave64 or AIFF file that holds fewer bytes of samples than it says.

    Raises:
        UserError: names `path`.
    """
    file.seek(0)
    kind = file.read(4)
    if kind == b"riff":
        announced = _in_wave64(file)
    elif kind in {b"RIFF", b"RF64"}:
        announced = _in_chunks(file, "<", b"data")
    elif kind in {b"RIFX", b"FORM"}:
        announced = _in_chunks(file, ">", b"data" if kind == b"RIFX" else b"SSND")
    else:
        return
    there = os.fstat(file.fileno()).st_size - file.tell()
    if announced is not None and there < announced:
        raise UserError(f"{path}: truncated: {there} of {announced} bytes of samples are there")


def _in_chunks(file: FileIO, order: str, samples: bytes) -> int | None:
    """Bytes that the chunk named `samples` announces, where it says; the file then stands at its content."""
    file.seek(12)
    large = None
    for header in _headers(file, 8):
        name, length = struct.unpack(f"{order}4sI", header)
        if name == samples:
            return (large if length == _STREAMED else length) or None
        begin = file.tell()
        if name == b"ds64" and len(content := file.read(16)) == 16:
            large = struct.unpack("<QQ", content)[1]
        file.seek(begin + length + length % 2)
    return None


def _in_wave64(file: FileIO) -> int | None:
    file.seek(40)
    for header in _headers(file, 24):
        name, length = struct.unpack("<16sQ", header)
        if name == _W64_DATA:
            return max(0, length - 24) or None
        # A length counts the header, and chunks begin at multiples of 8 bytes.
        ahead = -(-length // 8) * 8 - 24
        if not 0 <= ahead < 2**48:
            return None
        file.seek(ahead, os.SEEK_CUR)
    return None


def _headers(file: FileIO, size: int) -> Iterator[bytes]:
    """What stands at the file's place again and again, whole headers only."""
    return islice((header for header in iter(lambda: file.read(size), b"") if len(header) == size), _MOST_CHUNKS)
