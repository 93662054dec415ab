"""A disk that fills up: the search ends with one line, what it wrote reads back, and it goes on when there is room."""

import re
import resource
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from hwsearch.errors import UserError
from hwsearch.search.log import LOG_FILE, search_log
from hwsearch.search.record import LOCK_FILE, RECORD_FILE, Asked, Scored, read_record
from hwsearch.search.studies.mirror import MIRROR_FILE
from tests.search.synthetic import cut_record, essence, make_experiment, search

TRIALS = 60
ROOT = Path(__file__).parents[2]

DRIVER = """
import sys
import tempfile
tempfile.tempdir = "/tmp"  # not looked for: a file is written to try a folder
from pathlib import Path
from hwsearch.errors import UserError
from tests.search.synthetic import make_experiment, search
try:
    print(search(Path(sys.argv[1]), make_experiment(int(sys.argv[2]))))
except UserError as error:
    print(f"refused: {error}")
"""

ON_SMALL_DISK = """
set -e
mount -t tmpfs -o size=1m tmpfs "$1"
head -c $(( 1048576 - $2 )) /dev/zero > "$1/filler"
"$3" -c "$4" "$1/run" "$5"
cp "$1/run/record.jsonl" "$6/torn.jsonl"
rm "$1/filler"
"$3" -c "$4" "$1/run" "$5"
cp "$1/run/record.jsonl" "$6/record.jsonl"
"""


def drive(folder: Path, before: Callable[[], None] | None = None) -> str:
    command = [sys.executable, "-c", DRIVER, str(folder), str(TRIALS)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, preexec_fn=before)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def limit_files(size: int) -> None:
    """No file of this process may grow larger; a write beyond gives EFBIG, the part that fits is written."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed search."""
    folder = tmp_path_factory.mktemp("whole")
    search(folder, make_experiment(TRIALS))
    return folder


def finished(folder: Path) -> list[dict[str, object]]:
    return [event for event in essence(folder) if event["event"] != "asked"]


@pytest.mark.parametrize("share", [0.001, 0.5])
def test_a_file_that_may_not_grow_ends_the_search_which_then_goes_on(tmp_path: Path, whole: Path, share: float) -> None:
    limit = int(share * (whole / RECORD_FILE).stat().st_size)
    said = drive(tmp_path, partial(limit_files, limit))
    name = f"({re.escape(RECORD_FILE)}|{re.escape(MIRROR_FILE)})"
    assert re.fullmatch(
        rf"refused: {tmp_path}/{name}: cannot be written \(File too large\); .* make room, and the same command goes on", said
    )
    torn = (tmp_path / RECORD_FILE).read_bytes()
    assert len(torn) <= limit
    if share > 0.1:
        assert len(list(read_record(tmp_path)[1])) == torn.count(b"\n") - 1
    assert drive(tmp_path).startswith(f"done: {TRIALS} of {TRIALS}")
    assert finished(tmp_path) == finished(whole)


@pytest.mark.parametrize("room", [40_000, 90_001])
def test_a_full_file_system_ends_the_search_which_then_goes_on(tmp_path: Path, whole: Path, room: int) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    arguments = [str(disk), str(room), sys.executable, DRIVER, str(TRIALS), str(tmp_path)]
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


def test_a_line_that_a_full_disk_tore_is_cut_off(tmp_path: Path, whole: Path) -> None:
    """Throughout the last entries."""
    content = (whole / RECORD_FILE).read_bytes()
    last = content[: content.rfind(b"\n", 0, -1)].rfind(b"\n") + 1
    for cut in range(last, len(content), 97):
        folder = tmp_path / str(cut)
        cut_record(whole, folder, cut)
        search(folder, make_experiment(TRIALS))
        assert finished(folder) == finished(whole)
        assert len([event for event in read_record(folder)[1] if isinstance(event, Scored)]) == TRIALS + 1
        assert len([event for event in read_record(folder)[1] if isinstance(event, Asked)]) == TRIALS + 1


def test_a_lock_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    said = drive(tmp_path, partial(limit_files, 0))
    assert said.startswith(f"refused: {tmp_path / LOCK_FILE}: cannot be locked (File too large); wanted a place with room")


def test_a_log_that_cannot_be_written_ends_the_search_with_one_line(tmp_path: Path) -> None:
    (tmp_path / LOG_FILE).symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"search\.log: cannot be written \(No space left on device\)"), search_log(tmp_path):
        pass
