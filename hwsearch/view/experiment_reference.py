"""The reference of the experiment file: what each key takes, what it stands for, and its default.

All of it is read from the JSON schema that pydantic makes of the models: types, ranges, defaults and docstrings.
"""

import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from hwsearch.errors import UserError
from hwsearch.experiment import Experiment

Schema = Mapping[str, Any]

WIDTH = 80
"""Columns of the text form."""

_TOP = "The whole experiment"
_TYPES = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "text"}
_PAGE = """\
# The experiment file

An experiment file is written in TOML. It has these sections and keys; any other key is an error.
Paths are relative to the file. `hwsearch explain KEY` prints what this page says of a key.
`hwsearch explain --format markdown` prints this page.
"""


@dataclass(frozen=True)
class Key:
    """One key of the experiment file.

    Attributes:
        path: `section.key`.
        takes: type, range and default, as half a sentence.
        meaning: its docstring.
    """

    path: str
    takes: str
    meaning: str


@dataclass(frozen=True)
class Section:
    """One section of the experiment file.

    Attributes:
        path: the keys that lead to it; empty for the file itself.
        title: its heading as the file has it.
        variant: what tells it from other sections of the same path, or nothing.
        meaning: its docstring.
    """

    path: str
    title: str
    variant: str
    meaning: str
    keys: tuple[Key, ...]

    @property
    def heading(self) -> str:
        """Title and variant."""
        return f"{self.title} with {self.variant}" if self.variant else self.title


def sections() -> tuple[Section, ...]:
    """Every section, the file itself first."""
    schema = Experiment.model_json_schema()
    return tuple(_sections(schema, schema["$defs"], Section("", _TOP, "", schema["description"], ())))


def explain(key: str | None, *, markdown: bool) -> str:
    """What the reference says of a key or a section; of neither, the whole page or, as text, an overview.

    Raises:
        UserError: no such key; names the nearest one.
    """
    everything = sections()
    if key is None:
        return "\n".join([_PAGE, *map(_markdown, everything)]) if markdown else _overview(everything)
    # Messages about an entry of a list have its number in the path.
    path = ".".join(part for part in key.split(".") if not part.isdigit())
    found = [section for section in everything if section.path == path]
    found += [
        Section(path, f"`{path}`", section.variant, "", (entry,))
        for section in everything
        for entry in section.keys
        if entry.path == path
    ]
    if not path or not found:
        raise UserError(f"an experiment file has no key '{key}'; the nearest is '{_nearest(key, everything)}'")
    return "\n".join(map(_markdown if markdown else _text, found))


def _sections(model: Schema, definitions: Schema, head: Section) -> Iterator[Section]:
    """A section with its keys, then the sections within it."""
    keys, inner = [], []
    for name, field in model["properties"].items():
        path = f"{head.path}.{name}" if head.path else name
        models = _models(field, definitions)
        for found in models:
            title = f"`[[{path}]]`" if field.get("type") == "array" else f"`[{path}]`"
            meaning = "\n\n".join(part["description"] for part in (found, field) if "description" in part)
            variant = _variant(found) if len(models) > 1 else ""
            inner.append((found, Section(path, title, variant or head.variant, meaning, ())))
        if not models:
            required = name in model.get("required", ())
            takes = f"{_takes(field, definitions)}; {_default(field, required=required)}"
            keys.append(Key(path, takes, _meaning(field)))
    yield Section(head.path, head.title, head.variant, head.meaning, tuple(keys))
    for found, section in inner:
        yield from _sections(found, definitions, section)


def _meaning(field: Schema) -> str:
    """What a key stands for, and what each of its choices does where they are registered extensions."""
    meanings = field.get("meanings") or field.get("items", {}).get("meanings", {})
    choices = "\n".join(f"- `{name}`: {says}." for name, says in meanings.items())
    return "\n\n".join(part for part in (field.get("description", ""), choices) if part)


def _models(field: Schema, definitions: Schema) -> list[Schema]:
    """The sections that a key may hold; none if it holds a plain value."""
    if "$ref" in field:
        referred = definitions[field["$ref"].rpartition("/")[2]]
        return [referred] if "properties" in referred else []
    parts = [*field.get("anyOf", ()), *field.get("oneOf", ()), *([field["items"]] if "items" in field else ())]
    return [found for part in parts for found in _models(part, definitions)]


def _variant(model: Schema) -> str:
    """What a section of several kinds has that the other kinds have not."""
    for name, field in model["properties"].items():
        if "const" in field:
            return f"`{name} = {json.dumps(field['const'])}`"
    return f"`{model['required'][0]}`"


