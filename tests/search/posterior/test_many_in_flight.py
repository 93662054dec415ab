"""Several proposals at once, where many candidates are being scored."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from hwsearch.executor import LocalExecutor
from hwsearch.search.record import RECORD_FILE, Asked, Scored
from hwsearch.search.samplers.posterior import RUNNING_PER_PROPOSAL
from hwsearch.search.scoring import ScoringJob
from hwsearch.search.space import uniform_seeds
from tests.search.synthetic import cut_record, essence, events, make_experiment, make_scorer, posterior, quality, search, space_of

IN_FLIGHT = 4 * RUNNING_PER_PROPOSAL
TRIALS = 220


class ManyInFlight(LocalExecutor[ScoringJob, Mapping[str, float]]):
    """Finished in the order they were submitted."""

    capacity = IN_FLIGHT


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed search."""
    folder = tmp_path_factory.mktemp("whole")
    search(folder, make_experiment(TRIALS, sampler="posterior"), ManyInFlight(make_scorer))
    return folder


def test_a_candidate_carries_what_was_proposed_with_it_and_that_comes_next(whole: Path) -> None:
    asked = [event for event in events(whole) if isinstance(event, Asked)]
    carrying = [number for number, event in enumerate(asked) if event.state]
    assert max(len(asked[number].state["behind"]) for number in carrying) == (IN_FLIGHT - 1) // RUNNING_PER_PROPOSAL - 1
    for number in carrying:
        behind = [tuple(point) for point in asked[number].state["behind"]]
        followed = [event.point for event in asked[number + 1 : number + 1 + len(behind)]]
        assert followed == behind[: len(followed)]
    points = [event.point for event in asked]
    assert len(points) == len(set(points))


def test_a_search_with_many_in_flight_cut_at_any_byte_goes_on_as_if_undisturbed(tmp_path: Path, whole: Path) -> None:
    experiment = make_experiment(TRIALS, sampler="posterior")
    length = (whole / RECORD_FILE).stat().st_size
    for cut in np.random.default_rng(2).integers(length // 8, length, 5).tolist():
        folder = tmp_path / f"cut{cut}"
        cut_record(whole, folder, cut)
        search(folder, experiment, ManyInFlight(make_scorer))
        scored = [[event for event in essence(at) if event["event"] != "asked"] for at in (folder, whole)]
        assert scored[0] == scored[1], f"cut at byte {cut}"


def test_few_in_flight_are_proposed_one_by_one(tmp_path: Path) -> None:
    class Few(ManyInFlight):
        capacity = 2 * RUNNING_PER_PROPOSAL - 1

    search(tmp_path, make_experiment(110, sampler="posterior"), Few(make_scorer))
    assert not any(event.state for event in events(tmp_path) if isinstance(event, Asked))
    assert sum(event.strategy == "prior-corrected" for event in events(tmp_path) if isinstance(event, Scored)) > 90


def test_proposals_at_once_are_new_and_differ() -> None:
    space = space_of(make_experiment(10, sampler="posterior"))
    engine = posterior(space, 0)._engine
    engine.refer(12.0)
    known = {seed.point for seed in uniform_seeds(space)}
    for point in known:
        engine.finish(point, quality(space.decode(point).allocation)["si_snr_improvement_db"])
    for count in (1, 2, 31):
        points = engine.propose_several(count, np.random.default_rng(count))
        assert len(points) == len(set(points)) == count
        assert not known & set(points)
    assert engine.propose(np.random.default_rng(5)) == engine.propose_several(1, np.random.default_rng(5))[0]
