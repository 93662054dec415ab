"""More threads and processes than a machine can run are refused before any is started."""

from pathlib import Path

import pytest

from hwsearch.errors import UserError
from hwsearch.process import cores
from tests.tiny import hwsearch, refusal, write_tiny


@pytest.mark.parametrize("number", [-1, 0, 9, 10**20])
def test_threads_are_one_to_four_for_each_core(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(cores, "available_cores", lambda: 2)
    cores.check_threads(1)
    cores.check_threads(8)
    with pytest.raises(UserError, match=f"{number} threads; this machine has 2 cores: wanted 1 to 8 threads"):
        cores.check_threads(number)


def test_one_core_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "available_cores", lambda: 1)
    cores.check_processes(64)
    with pytest.raises(UserError, match="65 processes; this machine has 1 core: wanted 1 to 64 processes"):
        cores.check_processes(65)


@pytest.mark.parametrize(
    "command", [("data", "build"), ("train",), ("search",), ("search", "--dry-run"), ("sensitivity",), ("run",), ("evaluate",)]
)
def test_no_command_starts_more_processes_than_the_machine_can_run(tmp_path: Path, command: tuple[str, ...]) -> None:
    file = write_tiny(tmp_path / "tiny.toml")
    message = refusal(hwsearch(*command, file, "--runs-dir", tmp_path / "runs", "--processes", 1_000_000))
    assert message.startswith("1000000 processes; this machine has ")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.toml"]
