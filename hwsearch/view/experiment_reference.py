"""The reference of the experiment file: what each key takes, what it stands for, and its default.

Types, ranges and defaults come from the JSON schema that pydantic makes of the models, meanings from their docstrings.
"""

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import pairwise
from typing import Any

from hwsearch import experiment
from hwsearch.errors import UserError

Schema = Mapping[str, Any]

WIDTH = 80
"""Columns of the text form."""

_TOP = "The whole experiment"
_TYPES = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "text"}
_BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
_PAGE = """\
# The experiment file

An experiment file is written in TOML. It has these sections and keys; any other key is an error.
Paths are relative to the file. `hwsearch explain KEY` prints what this page says of a key.
`hwsearch explain --format markdown` prints this page.
"""


@dataclass(frozen=True)
class Key:
    """One key of the experiment file."""

    path: str
    takes: str
    """Type, range and default."""
    meaning: str


@dataclass(frozen=True)
class Section:
    """One section of the experiment file. The whole file counts as a section, with an empty path."""

    path: str
    title: str
    variant: str
    """The key that tells this section from others with the same path; empty if no other has that path."""
    meaning: str
    keys: tuple[Key, ...]

    @property
    def heading(self) -> str:
        """Title and variant."""
        return f"{self.title} with {self.variant}" if self.variant else self.title


def sections() -> tuple[Section, ...]:
    """Every section, the file itself first."""
    schema = experiment.Experiment.model_json_schema()
    definitions, docstrings = schema["$defs"], _docstrings()
    for model in (schema, *definitions.values()):
        for key, text in docstrings.get(model["title"], {}).items():
            model["properties"][key]["description"] = text
    return tuple(_sections(_inlined(schema, definitions), Section("", _TOP, "", schema["description"], ())))


def _docstrings() -> dict[str, dict[str, str]]:
    """The docstring of each key, by model. Pydantic could read them, too, but that would slow down every import."""
    found: dict[str, dict[str, str]] = {}
    for model in ast.parse(inspect.getsource(experiment)).body:
        if isinstance(model, ast.ClassDef):
            found[model.name] = own = {}
            for base in model.bases:
                own.update(found.get(ast.unparse(base), {}))
            for pair in pairwise(model.body):
                match pair:
                    case ast.AnnAssign(target=ast.Name(id=key)), ast.Expr(value=ast.Constant(value=str(text))):
                        own[key] = inspect.cleandoc(text)
    return found