def _takes(field: Schema, definitions: Schema) -> str:
    """Type and range."""
    if "$ref" in field:
        return _takes(definitions[field["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in field:
        return " or ".join(_takes(part, definitions) for part in field["anyOf"] if part.get("type") != "null")
    if choices := field.get("enum", [field["const"]] if "const" in field else []):
        return ("one of " if len(choices) > 1 else "") + ", ".join(f"`{json.dumps(choice)}`" for choice in choices)
    if field.get("type") == "array":
        return _takes_list(field, definitions)
    if field.get("type") == "object":
        names = _takes(field["propertyNames"], definitions).removeprefix("one of ") if "propertyNames" in field else "names"
        values = field["additionalProperties"]
        return f"table from {names} to {'values' if values is True else _takes(values, definitions)}"
    kind = "path" if field.get("format") == "path" else _TYPES[field["type"]]
    return " ".join(part for part in (kind, _range(field)) if part)


def _takes_list(field: Schema, definitions: Schema) -> str:
    items = field["prefixItems"][0] if "prefixItems" in field else field["items"]
    least, most = field.get("minItems", 0), field.get("maxItems")
    if most is not None:
        count = f"list of {least}" if least == most else f"list of {least} to {most}"
    else:
        count = f"list of at least {least}" if least else "list"
    return f"{count}, each {_takes(items, definitions)}"


def _range(field: Schema) -> str:
    parts = []
    if "minimum" in field and "maximum" in field:
        parts.append(f"from {field['minimum']:g} to {field['maximum']:.16g}")
    else:
        names = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
        parts.append(" and ".join(f"{words} {field[name]:.16g}" for name, words in names.items() if name in field))
    if "multipleOf" in field:
        parts.append(f"in steps of {field['multipleOf']}")
    if "pattern" in field:
        parts.append(f"that matches `{field['pattern']}`")
    if "maxLength" in field:
        parts.append(f"of at most {field['maxLength']} characters")
    return " ".join(part for part in parts if part)


def _default(field: Schema, *, required: bool) -> str:
    if required:
        return "required"
    return "optional" if field.get("default") is None else f"default `{json.dumps(field['default'])}`"


def _nearest(key: str, everything: tuple[Section, ...]) -> str:
    paths = [path for section in everything for path in (section.path, *(entry.path for entry in section.keys)) if path]
    same = [path for path in paths if path.rpartition(".")[2] == key]
    return (same or get_close_matches(key, paths, n=1, cutoff=0.0))[0]


def _markdown(section: Section) -> str:
    lines = [f"## {section.heading}", "", section.meaning, ""] if section.meaning else []
    for key in section.keys:
        first, *rest = f"{key.takes}. {key.meaning}".splitlines()
        name = key.path.rpartition(".")[2] if section.meaning else key.path
        lines += [f"- `{name}`: {first}", *(f"  {line}" if line else "" for line in rest)]
    return "\n".join([*lines, ""])


def _text(section: Section) -> str:
    blocks = [section.heading, _wrapped(section.meaning, "  ")] if section.meaning else []
    for key in section.keys:
        variant = f" with {section.variant}" if section.variant and not section.meaning else ""
        blocks.append(f"{key.path}{variant}\n{_wrapped(key.takes, '  ')}\n{_wrapped(key.meaning, '    ')}")
    return "\n\n".join(blocks) + "\n"


def _overview(everything: tuple[Section, ...]) -> str:
    """The keys above all sections, and the first sentence of each section."""
    top, *others = everything
    firsts = [re.split(r"(?<=[.])\s", section.meaning)[0] for section in others]
    listed = [f"{section.heading}\n{_wrapped(first, '  ')}" for section, first in zip(others, firsts, strict=True)]
    return "\n".join([_text(top), *listed, "", "'hwsearch explain SECTION' prints the keys of a section.", ""])


def _wrapped(text: str, indent: str) -> str:
    """Text of at most `WIDTH` columns; paragraphs stay apart, and entries of a list begin lines of their own."""
    paragraphs = [
        "\n".join(
            textwrap.fill(
                " ".join(entry.split()),
                WIDTH,
                initial_indent=indent,
                subsequent_indent=indent + ("  " if entry.startswith("- ") else ""),
                break_on_hyphens=False,
            )
            for entry in re.split(r"\n(?=- )", paragraph)
        )
        for paragraph in text.split("\n\n")
    ]
    return "\n\n".join(paragraphs)
