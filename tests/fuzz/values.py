"""Strategies that change the values and keys of JSON and TOML files."""

import copy
import json
import re
import tomllib
from collections.abc import Sequence
from typing import Any, Final

import tomli_w
from hypothesis import strategies as st

from tests.fuzz.edits import Draw, lines, raw_bytes
from tests.fuzz.things import Thing

Place = tuple[Any, Any]
"""A list or dict, and an index or key in it."""

DEEP: Final = 10_000

NUMBERS: Final = (
    *("0", "-0.0", "1", "-1", "2", "7", "0.5", "1e-320", "1e308", "-1e308", "1e999"),
    *("255", "65536", "2147483648", "9223372036854775807", "9223372036854775808", "-9223372036854775809", "1e18"),
    *("1" + "0" * 400, "9" * 5000, "123456789.123456789"),
)
WORDS: Final = (
    *('""', '" "', '"0"', '"100"', '"nan"', '"true"', '"x"', '"../../x"', '"/dev/zero"', '"/"', '"~"', '"a.b"', '"*"', '"["'),
    *('"\\u0000"', '"\\u001b[31mred\\u0007"', '"a\\nb"', '"\\u009b2J"', '"\\u2028"', '"ä€😀"', '"[bold]x[/]"', '"%s{}"'),
    f'"{"x" * 100_000}"',
)
JSON_TOKENS: Final = (
    *NUMBERS,
    *WORDS,
    *("NaN", "Infinity", "-Infinity", "null", "true", "false", "[]", "{}", "[[]]", "[1, 2]", '{"a": 1}', '"\\ud800"'),
    *("[" * DEEP + "]" * DEEP, '{"a":' * DEEP + "1" + "}" * DEEP, "01", "nul", '"', "", "[1,", "'x'", "1.", "+1"),
)
TOML_TOKENS: Final = (
    *NUMBERS,
    *WORDS,
    *("nan", "inf", "-inf", "true", "false", "[]", "{}", "[[]]", "[1, 2]", "{ a = 1 }", "1_000", "0xff", "0o7", "0b1"),
    *("1979-05-27", "07:32:00", "1979-05-27T07:32:00Z", "'x'", "'''\na\n'''", '"""\na\n"""'),
    *("[" * DEEP + "]" * DEEP, "{ a = " * DEEP + "1" + " }" * DEEP, "01", "", '"', "[1,", "1.", "null"),
)
TOML_LINES: Final = (
    "a" + ".a" * 2 * DEEP + " = 1",
    "[a" + ".a" * 2 * DEEP + "]",
    "[[data.corpora]]",
    "[search]",
    'name = "again"',
    "[data]\n[data]",
    "= 1",
    "x",
    '"" = 1',
    '"\\u001b[2J" = 1',
    "# \x00",
    "\x1b]0;x\x07",
    "a = 1\ra = 2",
    "\n" * 100_000,
)

_MARK, _TWIN = "@text@", "-twin-"
"""Stand in a tree for what its format cannot write: a value as it is, and a key for the second time."""


class Text(str):
    """A value of a tree that stands in the file as it is, not as a string."""

    __slots__ = ()


def values(tokens: Sequence[str]) -> st.SearchStrategy[Text]:
    """A value as it stands in a file."""
    return st.sampled_from(tokens).map(Text)


@st.composite
def json_values(draw: Draw, content: bytes) -> Thing:
    """Values and keys of a JSON file replaced, left out, doubled or swapped; bytes of what is no JSON any more."""
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError):
        return draw(raw_bytes(content))
    story = draw(_edited(tree, JSON_TOKENS))
    return Thing(_with_texts(json.dumps(_without_texts(tree))).encode(), story)


def json_lines(content: bytes) -> st.SearchStrategy[Thing]:
    """Lines of a file of JSON lines damaged."""
    return lines(content, json_values)


