"""Run folders looked at quickly, as a shell that completes a word needs it. Nothing is validated."""

import json
from pathlib import Path

from hwsearch.experiment import RESERVED_NAMES

EXPERIMENT_FILE = "experiment.json"
_RECORD_FILE = "record.jsonl"


def run_folders(runs: Path) -> list[Path]:
    """Return the folders of runs in a folder, by name; none if it cannot be read."""
    try:
        inside = sorted(runs.iterdir())
        return [folder for folder in inside if folder.name not in RESERVED_NAMES and (folder / EXPERIMENT_FILE).is_file()]
    except OSError:
        return []


def scored_candidates(folder: Path) -> list[int]:
    """Return the numbers of the candidates that a run's record holds scores of; none if it cannot be read."""
    found: set[int] = set()
    try:
        with (folder / _RECORD_FILE).open("rb") as stream:
            for line in stream:
                if b'"scored"' in line:
                    entry = json.loads(line)
                    found.add(int(entry["candidate"]) if entry.get("event") == "scored" else 0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return sorted(found - {0})
    return sorted(found - {0})
