"""Strategies that damage any file: its bytes, its lines, or all of it."""

import codecs
from collections.abc import Callable, Sequence
from typing import Final

from hypothesis import strategies as st

from tests.fuzz.things import Odd, Thing

Draw = st.DrawFn
BYTES: Final = (
    *(b"", b"\x00", b"\xff", b"\x80", b"\n", b"\r", b"\r\n", b"\x1b[31m", b"\x7f", b'"', b"{", b"}", b",", b"=", b"\t"),
    *(codecs.BOM_UTF8, codecs.BOM_UTF16_LE, b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"\xe2\x80\xa8", b"\x00" * 4096),
    *(b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80", b"\x00\x00\x00\x00", b"\x01\x00\x00\x00"),
)


@st.composite
def raw_bytes(draw: Draw, content: bytes) -> Thing:
    """Bytes of a file cut, doubled, overwritten or flipped."""
    story: list[str] = []
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.sampled_from((0, 1, 2, 4, 8, 64, 1000))))
        kind = draw(st.sampled_from(("cut off", "cut out", "double", "overwrite", "insert", "flip")))
        if kind == "cut off":
            content = content[:start]
        elif kind == "cut out":
            content = content[:start] + content[end:]
        elif kind == "double":
            content = content[:end] + content[start:]
        elif kind == "flip" and start < len(content):
            flipped = content[start] ^ (1 << draw(st.integers(0, 7)))
            content = content[:start] + bytes([flipped]) + content[start + 1 :]
        else:
            piece = draw(st.sampled_from(BYTES) | st.binary(max_size=8))
            content = content[:start] + piece + content[start + len(piece) if kind == "overwrite" else start :]
            kind = f"{kind} {piece[:16]!r}"
        story.append(f"{kind} at {start} to {end}")
    return Thing(content, tuple(story))


@st.composite
def lines(draw: Draw, content: bytes, edit: Callable[[bytes], st.SearchStrategy[Thing]]) -> Thing:
    """Lines of a file left out, doubled, swapped or moved, or a few of them edited."""
    parts = content.splitlines(keepends=True)
    story: list[str] = []
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(("edit", "edit", "edit", "leave out", "double", "swap", "append", "cut off")))
        first, second = (draw(st.integers(0, max(0, len(parts) - 1))) for _ in range(2))
        if not parts or kind == "append":
            parts.append(draw(st.sampled_from((b"\n", b"{}\n", b"x\n", b"\x00\n", b"[]\n", b"null\n", b"{", b"\xff\n"))))
        elif kind == "edit":
            edited = draw(edit(parts[first].rstrip(b"\n")))
            assert isinstance(edited.content, bytes)
            parts[first] = edited.content + b"\n"
            kind = f"edit ({'; '.join(edited.story)})"
        elif kind == "leave out":
            del parts[first]
        elif kind == "double":
            parts.insert(second, parts[first])
        elif kind == "swap":
            parts[first], parts[second] = parts[second], parts[first]
        else:
            parts = parts[: first + 1]
            parts[-1] = parts[-1][: len(parts[-1]) // 2]
        story.append(f"{kind}, lines {first + 1} and {second + 1}")
    return Thing(b"".join(parts), tuple(story))


def text_lines(content: bytes) -> st.SearchStrategy[Thing]:
    """Lines of a text damaged."""
    return lines(content, raw_bytes)


def csv_cells(content: bytes) -> st.SearchStrategy[Thing]:
    """Lines of a CSV file damaged, or cells in them."""
    return lines(content, _cells)


@st.composite
def _cells(draw: Draw, line: bytes) -> Thing:
    cells = line.split(b",")
    index = draw(st.integers(0, len(cells) - 1))
    cells[index] = draw(
        st.sampled_from((b"", b" ", b'"', b'""', b'"a', b"x", b"..", b"/dev/zero", b".", b"\x00", b"\xff", *cells))
    )
    if draw(st.integers(0, 5)) == 0:
        cells.append(b"x" * 200_000)
    return Thing(b",".join(cells), (f"cell {index + 1}: {cells[index]!r}, {len(cells)} cells",))


def foreign(others: Sequence[bytes]) -> st.SearchStrategy[Thing]:
    """Something that is no file of the kind at all: no file, arbitrary bytes, or a file of another kind."""
    return (
        st.sampled_from(Odd).map(lambda odd: Thing(odd, (odd.value,)))
        | st.binary(max_size=200).map(lambda content: Thing(content, (f"bytes {content[:40]!r}",)))
        | st.sampled_from((b"", *others)).map(lambda content: Thing(content, (f"a file that begins with {content[:20]!r}",)))
    )
