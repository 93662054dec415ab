"""Kills parts of real searches at random moments, and checks after each kill what a search promises.

A search runs in a process of its own, on the synthetic problem. Scorers and driver keep a log outside the run folder, every line
of it on the disk before they go on; its order tells what had happened when. A `Fault` kills something while the search runs, or
damages the record as a kill or a power cut may. What must hold:

- what was settled stands in the record ever after, with its metrics, and is never scored again;
- only candidates in flight are scored again, and only once for each time that they were;
- every candidate is counted once, and the wanted number of distinct ones is scored;
- Optuna's mirror holds exactly what is finished, and nothing that runs;
- with one candidate in flight, record and front are those of an undisturbed search.
"""

import json
import multiprocessing
import os
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from hwsearch.executor import LocalExecutor, RayExecutor
from hwsearch.files.reading import digest
from hwsearch.results.candidates import read_candidates
from hwsearch.results.query import query
from hwsearch.search.driver import Task, run_search
from hwsearch.search.progress import SearchProgress
from hwsearch.search.proposer import Plan
from hwsearch.search.record import RECORD_FILE, REFERENCE, Asked, Event, Scored
from hwsearch.search.scoring import ScoringJob
from hwsearch.search.studies.address import parse_address
from hwsearch.search.studies.mirror import MIRROR_FILE
from hwsearch.separator.configuration import Configuration
from tests.search.synthetic import cost, default_seeds, essence, events, make_experiment, proposer_of, score, space_of

if TYPE_CHECKING:  # the drivers of the servers need not be installed
    from tests.servers import Mortal

SECONDS = 0.02
"""What a candidate takes."""

MOST_LINES = 14
"""Lines of the record that a driver may write before a fault comes."""

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.search.faults"])


