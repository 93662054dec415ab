"""Storages as the command line meets them: what it refuses, and where credentials may not be found."""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from urllib.parse import urlsplit

import click
import pytest

from tests.search.synthetic import make_experiment, search
from tests.servers import everything_stored, free_port, fresh_database, load_study
from tests.sockets import descendants
from tests.tiny import HWSEARCH, TRIALS, Tiny, hwsearch, refusal, snapshot, write_tiny

RESULTS = 5
ARGUMENTS = ("--workers", "0", "--processes", "1")


@pytest.fixture
def database() -> Iterator[str]:
    with fresh_database() as address:
        yield address


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A small run folder that nothing was published of."""
    search(tmp_path / "run", make_experiment(RESULTS))
    return tmp_path / "run"


def password_of(address: str) -> str:
    found = urlsplit(address).password
    assert found, "the throwaway server of .ci/services has a password"
    return found


def bare(address: str) -> str:
    """The address without its password."""
    return address.replace(f":{password_of(address)}@", "@")


def refused(tmp_path: Path, address: str, command: str = "search") -> str:
    """The one line, and that nothing was begun."""
    experiment = write_tiny(tmp_path / "tiny.toml")
    message = refusal(hwsearch(command, experiment, "--runs-dir", tmp_path / "runs", *ARGUMENTS, "--storage", address))
    assert {Path(name).name for name in snapshot(tmp_path / "runs")} <= {"tiny", "experiment.json"}
    return message


@pytest.mark.parametrize("command", ["search", "run"])
@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("mysql://me:hunter2@127.0.0.1/db", "storage: unknown scheme 'mysql'; wanted postgresql://"),
        (
            "redis://:hunter2@127.0.0.1/0",
            "storage: Redis is not supported, because Optuna runs code that it finds there (pickle);",
        ),
        (
            "postgresql://me:hunter2@127.0.0.1/db",
            "--storage holds a password, which other users of this machine can read; wanted",
        ),
        ("postgresql://127.0.0.1/db?password=hunter2", "--storage holds a password"),
        ("sqlite:////proc/studies.db", "/proc/studies.db: "),
        ("journal:////proc/studies", "/proc/studies: "),
        ("journal:////dev/zero", "/dev/zero: "),
    ],
)
def test_a_wrong_address_is_refused_before_anything_begins(tmp_path: Path, command: str, address: str, said: str) -> None:
    message = refused(tmp_path, address, command)
    assert message.startswith(said)
    assert "hunter2" not in message


def test_a_server_that_is_not_there_is_refused_before_anything_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"127.0.0.1:{free_port()}/db"
    message = refused(tmp_path, f"postgresql://me@{address}", "run")
    assert message.startswith(f"storage postgresql://{address}: ")
    assert "refused" in message
    assert message.endswith("wanted a storage that can be reached and lets this user in")
    monkeypatch.setenv("HWSEARCH_STORAGE", f"postgresql://me:hunter2@{address}")
    line = refusal(hwsearch("search", tmp_path / "tiny.toml", "--runs-dir", tmp_path / "runs", *ARGUMENTS))
    assert line == message


def test_a_wrong_or_missing_password_is_refused_and_not_repeated(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "it wants a password; wanted it in PGPASSWORD, a passfile" in refused(tmp_path, bare(database))
    monkeypatch.setenv("PGPASSWORD", "hunter2")
    message = refused(tmp_path, bare(database))
    assert "it refuses this user or password" in message
    assert "hunter2" not in message


def test_the_driver_judges_port_and_options(tmp_path: Path) -> None:
    assert "colour" in refused(tmp_path, "postgresql://me@127.0.0.1/db?colour=red")
    assert "99999" in refused(tmp_path, "postgresql://me@127.0.0.1:99999/db")


def test_a_missing_driver_is_named_with_what_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    message = refused(tmp_path, "postgresql://127.0.0.1/0")
    assert "the package 'psycopg' does not load" in message
    assert message.endswith("wanted pip install 'hwsearch[storage]'")


def test_an_address_in_the_wrong_place_is_not_repeated(tmp_path: Path) -> None:
    experiment = write_tiny(tmp_path / "tiny.toml")
    message = refusal(hwsearch("search", experiment, "postgresql://me:hunter2@127.0.0.1/0"))
    assert "postgresql://***@127.0.0.1/0" in message
    assert "hunter2" not in message


def test_publish_adds_what_is_missing(run: Path, tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'studies.db'}"
    for _ in range(2):
        answer = hwsearch("publish", run, "--storage", database)
        assert answer.code == 0, answer.stderr
        assert answer.stdout == f"shared study: all {RESULTS} results are in {database}\n"
        assert len(load_study(database).trials) == RESULTS


def test_publish_wants_a_record_and_a_storage(run: Path, tmp_path: Path) -> None:
    assert refusal(hwsearch("publish", run)) == "there is no storage to publish to; wanted --storage ADDRESS, or HWSEARCH_STORAGE"
    assert "record.jsonl" in refusal(hwsearch("publish", tmp_path, "--storage", f"sqlite:///{tmp_path / 'studies.db'}"))
    mirror = run / "optuna-journal.log"
    before = mirror.read_bytes()
    assert "writes this file itself" in refusal(hwsearch("publish", run, "--storage", f"journal:///{mirror}"))
    assert mirror.read_bytes() == before
    assert "unable to open" in refusal(hwsearch("publish", run, "--storage", "sqlite:////proc/studies.db"))
    assert list(tmp_path.iterdir()) == [run]


def test_credentials_are_written_nowhere(copied: Tiny, database: str) -> None:
    """Not by a search that goes on, nor by one whose study is another's, nor by one that publishes later."""
    password = password_of(database)
    command = [HWSEARCH, "search", copied.file, "--runs-dir", copied.runs, *ARGUMENTS]
    environment = os.environ | {"HWSEARCH_STORAGE": database}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert f"shared study: all {TRIALS} results are in postgresql://127.0.0.1" in ended.stderr
    said = ended.stdout + ended.stderr
    assert len(load_study(database, "tiny").trials) == TRIALS
    other = write_tiny(copied.runs.parent / "other.toml", ("seed = 3", "seed = 4"))
    elsewhere = copied.runs.parent / "elsewhere"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HWSEARCH_STORAGE", database)
        message = refusal(hwsearch("search", other, "--runs-dir", elsewhere, *ARGUMENTS))
        assert "study 'tiny' belongs to a search of another experiment" in message
        patch.setenv("HWSEARCH_STORAGE", database)
        answer = hwsearch("publish", copied.folder)
        assert f"all {TRIALS} results" in answer.stdout, answer.stderr
        said += answer.stdout + answer.stderr
    said += message + everything_stored(database)
    assert password not in said
    for folder in (copied.runs, elsewhere):
        for name, content in snapshot(folder).items():
            assert password.encode() not in (content or b""), name


