"""Tables and lines read back from what the terminal shows."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Shown:
    """A table: its headings, each in one piece, and its rows."""

    headings: list[str]
    rows: list[list[str]]

    @property
    def records(self) -> list[dict[str, str]]:
        """Each row by heading."""
        return [dict(zip(self.headings, row, strict=True)) for row in self.rows]


def tables(text: str) -> list[Shown]:
    """The tables in a text. Their lines are as long as the rule, and two blanks run down between their columns."""
    lines = text.splitlines()
    found = []
    for place, rule in enumerate(lines):
        if re.fullmatch("─+", rule):
            first, last = place, place + 1
            while first > 0 and len(lines[first - 1]) == len(rule):
                first -= 1
            while last < len(lines) and len(lines[last]) == len(rule):
                last += 1
            spans = _columns([*lines[first:place], *lines[place + 1 : last]])
            head, *rows = ([line[start:end].strip() for start, end in spans] for line in lines[first:place])
            headings = ["".join(parts) for parts in zip(head, *rows, strict=True)]
            body = [[line[start:end].strip() for start, end in spans] for line in lines[place + 1 : last]]
            found.append(Shown(headings, body))
    return found


def said(text: str, word: str) -> list[str]:
    """What a text says behind a word at the beginning of a line, for each such line."""
    return [line.removeprefix(f"{word}:").strip() for line in text.splitlines() if line.startswith(f"{word}:")]


def _columns(lines: list[str]) -> list[tuple[int, int]]:
    """Where columns begin and end."""
    filled = "".join(" " if all(letter == " " for letter in letters) else "x" for letters in zip(*lines, strict=True))
    return [match.span() for match in re.finditer(r"x+(?: x+)*", filled)]
