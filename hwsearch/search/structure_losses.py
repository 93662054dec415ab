"""What leaving something out costs in quality: one option at a time, measured like a candidate.

A loss is the relative noise 10^(drop in dB / 10) - 1, as those of sites are. The drop is that against the whole network, both
with weights and activations at the widest widths of the space.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from hw_models.wording import first_mistake
from hwsearch.errors import UserError
from hwsearch.executor import Executor, run_jobs
from hwsearch.experiment import Fidelity
from hwsearch.files.seals import read_sealed_cache, write_sealed_json
from hwsearch.search.objectives import QUALITY
from hwsearch.search.scoring import ScoringJob
from hwsearch.search.space import Point, SearchSpace

STRUCTURE_FILE = "structure-losses.json"
"""File of a run folder with the losses."""

StructureLosses = Mapping[str, Mapping[int, float]]
"""Losses by option and by what is kept of it. The whole loses nothing."""

_Finite = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
_LOSSES: TypeAdapter[dict[str, dict[int, float]]] = TypeAdapter(dict[str, dict[int, _Finite]])
_MEND = "delete it and it is measured again"

MakeExecutor = Callable[[], Executor[ScoringJob, Mapping[str, float]]]


def ensure_structure_losses(
    space: SearchSpace,
    fidelity: Fidelity,
    path: Path,
    key: str,
    make_executor: MakeExecutor,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> StructureLosses:
    """Return the losses of every option, and of every value but the whole, after measuring them if they are not in the file.

    Args:
        space: the space, with options.
        fidelity: how the search first scores candidates.
        path: the file, which is replaced if it was measured with another key.
        key: hash of all that scores depend on.
        make_executor: opens the executor of the search; only called if the losses are missing.
        progress: called after each configuration.

    Raises:
        UserError: a damaged file, or a configuration that cannot be scored.
    """
    if (before := kept_structure_losses(space, path, key)) is not None:
        return before
    points = list(_points(space))
    with make_executor() as executor:
        scores: dict[int, float] = {}
        for outcome in run_jobs(executor, [ScoringJob(space.decode(point), fidelity) for _, _, point in points]):
            if outcome.result is None:
                name, kept, _ = points[outcome.key]
                what = f"'{name}' kept at {kept}" if name else "the whole network"
                raise UserError(f"search.structure: {what} cannot be scored ({outcome.error})")
            scores[outcome.key] = outcome.result[QUALITY]
            progress(len(scores), len(points))
    losses: dict[str, dict[int, float]] = {name: {} for name, _ in space.options}
    for place, (name, kept, _) in enumerate(points[1:], start=1):
        losses[name][kept] = max(0.0, 10 ** ((scores[0] - scores[place]) / 10) - 1)
    losses = {name: _falling(found) for name, found in losses.items()}
    write_sealed_json(path, {"key": [key, _values(space)], "losses": losses})
    return losses


def kept_structure_losses(space: SearchSpace, path: Path, key: str) -> StructureLosses | None:
    """Return the losses in the file; None if it is missing, or measured with another key or other options.

    Raises:
        UserError: a damaged file.
    """
    content, values = read_sealed_cache(path, "the losses of what may be left out", _MEND), _values(space)
    if content is None or content.get("key") != [key, values]:
        return None
    try:
        losses = _LOSSES.validate_python(content.get("losses"))
    except ValidationError as error:
        raise UserError(f"{path}: {first_mistake(error).said}; {_MEND}") from None
    if {name: [*kept] for name, kept in losses.items()} != {name: kept[:-1] for name, kept in values.items()}:
        raise UserError(f"{path}: holds losses of other options; {_MEND}")
    return losses


def _values(space: SearchSpace) -> dict[str, list[int]]:
    return {name: list(kept) for name, kept in space.options}


def _points(space: SearchSpace) -> list[tuple[str, int, Point]]:
    """List the whole network at its widest, and the same with each option at each value but the whole."""
    whole = tuple(count - 1 for count in space.shape)
    found: list[tuple[str, int, Point]] = [("", 0, whole)]
    for place, (name, values) in enumerate(space.options, start=len(space.free)):
        found += [(name, kept, (*whole[:place], index, *whole[place + 1 :])) for index, kept in enumerate(values[:-1])]
    return found


def _falling(losses: Mapping[int, float]) -> dict[int, float]:
    """Raise losses so that keeping less never seems to lose less; differences of small ones are mostly noise."""
    found, most = {}, 0.0
    for kept in sorted(losses, reverse=True):
        most = max(most, losses[kept])
        found[kept] = most
    return dict(sorted(found.items()))
