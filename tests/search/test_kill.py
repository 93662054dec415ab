"""A driver killed by SIGKILL at random moments, and started again until the search is done."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hwsearch.errors import UserError
from hwsearch.results.candidates import read_candidates
from hwsearch.results.query import query
from hwsearch.search.record import RECORD_FILE, Asked, Scored
from tests.search.synthetic import events, make_experiment, search

TRIALS = 40
SECONDS = 0.02
ROOT = Path(__file__).parents[2]


def start_driver(folder: Path, seconds: float = SECONDS, sampler: str = "nsga2") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.search.synthetic", str(folder), str(TRIALS), str(seconds), sampler],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def lines(folder: Path) -> int:
    path = folder / RECORD_FILE
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for_lines(folder: Path, driver: subprocess.Popen[str], count: int) -> None:
    while lines(folder) < count:
        assert driver.poll() is None, driver.stderr.read() if driver.stderr else ""
        time.sleep(0.005)


@pytest.mark.parametrize("sampler", ["nsga2", "posterior"])
def test_a_driver_killed_again_and_again_scores_every_candidate_once(tmp_path: Path, sampler: str) -> None:
    rng = np.random.default_rng(5)
    folder = tmp_path / "killed"
    for share in (0.1, 0.3, 0.55, 0.8):
        with start_driver(folder, sampler=sampler) as driver:
            wait_for_lines(folder, driver, int(share * 2 * TRIALS))
            time.sleep(rng.uniform(0, 2 * SECONDS))
            driver.send_signal(signal.SIGKILL)
    with start_driver(folder, sampler=sampler) as driver:
        output, errors = driver.communicate()
    assert f"done: {TRIALS} of {TRIALS} candidates scored" in output, errors

    found = events(folder)
    asked = [event for event in found if isinstance(event, Asked)]
    scored = [event for event in found if isinstance(event, Scored)]
    assert sorted(event.candidate for event in scored) == [event.candidate for event in asked]
    assert len({tuple(event.allocation.values()) for event in scored}) == TRIALS + 1

    search(tmp_path / "undisturbed", make_experiment(TRIALS, sampler=sampler))
    fronts = [query(read_candidates(at)) for at in (folder, tmp_path / "undisturbed")]
    assert fronts[0].candidate.tolist() == fronts[1].candidate.tolist()
    assert fronts[0].widths.tolist() == fronts[1].widths.tolist()


def test_a_second_process_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    with start_driver(tmp_path, seconds=0.2) as driver:
        wait_for_lines(tmp_path, driver, 2)
        with pytest.raises(UserError, match=f"process {driver.pid} is searching here"):
            search(tmp_path, make_experiment(TRIALS))
        driver.kill()
    assert search(tmp_path, make_experiment(TRIALS)).scored == TRIALS