def _inlined(schema: Any, definitions: Schema) -> Any:
    """A schema with each reference replaced by what it refers to."""
    if isinstance(schema, list):
        return [_inlined(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    referred = definitions[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else {}
    return {name: _inlined(part, definitions) for name, part in (referred | schema).items() if name not in ("$ref", "$defs")}


def explain(key: str | None, *, markdown: bool) -> str:
    """Return the entry of a key or a section. Without a key, return the whole page in Markdown, or an overview as text.

    Raises:
        UserError: there is no such key; the message names the nearest one.
    """
    everything = sections()
    if key is None:
        return "\n".join([_PAGE, *map(_markdown, everything)]) if markdown else _overview(everything)
    # Error messages name an entry of a list by its number, as in `data.corpora.0.kind`.
    path = ".".join(part for part in key.split(".") if not part.isdigit())
    found = []
    for section in everything:
        found += [Section(path, f"`{path}`", section.variant, "", (entry,)) for entry in section.keys if entry.path == path]
    found += [section for section in everything if section.path == path]
    if not path or not found:
        raise UserError(f"an experiment file has no key '{key}'; the nearest is '{_nearest(key, everything)}'")
    return "\n".join(map(_markdown if markdown else _text, found))


def _sections(model: Schema, head: Section) -> Iterator[Section]:
    """A section with its keys, then the sections within it."""
    keys, inner = [], []
    for name, field in model["properties"].items():
        path = f"{head.path}.{name}" if head.path else name
        models = list(_models(field))
        for found in models:
            title = f"`[[{path}]]`" if field.get("type") == "array" else f"`[{path}]`"
            said = (found,) if _is_plain_too(field) else (found, field)
            meaning = "\n\n".join(dict.fromkeys(part["description"] for part in said if "description" in part))
            variant = _variant(found) if len(models) > 1 else head.variant
            inner.append((found, Section(path, title, variant, meaning, ())))
        if not models or _is_plain_too(field):
            default = "optional" if field.get("default") is None else f"default `{json.dumps(field['default'])}`"
            takes = f"{_takes(field)}; {'required' if name in model.get('required', ()) else default}"
            keys.append(Key(path, takes, _meaning(field)))
    yield replace(head, keys=tuple(keys))
    for found, section in inner:
        yield from _sections(found, section)


def _is_plain_too(field: Schema) -> bool:
    """Whether a key takes a plain value as well as a section."""
    choices = field.get("anyOf", field.get("oneOf", ()))
    return any("properties" not in part and part.get("type") != "null" for part in choices) and any(_models(field))


def _meaning(field: Schema) -> str:
    """What a key stands for. If its choices are registered extensions, also what each choice does."""
    meanings = field.get("meanings") or field.get("items", {}).get("meanings", {})
    choices = "\n".join(f"- `{name}`: {says}." for name, says in meanings.items())
    return "\n\n".join(part for part in (field.get("description", ""), choices) if part)


def _models(field: Schema) -> Iterator[Schema]:
    """The sections that a key may hold; none if it holds a plain value."""
    if "properties" in field:
        yield field
    inner = [field["items"]] if "items" in field else field.get("anyOf", field.get("oneOf", ()))
    for part in inner:
        yield from _models(part)


def _variant(model: Schema) -> str:
    """The key that only this variant of a section has."""
    for name, field in model["properties"].items():
        if "const" in field:
            return f"`{name} = {json.dumps(field['const'])}`"
    return f"`{model['required'][0]}`"


def _takes(field: Schema) -> str:
    """Type and range."""
    if "properties" in field:
        return "a table"
    if choices := field.get("anyOf", field.get("oneOf", ())):
        return " or ".join(_takes(part) for part in choices if part.get("type") != "null")
    if choices := field.get("enum", [field["const"]] if "const" in field else []):
        return ("one of " if len(choices) > 1 else "") + ", ".join(f"`{json.dumps(choice)}`" for choice in choices)
    if field.get("type") == "array":
        return _takes_list(field)
    if field.get("type") == "object":
        names = _takes(field["propertyNames"]).removeprefix("one of ") if "propertyNames" in field else "names"
        values = field["additionalProperties"]
        return f"table from {names} to {'values' if values is True else _takes(values)}"
    kind = "path" if field.get("format") == "path" else _TYPES[field["type"]]
    return " ".join([kind, *_range(field)])


def _takes_list(field: Schema) -> str:
    items = field["prefixItems"][0] if "prefixItems" in field else field["items"]
    least, most = field.get("minItems", 0), field.get("maxItems")
    count = f" of at least {least}" if least else ""
    if most is not None:
        count = f" of {least}" if least == most else f" of {least} to {most}"
    values = "value" if count and (most or least) == 1 else "values"
    return f"list{count or ' of'} {values}, each: {_takes(items)}"


def _range(field: Schema) -> Iterator[str]:
    if "minimum" in field and "maximum" in field:
        yield f"from {field['minimum']:g} to {field['maximum']:.16g}"
    elif bounds := [f"{words} {field[name]:.16g}" for name, words in _BOUNDS.items() if name in field]:
        yield " and ".join(bounds)
    if "multipleOf" in field:
        yield f"in steps of {field['multipleOf']}"
    if "maxLength" in field:
        yield f"of at most {field['maxLength']} characters"
    if "pattern" in field:
        yield f"that matches `{field['pattern']}`"


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
    """The keys outside every section, and the first sentence of each section."""
    top, *others = everything
    firsts = [re.split(r"(?<=[.])\s", section.meaning)[0] for section in others]
    listed = [f"{section.heading}\n{_wrapped(first, '  ')}" for section, first in zip(others, firsts, strict=True)]
    return "\n".join([_text(top), *listed, "", "'hwsearch explain SECTION' prints the keys of a section.", ""])


def _wrapped(text: str, indent: str) -> str:
    """Text of at most `WIDTH` columns; paragraphs stay apart, and entries of a list begin lines of their own."""
    return "".join(
        part
        if part.isspace()
        else textwrap.fill(
            " ".join(part.split()),
            WIDTH,
            initial_indent=indent,
            subsequent_indent=indent + ("  " if part.startswith("- ") else ""),
            break_on_hyphens=False,
        )
        for part in re.split(r"(\n\n|\n(?=- ))", text)
    )
