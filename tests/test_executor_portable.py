"""Files that travel keep their shape below another root."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from hwsearch.executor.portable import Portable, PortableJob, contents, moved, moved_paths, unpack
from hwsearch.executor.remote import RemoteWorker
from hwsearch.experiment import Fidelity, ModuleConfig, Split
from hwsearch.search.nas.sweep import NasFactory
from hwsearch.search.scoring import ScorerFactory, ScoringJob, TrainedFile
from hwsearch.sensitivity.work import WorkFactory
from hwsearch.separator.configuration import Configuration
from tests.tiny import Tiny

ROOT = Path("/elsewhere")
CONFIGURATION = Configuration.of({"x.weight": 4, "mask_head.output": 8})


@dataclass(frozen=True)
class Holder:
    one: Path
    none: Path | None
    number: int


def test_only_paths_are_moved() -> None:
    assert moved_paths(Holder(Path("/a/b"), None, 3), ROOT) == Holder(Path("/elsewhere/a/b"), None, 3)


def test_unpacked_files_lie_where_moved_says(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    file = tmp_path / "here" / "file"
    file.write_bytes(b"content")
    found = contents([file, tmp_path / "absent"])
    unpack(found, tmp_path / "there")
    assert moved(file, tmp_path / "there").read_bytes() == b"content"
    assert list(found) == [file]


def test_a_scorer_reads_nothing_but_what_it_names(tiny: Tiny, tmp_path: Path) -> None:
    factory = tiny.scorer_factory
    files = list(factory.files())
    assert isinstance(factory, Portable)
    assert len(files) == 7 + 2 * len(tiny.mixtures(Split.VALIDATION))
    unpack(contents(files), tmp_path)
    job = ScoringJob(Configuration.of(tiny.events()[3]["allocation"]), Fidelity.POST_TRAINING)
    assert factory.below(tmp_path)()(job) == tiny.events()[3]["metrics"]
    left = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {moved(path, tmp_path) for path in files}, "made again what the driver had made"


def test_a_job_takes_its_start_along_and_leaves_its_weights() -> None:
    job = ScoringJob(CONFIGURATION, Fidelity.SHORT_QAT, Path("/run/new"), TrainedFile(Path("/run/old"), CONFIGURATION))
    assert isinstance(job, PortableJob)
    assert (set(job.files()), list(job.results())) == ({Path("/run/old"), Path("/run/new")}, [Path("/run/new")])
    there = job.below(ROOT)
    assert there.start is not None
    assert (there.output, there.start.path) == (ROOT / "run/new", ROOT / "run/old")
    plain = ScoringJob(CONFIGURATION, Fidelity.POST_TRAINING)
    assert (list(plain.files()), list(plain.results()), plain.below(ROOT)) == ([], [], plain)


def test_weights_travel_to_the_worker_and_back_and_leave_nothing_there(tmp_path: Path) -> None:
    old, new, there = tmp_path / "run" / "old", tmp_path / "run" / "new", tmp_path / "there"
    old.parent.mkdir()
    old.write_bytes(b"old")
    job = ScoringJob(CONFIGURATION, Fidelity.SHORT_QAT, new, TrainedFile(old, CONFIGURATION))

    def train(given: ScoringJob) -> float:
        assert given.start is not None
        assert given.output is not None
        if not given.output.is_file():
            given.output.write_bytes(given.start.path.read_bytes() + b" and trained")
        return 1.0

    worker = RemoteWorker([], there)
    worker._work = train
    result, error, _, _, files = worker.run(job, contents(job.files()))
    assert (result, error, files) == (1.0, None, {new: b"old and trained"})
    new.write_bytes(b"left by an earlier attempt")
    assert worker.run(job, contents(job.files()))[4] == {}
    assert [path for path in there.rglob("*") if path.is_file()] == []
    assert old.read_bytes() == b"old"


def test_jobs_on_one_node_that_start_from_the_same_weights_do_not_take_them_from_each_other(tmp_path: Path) -> None:
    start, there = tmp_path / "run" / "start", tmp_path / "there"
    start.parent.mkdir()
    start.write_bytes(b"start")
    first, second = RemoteWorker([], there), RemoteWorker([], there)

    def job(name: str) -> ScoringJob:
        return ScoringJob(CONFIGURATION, Fidelity.SHORT_QAT, tmp_path / "run" / name, TrainedFile(start, CONFIGURATION))

    def run(worker: RemoteWorker, given: ScoringJob) -> tuple[object, str | None]:
        return worker.run(given, contents(given.files()))[:2]

    def while_the_other_runs(given: ScoringJob) -> bytes:
        assert run(second, job("two")) == (b"start", None)
        return read(given)

    def read(given: ScoringJob) -> bytes:
        assert given.start is not None
        return given.start.path.read_bytes()

    first._work, second._work = while_the_other_runs, read
    assert run(first, job("one")) == (b"start", None)
    assert [path for path in there.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("kind", [ScorerFactory, WorkFactory, NasFactory])
@pytest.mark.parametrize("where", ["/mine/net.py", "my_package.net"])
def test_the_file_of_a_network_of_ones_own_travels_and_a_package_does_not(
    tiny: Tiny, kind: type[ScorerFactory | WorkFactory | NasFactory], where: str
) -> None:
    factory = tiny.scorer_factory
    network = ModuleConfig(module=f"{where}:build", arguments={"channels": 8})
    experiment = factory.experiment.model_copy(update={"separator": network})
    paths = {"base": factory.base, "data_folder": factory.data_folder, "calibration": factory.calibration}
    problem = {"problem": None, "cost": None} if kind is NasFactory else {}
    made = kind(experiment, **paths, pool=Path("/run/pool"), **problem)
    there = made.below(ROOT)
    is_file = where.endswith(".py")
    assert (Path(where) in made.files()) == is_file
    assert there.experiment.separator == network.model_copy(
        update={"module": f"/elsewhere{where}:build" if is_file else f"{where}:build"}
    )
    assert (there.base, there.pool) == (moved(factory.base, ROOT), ROOT / "run/pool")