def test_no_process_file_or_log_of_a_search_on_ray_holds_a_credential(copied: Tiny, database: str) -> None:
    """Another address and the password in the environment, and all that Ray starts and writes."""
    with tempfile.TemporaryDirectory(prefix="ray") as ray:  # its sockets want short paths
        secrets = [secret.encode() for secret in (password_of(database), "hunter2")]
        environment = os.environ | {
            "RAY_TMPDIR": ray,
            "HWSEARCH_STORAGE": "postgresql://me:hunter2@127.0.0.1/db",
            "PGPASSWORD": password_of(database),
        }
        environment.pop("HWSEARCH_TEST_POSTGRES")
        arguments = ["--workers", "1", "--processes", "1", "--trials", str(TRIALS + 4), "--storage", bare(database)]
        ended = subprocess.Popen(
            [HWSEARCH, "search", copied.file, "--runs-dir", copied.runs, *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        seen: dict[tuple[int, str], bytes] = {}
        with ended:
            while ended.poll() is None:
                seen |= shown_by_the_system(descendants(ended.pid) - {ended.pid})
                time.sleep(0.05)
            said = ended.stdout.read() if ended.stdout else b""
        assert ended.returncode == 0, said
        assert f"all {TRIALS + 4} results".encode() in said
        logs = {str(path): path.read_bytes() for path in Path(ray).rglob("*") if path.is_file()}
        assert any("raylet" in name for name in logs)
        assert any(b"raylet" in content for content in seen.values())
        assert any(b"HOME=" in content for content in seen.values())
        kept = {name: content or b"" for name, content in snapshot(copied.runs).items()}
        for where, content in [*seen.items(), *logs.items(), *kept.items(), ("output", said)]:
            assert not [secret for secret in secrets if secret in content], where


def shown_by_the_system(processes: Iterable[int]) -> dict[tuple[int, str], bytes]:
    """Command lines and environments."""
    found = {}
    for process, name in product(processes, ("cmdline", "environ")):
        with contextlib.suppress(OSError):  # ended meanwhile
            found[process, name] = Path(f"/proc/{process}/{name}").read_bytes()
    # One that has ended and waits to be reaped shows nothing any more.
    return {what: content for what, content in found.items() if content}


@pytest.mark.parametrize("command", ["search", "status", "sensitivity"])
def test_whatever_the_command_the_variable_is_passed_on_to_nobody(
    tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HWSEARCH_STORAGE", "postgresql://me:hunter2@127.0.0.1:1/db")
    refusal(hwsearch(command, tmp_path / "nothing"))
    assert "HWSEARCH_STORAGE" not in os.environ


@pytest.mark.parametrize("where", ["variable", "passfile", "prompt"])
def test_a_password_may_come_from_elsewhere(
    run: Path, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    password, parts, address = password_of(database), urlsplit(database), bare(database)
    asked: list[str] = []

    def answer(question: str, *, hide_input: bool, err: bool) -> str:
        assert hide_input
        assert err
        asked.append(question)
        return password

    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr(click, "prompt", answer)
    if where == "variable":
        monkeypatch.setenv("PGPASSWORD", password)
    elif where == "passfile":
        passfile = tmp_path / "passwords"
        passfile.write_text(f"{parts.hostname}:{parts.port}:*:{parts.username}:{password}\n")
        passfile.chmod(0o600)
        address += f"?passfile={passfile}"
    done = hwsearch("publish", run, "--storage", address)
    assert f"all {RESULTS} results" in done.stdout, done.stderr
    assert asked == ([f"password for postgresql://127.0.0.1:{parts.port}{parts.path}"] if where == "prompt" else [])
    assert "PGPASSWORD" not in os.environ
