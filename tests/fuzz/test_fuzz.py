"""Every command on damaged files: exit code 0, or 2 with one line on stderr, before ten seconds are over.

The long form takes HWSEARCH_FUZZ_SECONDS, an hour if that is not set, and begins with the examples that failed before:

    HWSEARCH_FUZZ_SECONDS=600 python -m pytest -m slow tests/fuzz
"""

import os
import time
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.database import DirectoryBasedExampleDatabase

from tests.fuzz.arguments import command_lines
from tests.fuzz.bench import Bench, Case
from tests.fuzz.commands import run_watched
from tests.fuzz.surfaces import SURFACES
from tests.fuzz.things import Odd, Thing

ANY = settings(deadline=None, suppress_health_check=list(HealthCheck), phases=(Phase.reuse, Phase.generate))
"""A failing case tells its own story: it is not made smaller, which takes minutes."""
SHORT = settings(ANY, max_examples=2)
SECONDS_EACH = float(os.environ.get("HWSEARCH_FUZZ_SECONDS", "3600")) / (len(SURFACES) + 1)
COMMAND_LINES = "command lines"
FAILED = Path(".hypothesis").absolute() / "fuzz"
"""Examples that failed in the long form."""


@pytest.mark.parametrize("name", SURFACES)
def test_what_is_not_damaged_is_accepted(bench: Bench, name: str) -> None:
    assert bench.check(SURFACES[name].case_of(bench)) != 2


@pytest.mark.parametrize("name", SURFACES)
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(bench: Bench, name: str) -> None:
    bench.check(SURFACES[name].case_of(bench, Thing(Odd.FIFO)))


@pytest.mark.parametrize("name", [*SURFACES, COMMAND_LINES])
def test_every_command_ends_well_on_what_is_damaged(bench: Bench, name: str) -> None:
    _damage(bench, name, SHORT)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SURFACES, COMMAND_LINES])
def test_every_command_ends_well_for_long(bench: Bench, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    start, before = time.monotonic(), bench.cases
    failed = DirectoryBasedExampleDatabase(FAILED / name)
    again = settings(ANY, max_examples=50, derandomize=False, database=failed)
    try:
        while time.monotonic() - start < SECONDS_EACH:
            _damage(bench, name, again)
    finally:
        with capsys.disabled():
            print(f"\n{name}: {bench.cases - before} cases in {time.monotonic() - start:.0f} s")  # noqa: T201


def _damage(bench: Bench, name: str, how: settings) -> None:
    @how
    @given(command_lines() if name == COMMAND_LINES else SURFACES[name].cases(bench))
    def ends_well(case: Case) -> None:
        bench.check(case)

    ends_well()


def test_a_warning_beside_an_answer_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hwsearch.view.targets.print_targets", lambda: warnings.warn("look", RuntimeWarning, stacklevel=1))
    assert run_watched(("targets",)).problem() == "success beside a warning or a traceback"