@dataclass(frozen=True)
class Search:
    """A search that is disturbed.

    Attributes:
        folder: with the run folder and the log in it.
        workers: on Ray; 0: in the driver.
        storage: address of a shared study, if any.
    """

    folder: Path
    sampler: str
    trials: int
    seed: int
    workers: int = 0
    storage: str | None = None

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def record(self) -> Path:
        return self.run / RECORD_FILE

    @property
    def capacity(self) -> int:
        """Candidates in flight."""
        return self.workers + 1 if self.workers > 1 else 1

    def log(self) -> list[dict[str, Any]]:
        """Lines of the log, without one that is being written."""
        path = self.folder / "log"
        content = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in content[: content.rfind("\n") + 1].splitlines()]

    def note(self, **entry: object) -> None:
        """Add a line to the log; it is on the disk when this returns."""
        handle = os.open(self.folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(handle, json.dumps(entry).encode() + b"\n")
            os.fsync(handle)
        finally:
            os.close(handle)


@dataclass(frozen=True)
class WriteLimit:
    """Kills the driver inside a write: after `settled` candidates no file may grow by more than `more` bytes beyond `file`.

    The kernel lets through what fits and ends the process (SIGXFSZ) when it tries to write the rest. It asks no names: for the
    mirror one waits until it is larger than the record by more than that grows with a candidate.
    """

    file: str
    settled: int
    more: int

    def most(self, run: Path) -> int | None:
        """The largest size of a file, once the next write beyond it is one of this file."""
        sizes = [(run / name).stat().st_size for name in (self.file, RECORD_FILE)]
        return None if self.file == MIRROR_FILE and sizes[0] < sizes[1] + 2_000 else sizes[0] + self.more


def drive(search: Search, limit: WriteLimit | None = None) -> None:
    """Search, or go on searching, in this process."""
    experiment = make_experiment(search.trials, search.seed, sampler=search.sampler)
    space = space_of(experiment)
    settled, limited = 0, False

    def on_progress(progress: SearchProgress) -> None:
        nonlocal settled, limited
        if progress.latest is not None:
            search.note(event="settled", candidate=progress.latest.candidate, key=_key_of(search, progress.latest.candidate))
            settled += 1
        most = None if limit is None or limited or settled < limit.settled else limit.most(search.run)
        if most is not None:
            limited = True
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    factory = partial(make_scorer, search)
    with RayExecutor(factory, search.workers) if search.workers else LocalExecutor(factory) as executor:
        summary = run_search(
            Task(experiment, space, cost, search.run),
            executor,
            Plan(tuple(default_seeds(space)), proposer_of(experiment)),
            on_progress,
            storage=None if search.storage is None else parse_address(search.storage),
        )
    if not summary.interrupted:
        search.note(event="done")


def make_scorer(search: Search) -> Callable[[ScoringJob], Mapping[str, float]]:
    return partial(logged_score, search)


def logged_score(search: Search, job: ScoringJob) -> Mapping[str, float]:
    key = digest(job.configuration.allocation.to_json())
    search.note(event="start", key=key, pid=os.getpid())
    found = score(job, SECONDS)
    search.note(event="end", key=key, pid=os.getpid())
    return found


def keys_by_candidate(search: Search) -> dict[int, str]:
    """Hash of each candidate's allocation."""
    experiment = make_experiment(search.trials, search.seed, sampler=search.sampler)
    space = space_of(experiment)
    found = {}
    for event in events(search.run):
        if isinstance(event, Asked) and event.point is not None:
            found[event.candidate] = digest(space.decode(event.point).allocation.to_json())
        elif isinstance(event, Scored):
            found.setdefault(event.candidate, digest(event.allocation))
    return found


def _key_of(search: Search, candidate: int) -> str:
    return keys_by_candidate(search)[candidate]


class Driver:
    """A driver's process, and when to strike."""

    def __init__(self, search: Search, rng: np.random.Generator) -> None:
        self.search = search
        self.rng = rng
        self._process: BaseProcess | None = None

    def start(self, limit: WriteLimit | None = None) -> None:
        self._process = _FORKS.Process(target=drive, args=(self.search, limit))
        self._process.start()

    @property
    def process(self) -> BaseProcess:
        assert self._process is not None
        return self._process

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def lines(self) -> int:
        return self.search.record.read_bytes().count(b"\n") if self.search.record.exists() else 0

    def wait_for_a_moment(self) -> bool:
        """Let it write some lines, and a while more; False if it has ended meanwhile."""
        lines = self.lines + int(self.rng.integers(MOST_LINES))
        while self.lines < lines:
            if not self.process.is_alive():
                return False
            time.sleep(0.002)
        time.sleep(self.rng.uniform(0.0, 2 * SECONDS))
        return self.process.is_alive()

    def kill(self) -> None:
        self.process.kill()
        self.end()

    def end(self) -> int:
        """Wait for it; its exit code, negative for a signal."""
        self.process.join()
        assert self.process.exitcode is not None
        return self.process.exitcode


def kill_driver(driver: Driver) -> bool:
    """SIGKILL at any moment."""
    driver.start()
    struck = driver.wait_for_a_moment()
    driver.kill()
    return struck


def kill_starting_driver(driver: Driver) -> bool:
    """SIGKILL while it starts: before it reads the record, while it replays it, or while it makes the mirror."""
    driver.start()
    time.sleep(driver.rng.uniform(0.0, 0.1))
    struck = driver.process.is_alive()
    driver.kill()
    return struck


def kill_in_write(driver: Driver, file: str) -> bool:
    """The driver dies inside a write to the record or the mirror, which is torn."""
    limit = WriteLimit(file, int(driver.rng.integers(1, MOST_LINES // 2)), int(driver.rng.integers(600)))
    driver.start(limit)
    code = driver.end()
    assert code in (0, -signal.SIGXFSZ), code
    # A write may also have ended just where a line does.
    return code != 0 and not (driver.search.run / file).read_bytes().endswith(b"\n")


def tear(driver: Driver) -> bool:
    """SIGKILL, and then the record's last line is torn, as if it had come in the middle of the write."""
    struck = kill_driver(driver)
    content = driver.search.record.read_bytes() if driver.search.record.exists() else b""
    end = content[:-1].rfind(b"\n") + 1
    # What was settled is on the disk: only what was being written can be torn.
    settled = {entry["candidate"] for entry in driver.search.log() if entry["event"] in ("settled", "finished")}
    last = json.loads(content[end:]) if content.endswith(b"\n") and end else {}
    if last.get("event") == "asked" or (last and last["candidate"] not in settled):
        os.truncate(driver.search.record, int(driver.rng.integers(end + 1, len(content))))
        return struck
    return False


def append_garbage(driver: Driver) -> bool:
    """SIGKILL, and then the record ends in bytes that nobody wrote, as a power cut may leave them."""
    struck = kill_driver(driver)
    if driver.search.record.exists():
        garbage = driver.rng.choice([b"\0" * 4096, driver.rng.bytes(500).replace(b"\n", b"")])
        with driver.search.record.open("ab") as stream:
            stream.write(garbage)
    return struck


def interrupt(driver: Driver) -> bool:
    """Ctrl-C."""
    driver.start()
    struck = driver.wait_for_a_moment()
    if struck:
        os.kill(driver.pid, signal.SIGINT)
    driver.end()
    return struck


def kill_scorer(driver: Driver) -> bool:
    """SIGKILL of a worker on Ray in the middle of a job; the driver goes on."""
    driver.start()
    if not driver.wait_for_a_moment():
        return False
    ours = descendants(driver.pid)
    running: dict[int, str] = {}
    while not running and driver.process.is_alive():
        for entry in driver.search.log():
            if entry["event"] == "start":
                running[entry["pid"]] = entry["key"]
            elif entry["event"] == "end":
                running.pop(entry["pid"], None)
        ours = descendants(driver.pid)
        running = {pid: key for pid, key in running.items() if pid in ours}
    for pid in list(running)[:1]:
        os.kill(pid, signal.SIGKILL)
    driver.end()
    return bool(running)


def kill_ray(driver: Driver, name: str) -> bool:
    """SIGKILL of a process of Ray itself: of its node, or of the head's store. The driver goes on, or is started again."""
    driver.start()
    if not driver.wait_for_a_moment():
        return False
    found = [pid for pid in descendants(driver.pid) if Path(f"/proc/{pid}/comm").read_text().strip() == name]
    for pid in found:
        os.kill(pid, signal.SIGKILL)
    driver.end()
    return bool(found)


def kill_server(driver: Driver, server: "Mortal") -> bool:
    """SIGKILL of the shared study's server, which comes back a while later; the driver goes on.

    A driver that has begun to score, that is: one that finds no server at its start is refused.
    """
    before = len(driver.search.log())
    driver.start()
    while len(driver.search.log()) == before and driver.process.is_alive():
        time.sleep(0.002)
    struck = driver.wait_for_a_moment()
    if struck:
        server.kill()
        time.sleep(driver.rng.uniform(0.0, 10 * SECONDS))
        server.start()
    assert driver.end() == 0
    return struck


def descendants(pid: int) -> set[int]:
    """Processes below one, that are ours to kill."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


@dataclass(frozen=True)
class Fault:
    """Something that ends or disturbs a driver; the function starts one, and says whether it struck while it ran."""

    name: str
    strike: Callable[[Driver], bool]


LOCAL_FAULTS = (
    Fault("driver", kill_driver),
    Fault("driver as it starts", kill_starting_driver),
    Fault("driver in a write of the record", partial(kill_in_write, file=RECORD_FILE)),
    Fault("driver in a write of the mirror", partial(kill_in_write, file=MIRROR_FILE)),
    Fault("torn last line", tear),
    Fault("garbage behind the last line", append_garbage),
    Fault("Ctrl-C", interrupt),
)
RAY_FAULTS = (
    Fault("driver on Ray", kill_driver),
    Fault("scorer on Ray", kill_scorer),
    Fault("node of Ray", partial(kill_ray, name="raylet")),
    Fault("head of Ray", partial(kill_ray, name="gcs_server")),
)


@dataclass
class Campaign:
    """Faults against one search after another, until there were enough.

    Attributes:
        struck: faults by name.
        searches: that were brought to their end.
        repeated: scorings that were begun and lost.
    """

    faults: tuple[Fault, ...]
    workers: int = 0
    storage: str | None = None
    struck: Counter[str] = field(default_factory=Counter)
    searches: int = 0
    repeated: int = 0

    def run(
        self, folder: Path, kills: int, seed: int, trials: int = 30, samplers: tuple[str, ...] = ("posterior", "nsga2")
    ) -> None:
        """Strike so often, every kind of fault in turn."""
        rng = np.random.default_rng(seed)
        while self.struck.total() < kills:
            sampler = samplers[self.searches % len(samplers)]
            search = Search(folder / f"search{self.searches}", sampler, trials, seed + self.searches, self.workers, self.storage)
            search.folder.mkdir(parents=True)
            self._disturb(search, kills, rng)
            self.searches += 1

    def _disturb(self, search: Search, kills: int, rng: np.random.Generator) -> None:
        driver = Driver(search, rng)
        struck = 0
        while not _is_done(search):
            if self.struck.total() < kills:
                fault = min(self.faults, key=lambda fault: self.struck[fault.name])
                hit = fault.strike(driver)
                self.struck[fault.name] += hit
                struck += hit
            else:
                driver.start()
                assert driver.end() == 0
            check_after_fault(search)
        self.repeated += check_whole(search, struck)


def _is_done(search: Search) -> bool:
    return any(entry["event"] == "done" for entry in search.log())


def check_after_fault(search: Search) -> None:
    """Everything settled stands in the record, and nothing of it was begun again."""
    log = search.log()
    found = events(search.run) if search.record.exists() and b"\n" in search.record.read_bytes() else []
    finished = [event.candidate for event in found if not isinstance(event, Asked)]
    assert len(finished) == len(set(finished)), "counted twice"
    lost = {entry["candidate"] for entry in log if entry["event"] in ("settled", "finished")} - set(finished)
    assert not lost, f"candidates {lost} were settled and are lost"
    over: set[str] = set()
    for number, entry in enumerate(log):
        again = entry["event"] == "start" and entry["key"] in over
        history = [(at, line["event"]) for at, line in enumerate(log) if line.get("key") == entry.get("key")]
        assert not again, f"scored again at line {number} of the log: {history}"
        if entry["event"] in ("settled", "finished"):
            over.add(entry["key"])
    keys = keys_by_candidate(search) if found else {}
    for candidate in finished:
        if keys[candidate] not in over:  # killed between the record and the log
            search.note(event="finished", candidate=candidate, key=keys[candidate])


def check_whole(search: Search, faults: int) -> int:
    """Everything that a search promises at its end; returns how many scorings were begun in vain."""
    found = events(search.run)
    scored = [event for event in found if isinstance(event, Scored)]
    allocations = [tuple(event.allocation.items()) for event in scored]
    assert len(scored) == len(set(allocations)) == search.trials + 1
    assert all(event.metrics == score(_job(event)) for event in scored)
    assert sorted(event.candidate for event in scored) == [event.candidate for event in found if isinstance(event, Asked)]
    starts = Counter(entry["key"] for entry in search.log() if entry["event"] == "start")
    repeated = starts.total() - len(starts)
    assert len(starts) == len(scored)
    assert repeated <= faults * search.capacity, f"{repeated} scorings repeated after {faults} faults"
    storage = JournalStorage(JournalFileBackend(str(search.run / MIRROR_FILE)))
    trials = optuna.load_study(study_name="synthetic", storage=storage).trials
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    # With several in flight the reference, which is no trial, need not come first.
    candidates = [event.candidate for event in scored if event.candidate != REFERENCE]
    assert [trial.user_attrs["candidate"] for trial in trials] == candidates
    if search.storage is not None:
        check_shared(search.storage, candidates)
    if search.capacity == 1:
        whole = Search(search.folder / "undisturbed", search.sampler, search.trials, search.seed)
        whole.folder.mkdir()
        drive(whole)
        assert without_attempts(search.run) == without_attempts(whole.run)
        fronts = [query(read_candidates(run)) for run in (search.run, whole.run)]
        assert fronts[0].candidate.tolist() == fronts[1].candidate.tolist()
    return repeated


def without_attempts(run: Path) -> list[dict[str, object]]:
    """The record without what differs from run to run, nor how often a candidate was tried whose worker was killed."""
    return [{key: value for key, value in event.items() if key != "attempts"} for event in essence(run)]


def check_shared(address: str, candidates: list[int]) -> None:
    """The shared study holds every candidate once, and nothing that runs; leaves the server empty for the next search."""
    from tests.servers import load_study, optuna_storage

    trials = load_study(address).trials
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert sorted(trial.user_attrs["candidate"] for trial in trials) == sorted(candidates)
    optuna.delete_study(study_name="synthetic", storage=optuna_storage(address))


def _job(event: Event) -> ScoringJob:
    assert isinstance(event, Scored)
    return ScoringJob(Configuration.of(event.allocation), event.fidelity)
