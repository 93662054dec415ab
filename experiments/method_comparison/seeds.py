"""What a seed has reached: a file of its own among the results, with the figures of every mixture.

So seeds may be measured on different machines, and all differences can be tested again from the files.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from bench import Bench, Choice
from judging import FAILED, METRICS, digits_of, figures_path, words_path
from methods import all_choices, untrained_choices
from numpy.typing import NDArray

from hwsearch.errors import UserError
from hwsearch.files.reading import read_json
from hwsearch.files.writing import atomic_write_bytes
from hwsearch.workflow.checks import SHARED

TRAINED, UNTRAINED, CONTROL = "trained", "untrained", "full precision"
"""Kinds of rows."""

_CONDITIONS = ("steps", "test_mixtures", "digits_mixtures", "qat", "shared", "quantization")
"""What the figures of all seeds must have in common."""

_DECIMALS = 4

Values = NDArray[np.float64]


@dataclass
class Cell:
    """A method at a size: what each seed has reached."""

    bytes: list[float] = field(default_factory=list)
    mean_bits: list[float] = field(default_factory=list)
    figures: dict[int, Mapping[str, list[float | None]]] = field(default_factory=dict)
    words: dict[int, list[list[int]]] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)

    def mean(self, metric: str, seeds: Sequence[int]) -> Values:
        """Return a metric of every mixture, mean over seeds; NaN where it has no value."""
        rows = [[np.nan if value is None else value for value in self.figures[seed][metric]] for seed in seeds]
        mean: Values = np.mean(np.array(rows, float), axis=0)
        return mean

    def add(self, row: Mapping[str, Any], seed: int) -> None:
        """Add a row of a seed's file."""
        if FAILED in row:
            self.failed[seed] = row[FAILED]
            return
        self.figures[seed] = {metric: row[metric] for metric in METRICS}
        self.bytes.append(row["bytes"])
        self.mean_bits.append(row["mean_bits"])
        if "words" in row:
            self.words[seed] = row["words"]


Cells = dict[tuple[str, float], Cell]
"""Cells by method and size."""


@dataclass
class Measured:
    """All seeds together.

    Attributes:
        utterances: target utterance of each test mixture.
        digits: target utterance of each mixture of digits.
        made_by: what each seed's figures come from.
        trained: rows after training of their own.
        untrained: rows without it.
        control: full precision, by the number of its own training steps.
    """

    utterances: list[str]
    digits: list[str]
    made_by: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    trained: Cells = field(default_factory=dict)
    untrained: Cells = field(default_factory=dict)
    control: dict[int, Cell] = field(default_factory=dict)


def write_seed(
    bench: Bench, seed: int, sizes: Sequence[float], control: Sequence[int], made_by: Mapping[str, Any], folder: Path
) -> None:
    """Write what the run folder holds of a seed, unless the file already holds more: it may come from another machine."""
    rows = list(_rows(bench, seed, sizes, control))
    path = folder / f"seed-{seed}.json"
    known = read_json(path, "a seed's figures")["rows"] if path.is_file() else []
    if not any(row["kind"] == TRAINED for row in rows) or len(rows) < len(known):
        return
    digits = digits_of(bench.settings).mixtures if bench.settings.digits else []
    content = {
        "seed": seed,
        "made_by": made_by,
        "utterances": [mixture.target.utterance for mixture in bench.test],
        "digits": [mixture.target.utterance for mixture in digits],
        "weights": [site for site, _ in bench.space.free_sites],
        "rows": rows,
    }
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, (json.dumps(content, separators=(",", ":")) + "\n").encode())


def read_seeds(folder: Path) -> Measured:
    """Read the files of all seeds.

    Raises:
        UserError: there is none, or they are of different conditions.
    """
    files = [read_json(path, "a seed's figures") for path in sorted(folder.glob("seed-*.json"))]
    if not files:
        raise UserError(f"{folder}: no seed is measured; wanted `python experiments/method_comparison run` first")
    first = files[0]
    found = Measured(first["utterances"], first["digits"])
    for content in files:
        seed = content["seed"]
        if different := _different(content["made_by"], first["made_by"]):
            raise UserError(
                f"{folder}: seeds {first['seed']} and {seed} differ in {', '.join(different)}; wanted equal conditions"
            )
        found.made_by[seed] = content["made_by"]
        for row in content["rows"]:
            match row["kind"]:
                case kind if kind == TRAINED:
                    cell = found.trained.setdefault((row["method"], row["bits"]), Cell())
                case kind if kind == UNTRAINED:
                    cell = found.untrained.setdefault((row["method"], row["bits"]), Cell())
                case _:
                    cell = found.control.setdefault(row["steps"], Cell())
            cell.add(row, seed)
    return found


def _different(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the conditions that differ. Each machine may train a shared network of its own."""
    provenances = [{name: value for name, value in each["provenance"].items() if name != SHARED} for each in (one, other)]
    found = [name for name in _CONDITIONS if one[name] != other[name]]
    return found if provenances[0] == provenances[1] else [*found, "provenance"]


def _rows(bench: Bench, seed: int, sizes: Sequence[float], control: Sequence[int]) -> Iterator[dict[str, Any]]:
    choices = all_choices(bench, seed, sizes)
    for (method, bits), choice in choices.items():
        yield from _row(bench, choice, seed, bench.steps, {"kind": TRAINED, "method": method, "bits": bits})
    for (method, bits), choice in untrained_choices(bench, choices).items():
        yield from _row(bench, choice, seed, 0, {"kind": UNTRAINED, "method": method, "bits": bits})
    for steps in control:
        yield from _row(bench, Choice(bench.full_precision), seed, steps, {"kind": CONTROL, "steps": steps})


def _row(bench: Bench, choice: Choice, seed: int, steps: int, names: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a row, if its figures are there."""
    key = bench.key(choice, seed, steps)
    if not figures_path(bench, key).is_file():
        return
    size, mean_bits = bench.charge(choice.allocation)
    widths = choice.allocation.by_site
    row = {**names, "widths": [widths[site] for site, _ in bench.space.free_sites], "bytes": size, "mean_bits": mean_bits}
    found = read_json(figures_path(bench, key), "figures")
    row |= {name: value if name == FAILED else _rounded(value) for name, value in found.items()}
    if FAILED not in found and bench.settings.digits and words_path(bench, key).is_file():
        row["words"] = read_json(words_path(bench, key), "word errors")["errors"]
    yield row


def _rounded(values: Sequence[float | None]) -> list[float | None]:
    return [None if value is None else round(value, _DECIMALS) for value in values]
