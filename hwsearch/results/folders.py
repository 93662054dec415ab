"""Run folders looked at quickly, as a shell that completes a word needs it. Nothing is validated."""

import json
from pathlib import Path

from hwsearch.experiment import EXPERIMENT_FILE, RESERVED_NAMES
from hwsearch.search.record import RECORD_FILE, REFERENCE


def run_folders(runs: Path) -> list[Path]:
    """Return the folders of runs in a folder, by name; none if it cannot be read."""
    try:
        inside = sorted(runs.iterdir())
        return [folder for folder in inside if folder.name not in RESERVED_NAMES and (folder / EXPERIMENT_FILE).is_file()]
    except OSError:
        return []


def scored_candidates(folder: Path) -> list[int]:
    """Return the numbers of the candidates that a run's record holds scores of; none if it cannot be read.

    The full-precision base, which no command takes as a candidate, is not among them.
    """
    found: set[int] = set()
    try:
        with (folder / RECORD_FILE).open("rb") as stream:
            for line in stream:
                # Most bytes of a record are in other lines, which need no parsing.
                entry = json.loads(line) if b'"scored"' in line else {}
                if entry.get("event") == "scored":
                    found.add(int(entry["candidate"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # what was read until there is enough to complete a word
    return sorted(found - {REFERENCE})
