"""Mistakes that pydantic finds in a file, in plain words."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

MOST_LETTERS: Final = 80
"""Number of letters of a wrong value that are shown."""

_WANTED: Final[Mapping[str, str]] = {
    "missing": "a value",
    "extra_forbidden": "no such field",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "finite_number": "a finite number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a smaller whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "string_unicode": "text in UTF-8",
    "string_pattern_mismatch": "text that matches {pattern}",
    "string_too_short": "at least {min_length} characters",
    "string_too_long": "at most {max_length} characters",
    "path_type": "a path",
    "tuple_type": "a list",
    "list_type": "a list",
    "too_short": "at least {min_length} entries",
    "too_long": "at most {max_length} entries",
    "dict_type": "a table of keys and values",
    "model_type": "a table of keys and values",
    "model_attributes_type": "a table of keys and values",
    "dataclass_type": "a table of keys and values",
    "enum": "{expected}",
    "literal_error": "{expected}",
    "none_required": "nothing",
    "datetime_type": "a time",
    "datetime_parsing": "a time",
    "datetime_from_date_parsing": "a time",
}
"""Description of the wanted value by pydantic's name of the mistake, with fields for pydantic's values."""


@dataclass(frozen=True)
class Mistake:
    """The first mistake in a file.

    Attributes:
        place: keys and indices that lead to it.
        kind: pydantic's name of the mistake.
        found: the wrong value, or `nothing`.
        wanted: description of a right value; for `value_error`, the whole message of the failed check.
        more: number of other mistakes.
    """

    place: tuple[int | str, ...]
    kind: str
    found: str
    wanted: str
    more: int

    @property
    def key(self) -> str:
        """The place as one word of printable letters."""
        return ".".join(_printable(str(part)) for part in self.place)

    @property
    def others(self) -> str:
        """End of a line with the number of other mistakes, or nothing."""
        return f" ({self.more} more)" if self.more else ""

    @property
    def said(self) -> str:
        """The mistake as part of a line: `place: found this, wanted that`."""
        if self.kind == "json_invalid":
            return f"not valid {self.wanted}"
        said = self.wanted if self.kind == "value_error" else f"found {self.found}, wanted {self.wanted}"
        return f"{self.key}: {said}" if self.place else said


def first_mistake(error: ValidationError) -> Mistake:
    """The first mistake of a validation."""
    problems = _counted(error.errors(include_url=False))
    first = problems[0]
    place = tuple(part for part in first["loc"] if part != "[key]")
    found = "nothing" if first["type"] == "missing" else shown(first["input"])
    return Mistake(place, first["type"], found, _wanted(first), len(problems) - 1)


def shown(value: object) -> str:
    """A value as in its file, cut if it is long."""
    if isinstance(value, dict):
        return "a table of keys and values"
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "nothing"
    text = repr(value)
    return text if len(text) <= MOST_LETTERS else text[:MOST_LETTERS] + "..."


def _printable(text: str) -> str:
    """Text with unprintable letters escaped."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _counted(problems: list[ErrorDetails]) -> list[ErrorDetails]:
    """Problems without the lists that are too short only because pydantic leaves out their wrong entries."""
    places = [problem["loc"] for problem in problems]
    kept = [
        problem
        for problem in problems
        if problem["type"] != "too_short"
        or not any(len(place) > len(problem["loc"]) and place[: len(problem["loc"])] == problem["loc"] for place in places)
    ]
    return kept or problems


def _wanted(problem: ErrorDetails) -> str:
    kind, message = problem["type"], problem["msg"]
    context = {name: f"{value:.10g}" if isinstance(value, float) else value for name, value in problem.get("ctx", {}).items()}
    if kind == "value_error":
        return message.removeprefix("Value error, ")
    if kind == "json_invalid":
        return f"JSON ({context['error']})"
    text = _WANTED.get(kind)
    if text is None:
        plain = message.removeprefix("Input should be ")
        return plain[:1].lower() + plain[1:]
    if text == "{expected}" and " or " in context["expected"]:
        text = "one of {expected}"
    if kind == "string_too_short" and context["min_length"] == 1:
        text = "text that is not blank"
    if kind == "too_short" and context["min_length"] == 1:
        text = "at least 1 entry"
    return text.format(**context)