@st.composite
def toml_values(draw: Draw, content: bytes) -> Thing:
    """Values and keys of a TOML file replaced, left out, doubled or swapped; and lines that TOML does not like."""
    tree = tomllib.loads(content.decode())
    story = draw(_edited(tree, TOML_TOKENS))
    text = _with_texts(tomli_w.dumps(_without_texts(tree)))
    if draw(st.integers(0, 4)) == 0:
        rows = text.split("\n")
        row, added = draw(st.integers(0, len(rows))), draw(st.sampled_from(TOML_LINES))
        text = "\n".join([*rows[:row], added, *rows[row:]])
        story = (*story, f"insert {added[:40]!r} at line {row + 1}")
    return Thing(text.encode(), story)


@st.composite
def _edited(draw: Draw, tree: Any, tokens: Sequence[str]) -> tuple[str, ...]:
    """Edit a tree in place, one to three times."""
    return tuple(draw(_one_edit(tree, tokens)) for _ in range(draw(st.sampled_from((1, 1, 1, 2, 3)))))


@st.composite
def _one_edit(draw: Draw, tree: Any, tokens: Sequence[str]) -> str:
    found = _places(tree)
    if not found:
        return "nothing to edit"
    index = draw(st.integers(0, len(found) - 1))
    inside, key = found[index]
    where = f"{key!r}, value {index}"
    kind = draw(st.sampled_from(("replace", "replace", "replace", "change", "leave out", "double", "rename", "swap", "wrap")))
    if kind == "change" and (changed := draw(_near(inside[key]))) is not None:
        inside[key], where = changed, f"{where} to {str(changed)[:40]!r}"
    elif kind == "leave out":
        del inside[key]
    elif kind == "double" and isinstance(inside, list):
        inside.insert(key, copy.deepcopy(inside[key]))
    elif kind == "double":
        inside[f"{key}{_TWIN}"] = draw(st.just(inside[key]) | values(tokens))
    elif kind == "rename" and isinstance(inside, dict):
        name = draw(st.sampled_from(("", "x", f"{key}_", "\x1b[31m", "a\nb", "k" * 10_000, *inside)))
        inside[name] = inside.pop(key)
        where += f" to {name[:20]!r}"
    elif kind == "swap":
        other, place = found[draw(st.integers(0, len(found) - 1))]
        inside[key], other[place] = copy.deepcopy(other[place]), copy.deepcopy(inside[key])
        where += f" with {place!r}"
    elif kind == "wrap":
        inside[key] = [inside[key]]
    else:
        kind, token = "replace", draw(values(tokens))
        inside[key] = token
        where += f" by {token[:40]}"
    return f"{kind} {where}"


@st.composite
def _near(draw: Draw, value: Any) -> Any:
    """A value of the same kind, or of a near one; None where there is none."""
    if isinstance(value, bool):
        return draw(st.sampled_from((int(value), str(value).lower(), not value)))
    if isinstance(value, int | float):
        factor = draw(st.sampled_from((-1, 0, 2, 10, 1000, 0.5, 1e-9, 1e9, 1e30)))
        return draw(st.sampled_from((value * factor, value + 1, value - 1, value + 0.5, str(value), float(value))))
    if isinstance(value, str):
        changed = (value[:-1], f"{value}x", value.upper(), f" {value}", f"{value}\x00", value[::-1], value * 2)
        return draw(st.sampled_from(changed))
    return None


def _places(tree: Any) -> list[Place]:
    """Every value below a tree: where it is."""
    found: list[Place] = []
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in pairs:
        found.append((tree, key))
        found += _places(value)
    return found


def _without_texts(tree: Any) -> Any:
    """A tree with every text as a marked string in hex."""
    if isinstance(tree, Text):
        return f"{_MARK}{tree.encode().hex()}{_MARK}"
    if isinstance(tree, dict):
        return {key: _without_texts(value) for key, value in tree.items()}
    return [_without_texts(value) for value in tree] if isinstance(tree, list) else tree


def _with_texts(text: str) -> str:
    """The inverse, in the file; there, a twin's key is as its brother's."""
    texts = re.sub(f'"{_MARK}([0-9a-f]*){_MARK}"', lambda found: bytes.fromhex(found[1]).decode(), text)
    return texts.replace(_TWIN, "")
