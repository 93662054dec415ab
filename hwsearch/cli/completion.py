"""What a shell completes: experiments, runs, candidates and targets."""

from pathlib import Path

import click
from click.shell_completion import CompletionItem

Items = list[CompletionItem]

_EXPERIMENTS, _RUNS = Path("experiments"), Path("runs")
_FILES = "file"
"""Click's type of an item that has the shell complete paths."""


def experiments(context: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
    """Complete TOML files, here and in `experiments`, and any path."""
    del context, parameter
    folder = Path(incomplete) if incomplete.endswith("/") else Path(incomplete).parent
    places = [folder] if "/" in incomplete else [folder, _EXPERIMENTS]
    found = [str(path) for place in places for path in sorted(place.glob("*.toml"))]
    return _beginning(found, incomplete) or [CompletionItem(incomplete, type=_FILES)]


def runs(context: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
    """Complete the run folders in `runs`, or in the folder that was begun, and any path."""
    del context, parameter
    from hwsearch.results.folders import run_folders

    folder = Path(incomplete) if incomplete.endswith("/") else Path(incomplete).parent
    places = [folder] if "/" in incomplete else [_RUNS, folder]
    found = [str(run) for place in places for run in run_folders(place)]
    return _beginning(found, incomplete) or [CompletionItem(incomplete, type=_FILES)]


def candidates(context: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
    """Complete the scored candidates of the run that stands on the command line."""
    del parameter
    from hwsearch.results.folders import scored_candidates

    # Where an option lacks its value, Click leaves the arguments before it unparsed.
    given = [context.params.get(name) for name in ("run", "subject")] + context.args
    folder = next((Path(place) for place in given if place), None)
    numbers = [] if folder is None else scored_candidates(folder)
    return _beginning(list(map(str, numbers)), incomplete)


def targets(context: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
    """Complete the built-in targets, and any path."""
    del context, parameter
    from hw_models.target import built_in_targets

    return _beginning(list(built_in_targets()), incomplete) or [CompletionItem(incomplete, type=_FILES)]


def _beginning(names: list[str], incomplete: str) -> Items:
    return [CompletionItem(name) for name in dict.fromkeys(names) if name.startswith(incomplete)]
