"""Truncated sound files, which libsndfile reads without an error."""

import os
import struct
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from hwsearch.errors import UserError

_STREAMED = 0xFFFF_FFFF
"""Size in the header of a file that was streamed. In RF64 it means that the size is in the chunk `ds64`."""

_LARGEST_OGG_PAGE = 27 + 255 + 255 * 255
"""In bytes: header, lengths of the segments, and segments."""

_LAST_PAGE = 0x04
"""Flag of the last page of an Ogg stream."""

_MOST_CHUNKS = 10_000
"""Largest number of chunks searched for the samples. A file of zeros looks like an endless row of chunks."""

_W64_DATA = b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"
"""GUID of the chunk of samples in Sony's Wave64 format."""


def refuse_truncated(file: FileIO, path: Path) -> None:
    """Raise `UserError` for a truncated file.

    A WAV, RF64, Wave64, AIFF or AU file is truncated if it has fewer bytes of samples than its header states, an Ogg file if its
    last page is missing.
    """
    file.seek(0)
    kind = file.read(4)
    if kind == b"OggS":
        _refuse_open_ogg(file, path)
        return
    announced = _announced(file, kind)
    there = os.fstat(file.fileno()).st_size - file.tell()
    if announced is not None and there < announced:
        raise UserError(f"{path}: truncated: {there} of {announced} bytes of samples are there")


def _announced(file: FileIO, kind: bytes) -> int | None:
    """Number of bytes of samples that the header states, or None. With a number, the file is positioned at the first sample."""
    match kind:
        case b"RIFF" | b"RF64":
            return _in_chunks(file, "<", b"data")
        case b"RIFX":
            return _in_chunks(file, ">", b"data")
        case b"FORM":
            return _in_chunks(file, ">", b"SSND")
        case b"riff":
            return _in_wave64(file)
        case b".snd":
            return _in_au(file)
    return None


def _in_chunks(file: FileIO, order: str, samples: bytes) -> int | None:
    file.seek(12)
    large = None
    for name, length in _chunks(file, f"{order}4sI"):
        if name == samples:
            return (large if length == _STREAMED else length) or None
        begin = file.tell()
        if name == b"ds64" and len(content := file.read(16)) == 16:
            large = struct.unpack("<QQ", content)[1]
        file.seek(begin + length + length % 2)
    return None


def _in_wave64(file: FileIO) -> int | None:
    size = os.fstat(file.fileno()).st_size
    file.seek(40)
    for name, length in _chunks(file, "<16sQ"):
        if name == _W64_DATA:
            return max(0, length - 24) or None
        # The length includes the header, and chunks begin at multiples of 8 bytes.
        ahead = -(-length // 8) * 8 - 24
        if not 0 <= ahead <= size:
            return None
        file.seek(ahead, os.SEEK_CUR)
    return None


def _in_au(file: FileIO) -> int | None:
    header = file.read(8)
    if len(header) < 8:
        return None
    offset, length = struct.unpack(">II", header)
    file.seek(offset)
    return None if length == _STREAMED else length


def _refuse_open_ogg(file: FileIO, path: Path) -> None:
    file.seek(max(0, os.fstat(file.fileno()).st_size - _LARGEST_OGG_PAGE))
    end = file.read()
    page = end[end.rfind(b"OggS") :]
    whole = len(page) >= 27 and len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])
    if not (whole and page[5] & _LAST_PAGE):
        raise UserError(f"{path}: truncated: its last page is missing")


def _chunks(file: FileIO, layout: str) -> Iterator[tuple[bytes, int]]:
    """Name and length of each chunk at the position that the caller has moved the file to, until a header is incomplete."""
    size = struct.calcsize(layout)
    for _ in range(_MOST_CHUNKS):
        if len(header := file.read(size)) < size:
            return
        name, length = struct.unpack(layout, header)
        yield name, length
