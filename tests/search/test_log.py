import logging
import re
import resource
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from hwsearch.errors import UserError
from hwsearch.experiment import Fidelity
from hwsearch.search.log import LOG_BYTES, LOG_FILE, OLDER_LOGS, describe, events_logged, search_log
from hwsearch.search.progress import SearchProgress
from hwsearch.view.progress import progress_shown
from hwsearch.workspace import Workspace
from tests.search.synthetic import make_experiment, search
from tests.search.test_record import failed, scored

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00 "


def texts(folder: Path) -> list[str]:
    """The log's lines without their times, which all are in UTC."""
    lines = (folder / LOG_FILE).read_text().splitlines()
    assert all(re.match(TIME, line) for line in lines)
    return [re.sub(TIME, "", line, count=1) for line in lines]


def test_the_log_says_where_it_is_and_what_became_of_each_candidate(tmp_path: Path) -> None:
    experiment = make_experiment(3)
    with search_log(tmp_path) as log:
        summary = search(tmp_path, experiment, progress=lambda progress: log(describe(progress, experiment.search.objectives)))
        log(str(summary))
    found = texts(tmp_path)
    assert found[0].startswith(f"{tmp_path / LOG_FILE} of process ")
    assert found[1] == f"record: {tmp_path / 'record.jsonl'}"
    assert found[2] == "scoring: 0/3 at 'post-training', 0 failed"
    assert re.fullmatch(
        r"0/3 at 'post-training': full precision scored in 0\.\d\d s on \S+: si_snr_improvement_db 12\.000, size_bytes [\d,]+",
        found[3],
    )
    assert re.fullmatch(r"1/3 at 'post-training': candidate 1 \(uniform\) scored in .*", found[4])
    assert found[-1] == f"done: 3 of 3 candidates scored, 0 failed, in {tmp_path}"


def test_failures_and_attempts_are_told() -> None:
    progress = SearchProgress(Fidelity.POST_TRAINING, 4, 1, 9, 5.0, 2, failed(5))
    assert describe(progress, ()) == "4/9 at 'post-training': candidate 5 (test) failed after 0.50 s, attempt 3: boom"
    progress = SearchProgress(Fidelity.POST_TRAINING, 4, 1, 9, 5.0, 2, scored(5))
    assert describe(progress, ["size_bytes", "latency_ms[chip]"]).endswith("scored in 0.50 s on here:1: size_bytes 12")


def test_warnings_from_any_thread_are_shown_and_logged(tmp_path: Path) -> None:
    shown: list[str] = []
    logger = logging.getLogger("hwsearch.search.studies.publisher")
    with search_log(tmp_path) as log, events_logged(log, shown.append), ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: logger.warning("server %d is away", number), range(200)))
    logger.warning("nobody listens any more")
    wanted = {f"server {number} is away" for number in range(200)}
    assert set(shown) == set(texts(tmp_path)[2:]) == wanted
    assert len(shown) == len(wanted)


def test_a_warning_on_a_full_disk_is_shown(tmp_path: Path) -> None:
    shown: list[str] = []

    def full(line: str) -> None:
        raise UserError("no room")

    with events_logged(full, shown.append):
        logging.getLogger("hwsearch").warning("away")
    assert shown == ["away"]


def test_a_search_on_the_command_line_shows_and_logs_warnings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workspace = Workspace(tmp_path, make_experiment(3))
    workspace.folder.mkdir()
    with progress_shown(workspace) as listener, search_log(workspace.folder) as log, events_logged(log, listener.said):
        logging.getLogger("hwsearch.search.studies.publisher").warning("server is away")
    assert texts(workspace.folder)[-1] == "server is away"
    assert capsys.readouterr().err == "server is away\n"


def test_what_ends_a_search_is_the_last_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no base"), search_log(tmp_path):
        raise UserError("no base\nthere")
    assert texts(tmp_path)[-1] == "ended by UserError: no base there"


def test_a_log_that_has_grown_large_is_put_aside_and_the_oldest_goes(tmp_path: Path) -> None:
    for number in range(OLDER_LOGS + 3):
        with search_log(tmp_path) as log:
            log(f"this is {number} " + (LOG_BYTES // 2) * "x")
    paths = [tmp_path / LOG_FILE, *(tmp_path / f"{LOG_FILE}.{age}" for age in range(1, OLDER_LOGS + 1))]
    assert set(tmp_path.iterdir()) == set(paths)
    assert all(path.stat().st_size <= LOG_BYTES for path in paths)
    found = [re.findall(r"this is (\d+)", path.read_text()) for path in paths]
    assert found == [[str(number)] for number in reversed(range(2, OLDER_LOGS + 3))]


@pytest.mark.parametrize("is_full_later", [True, False])
def test_a_line_that_finds_no_room_is_said_once_and_the_log_goes_on(tmp_path: Path, is_full_later: bool) -> None:
    path = tmp_path / LOG_FILE
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE)
    try:
        with search_log(tmp_path) as log:
            limit((path.stat().st_size + 40, hard))
            with pytest.raises(UserError, match=r"search\.log: cannot be written \(File too large\); make room"):
                log("no room for this line")
            if not is_full_later:
                limit((soft, hard))
                log("room again")
    finally:
        limit((soft, hard))
    assert all(re.match(TIME, line) for line in path.read_text().splitlines()[:-1])
    assert is_full_later or texts(tmp_path)[-1] == "room again"


def test_what_the_package_says_of_workers_is_logged_and_from_info_on_told(tmp_path: Path) -> None:
    logger, told = logging.getLogger("hwsearch.executor"), list[str]()
    with search_log(tmp_path) as log, events_logged(log, told.append):
        logger.debug("a worker on node %s died", "far")
        logger.info("the cluster has lost a node:\nfar")
        logging.getLogger("elsewhere").error("not ours")
    logger.warning("behind")
    assert texts(tmp_path)[2:] == ["a worker on node far died", "the cluster has lost a node: far"]
    assert told == ["the cluster has lost a node: far"]
