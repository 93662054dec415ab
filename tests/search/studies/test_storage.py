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

import pytest

from tests.servers import everything_stored, free_port, fresh_database, load_study
from tests.sockets import descendants
from tests.tiny import HWSEARCH, TRIALS, Tiny, hwsearch, refusal, snapshot, write_tiny

KINDS = ("postgresql", "redis")
ARGUMENTS = ("--workers", "0", "--processes", "1")


@pytest.fixture(params=KINDS)
def database(request: pytest.FixtureRequest) -> Iterator[str]:
    with fresh_database(request.param) as address:
        yield address


def password_of(address: str) -> str:
    found = urlsplit(address).password
    assert found, "the throwaway servers of .ci/services have passwords"
    return found


def refused(tmp_path: Path, address: str, command: str = "search") -> str:
    """The one line, and that nothing was begun."""
    experiment = write_tiny(tmp_path / "tiny.toml")
    message = refusal(hwsearch(command, experiment, "--runs-dir", tmp_path / "runs", *ARGUMENTS, "--storage", address))
    assert {Path(name).name for name in snapshot(tmp_path / "runs")} <= {"tiny", "experiment.json"}
    return message


@pytest.mark.parametrize("command", ["search", "run"])
def test_an_unknown_scheme_is_refused(tmp_path: Path, command: str) -> None:
    message = refused(tmp_path, "mysql://me:hunter2@127.0.0.1/db", command)
    assert message.startswith("storage: unknown scheme 'mysql'; wanted postgresql://")
    assert "hunter2" not in message


@pytest.mark.parametrize("scheme", KINDS)
@pytest.mark.parametrize("command", ["search", "run"])
def test_a_server_that_is_not_there_is_refused_before_anything_begins(tmp_path: Path, scheme: str, command: str) -> None:
    port = free_port()
    message = refused(tmp_path, f"{scheme}://me:hunter2@127.0.0.1:{port}/0", command)
    assert message.startswith(f"storage {scheme}://127.0.0.1:{port}/0: ")
    assert "refused" in message
    assert message.endswith("wanted a server that answers there and lets this user in")
    assert "hunter2" not in message


def test_a_wrong_password_is_refused_and_not_repeated(tmp_path: Path, database: str) -> None:
    message = refused(tmp_path, database.replace(password_of(database), "hunter2"))
    assert "it refuses this user or password" in message
    assert "hunter2" not in message


def test_an_option_that_the_driver_does_not_know_is_refused(tmp_path: Path) -> None:
    message = refused(tmp_path, "postgresql://me:hunter2@127.0.0.1/db?colour=hunter2")
    assert "colour" in message
    assert "hunter2" not in message


@pytest.mark.parametrize(("scheme", "package"), [("postgresql", "psycopg"), ("redis", "redis")])
def test_a_missing_driver_is_named_with_what_installs_it(
    tmp_path: Path, scheme: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    message = refused(tmp_path, f"{scheme}://127.0.0.1/0")
    assert f"the package '{package}' does not load" in message
    assert message.endswith("wanted pip install 'hwsearch[storage]'")


def test_an_address_in_the_wrong_place_is_not_repeated(tmp_path: Path) -> None:
    experiment = write_tiny(tmp_path / "tiny.toml")
    message = refusal(hwsearch("search", experiment, "redis://:hunter2@127.0.0.1/0"))
    assert "redis://***@127.0.0.1/0" in message
    assert "hunter2" not in message


def test_credentials_are_written_nowhere(copied: Tiny, database: str) -> None:
    """Not by a search that goes on, nor by one whose study is another's, on the command line or in the environment."""
    password = password_of(database)
    command = [HWSEARCH, "search", copied.file, "--runs-dir", copied.runs, *ARGUMENTS]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("HWSEARCH")}
    on_command_line = database.startswith("postgresql")
    ended = subprocess.run(
        [*command, *(["--storage", database] if on_command_line else [])],
        env=plain if on_command_line else plain | {"HWSEARCH_STORAGE": database},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"shared study: all {TRIALS} results are in {urlsplit(database).scheme}://127.0.0.1" in ended.stderr
    said = ended.stdout + ended.stderr
    assert len(load_study(database, "tiny").trials) == TRIALS
    other = write_tiny(copied.runs.parent / "other.toml", ("seed = 3", "seed = 4"))
    elsewhere = copied.runs.parent / "elsewhere"
    message = refusal(hwsearch("search", other, "--runs-dir", elsewhere, *ARGUMENTS, "--storage", database))
    assert "study 'tiny' belongs to a search of another experiment" in message
    said += message + everything_stored(database)
    assert password not in said
    for folder in (copied.runs, elsewhere):
        for name, content in snapshot(folder).items():
            assert password.encode() not in (content or b""), name


def test_no_process_file_or_log_of_a_search_on_ray_holds_a_credential(copied: Tiny) -> None:
    """The address on the command line, another one and a password in the environment, and all that Ray starts and writes."""
    with (
        fresh_database("postgresql") as address,
        tempfile.TemporaryDirectory(prefix="ray") as ray,
    ):  # its sockets want short paths
        plain = {name: value for name, value in os.environ.items() if not name.startswith("HWSEARCH")}
        environment = plain | {
            "RAY_TMPDIR": ray,
            "HWSEARCH_STORAGE": "redis://:hunter2@127.0.0.1/0",
            "PGPASSWORD": "hunter3",
        }
        secrets = [secret.encode() for secret in (password_of(address), "hunter2", "hunter3")]
        arguments = ["--workers", "1", "--processes", "1", "--trials", str(TRIALS + 4), "--storage", address]
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
    monkeypatch.setenv("HWSEARCH_STORAGE", "redis://:hunter2@127.0.0.1:1/0")
    refusal(hwsearch(command, tmp_path / "nothing"))
    assert "HWSEARCH_STORAGE" not in os.environ


def test_the_password_may_come_from_where_psycopg_looks(copied: Tiny) -> None:
    with fresh_database("postgresql") as address:
        password, parts = password_of(address), urlsplit(address)
        bare = address.replace(f":{password}@", "@")
        passfile = copied.runs.parent / "passwords"
        passfile.write_text(f"{parts.hostname}:{parts.port}:*:{parts.username}:{password}\n")
        passfile.chmod(0o600)
        command = [HWSEARCH, "search", copied.file, "--runs-dir", copied.runs, *ARGUMENTS, "--storage"]
        for given, environment in (
            (bare, os.environ | {"PGPASSWORD": password}),
            (f"{bare}?passfile={passfile}", dict(os.environ)),
        ):
            ended = subprocess.run([*command, given], env=environment, capture_output=True, text=True, check=True)
            assert f"all {TRIALS} results" in ended.stderr
