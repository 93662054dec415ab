"""A disk that fills up: the search ends with one line, what it wrote reads back, and it goes on when there is room."""

import multiprocessing
import re
import resource
import subprocess
import sys
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from hwsearch.errors import UserError
from hwsearch.search.log import LOG_FILE, search_log
from hwsearch.search.record import LOCK_FILE, RECORD_FILE, read_record
from hwsearch.search.studies.mirror import MIRROR_FILE
from tests.search.synthetic import finished, make_experiment, search

TRIALS = 60
ROOT = Path(__file__).parents[2]

ON_SMALL_DISK = """
set -e
mount -t tmpfs -o size=1m tmpfs "$1"
head -c $(( 1048576 - $2 )) /dev/zero > "$1/filler"
exec "$3" -m tests.search.test_full_disk "$1" "$4"
"""

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.search.faults"])


def outcome(folder: Path) -> str:
    try:
        return str(search(folder, make_experiment(TRIALS)))
    except UserError as error:
        return f"refused: {error}"


def send_outcome(pipe: Connection, folder: Path, most: int) -> None:
    """No file of this process may grow beyond `most` bytes; a write beyond gives EFBIG, the part that fits is written."""
    tempfile.gettempdir()  # found by writing a file, which must come before the limit
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    pipe.send(outcome(folder))


def drive(folder: Path, most: int) -> str:
    receiver, sender = _FORKS.Pipe(duplex=False)
    process = _FORKS.Process(target=send_outcome, args=(sender, folder, most))
    process.start()
    sender.close()
    said = receiver.recv()
    process.join()
    return said


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed search."""
    folder = tmp_path_factory.mktemp("whole")
    search(folder, make_experiment(TRIALS))
    return folder


@pytest.mark.parametrize("share", [0.001, 0.5])
def test_a_file_that_may_not_grow_ends_the_search_which_then_goes_on(tmp_path: Path, whole: Path, share: float) -> None:
    limit = int(share * (whole / RECORD_FILE).stat().st_size)
    said = drive(tmp_path, limit)
    name = f"({re.escape(RECORD_FILE)}|{re.escape(MIRROR_FILE)})"
    assert re.fullmatch(
        rf"refused: {tmp_path}/{name}: cannot be written \(File too large\); .* make room, and the same command goes on", said
    )
    torn = (tmp_path / RECORD_FILE).read_bytes()
    assert len(torn) <= limit
    if share > 0.1:
        assert len(list(read_record(tmp_path)[1])) == torn.count(b"\n") - 1
    assert outcome(tmp_path).startswith(f"done: {TRIALS} of {TRIALS}")
    assert finished(tmp_path) == finished(whole)


@pytest.mark.parametrize("room", [40_000, 90_001])
def test_a_full_file_system_ends_the_search_which_then_goes_on(tmp_path: Path, whole: Path, room: int) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    arguments = [str(disk), str(room), sys.executable, str(tmp_path)]
    private = ["unshare", "--mount", "--map-root-user"]
    if subprocess.run([*private, "mount", "-t", "tmpfs", "tmpfs", str(disk)], capture_output=True, check=False).returncode:
        pytest.skip("a file system of one's own wants user namespaces, which are not allowed here")
    ended = subprocess.run(
        [*private, "sh", "-c", ON_SMALL_DISK, "sh", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    first, second = ended.stdout.splitlines()
    assert first.startswith("refused: ")
    assert "cannot be written (No space left on device)" in first
    assert second.startswith(f"done: {TRIALS} of {TRIALS}")
    torn = (tmp_path / "torn.jsonl").read_bytes()
    resumed = (tmp_path / "record.jsonl").read_bytes()
    assert resumed.startswith(torn[: torn.rfind(b"\n") + 1]), "nothing that stood there was lost"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / RECORD_FILE).write_bytes(resumed)
    assert finished(tmp_path / "run") == finished(whole)


def test_a_lock_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    said = drive(tmp_path, 0)
    assert said.startswith(f"refused: {tmp_path / LOCK_FILE}: cannot be locked (File too large); wanted a place with room")


def test_a_log_that_cannot_be_written_ends_the_search_with_one_line(tmp_path: Path) -> None:
    (tmp_path / LOG_FILE).symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"search\.log: cannot be written \(No space left on device\)"), search_log(tmp_path):
        pass


if __name__ == "__main__":  # on a disk of its own: search until it is full, make room, and go on
    disk, kept = map(Path, sys.argv[1:])
    for name in ("torn.jsonl", "record.jsonl"):
        sys.stdout.write(f"{outcome(disk / 'run')}\n")
        (kept / name).write_bytes((disk / "run" / RECORD_FILE).read_bytes())
        (disk / "filler").unlink(missing_ok=True)
