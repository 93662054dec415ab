"""The runs in a folder of runs, in a table or as JSON."""

import json
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from hwsearch.results.listing import ListedRun, to_json
from hwsearch.view.tables import Column, print_table
from hwsearch.view.terminal import duration, say

_UNITS = ("B", "kB", "MB", "GB", "TB")


def print_runs(runs: Sequence[ListedRun], folder: Path, shared_bytes: int, output_format: str) -> None:
    """Print the runs of a folder, and what they share."""
    if output_format == "json":
        sys.stdout.write(json.dumps([to_json(run) for run in runs], indent=2, allow_nan=False) + "\n")
        return
    if not runs:
        say(f"no runs in {folder}")
        return
    now = datetime.now(UTC)
    cells: dict[str, Callable[[ListedRun], str]] = {
        "run": lambda run: run.name,
        "state": lambda run: run.state,
        "candidates": lambda run: "-" if run.scored is None else f"{run.scored} of {run.wanted}",
        "best_db": lambda run: "-" if run.best_db is None else f"{run.best_db:.2f}",
        "age": lambda run: duration(max(0.0, (now - run.changed).total_seconds())),
        "size": lambda run: size(run.bytes),
    }
    columns = [Column(name, [cell(run) for run in runs], words=name in ("run", "state")) for name, cell in cells.items()]
    shared = f"{size(shared_bytes)} of shared data and speech"
    print_table(columns, f"{len(runs)} run{'s' * (len(runs) != 1)} in {folder}, beside {shared}")
    for run in runs:
        if run.trouble:
            say(f"{run.name}: {run.trouble}")


def size(count: int) -> str:
    """Write a number of bytes as 42 B, 1.5 kB or 23 MB."""
    amount, unit = float(count), 0
    while amount >= 999.5 and unit < len(_UNITS) - 1:
        amount, unit = amount / 1000, unit + 1
    return f"{amount:.1f} {_UNITS[unit]}" if unit and amount < 9.95 else f"{amount:.0f} {_UNITS[unit]}"
