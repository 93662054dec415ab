"""`hwsearch dashboard`: Optuna's dashboard on the study of a run."""

import json
import signal
import socket
import subprocess
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from tests.tiny import HWSEARCH, Tiny, hwsearch, refusal

PATIENCE_SECONDS = 120.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_it_serves_the_study_until_a_signal_ends_it(copied: Tiny) -> None:
    port = free_port()
    server = subprocess.Popen([HWSEARCH, "dashboard", copied.folder, "--port", str(port)], stdout=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                with urlopen(f"http://127.0.0.1:{port}/api/studies") as answer:
                    studies = json.load(answer)
                break
            except URLError:
                assert time.monotonic() < deadline
                assert server.poll() is None
                time.sleep(0.2)
        names = [study["study_name"] for study in studies["study_summaries"]]
        assert names == ["tiny"]
    finally:
        server.send_signal(signal.SIGINT)
    said, _ = server.communicate(timeout=PATIENCE_SECONDS)
    assert server.returncode == 130
    assert said.startswith(f"dashboard: http://127.0.0.1:{port}/ shows {copied.folder / 'optuna-journal.log'}")


def test_without_the_package_it_says_what_to_install(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hwsearch.search.studies.dashboard.find_spec", lambda name: None)
    said = refusal(hwsearch("dashboard", tiny.folder))
    assert said == "optuna-dashboard is not installed; wanted: pip install 'hwsearch[dashboard]'"


def test_a_folder_without_a_study_is_refused(tmp_path: Path) -> None:
    assert refusal(hwsearch("dashboard", tmp_path)).startswith(f"{tmp_path / 'optuna-journal.log'}: no study is there yet")


@pytest.mark.parametrize("content", ["", "not JSON\n", '{"op_code": 1}\n', "[1]\n", "3\n", '{"op_code": 99, "worker_id": "a"}\n'])
def test_a_damaged_study_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "optuna-journal.log"
    path.write_text(content)
    said = refusal(hwsearch("dashboard", tmp_path, "--port", free_port()))
    assert said == f"{path}: damaged; wanted Optuna's journal, which the next start of the search writes anew"


def test_a_port_in_use_is_refused(tiny: Tiny) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = refusal(hwsearch("dashboard", tiny.folder, "--port", port))
    assert said.startswith(f"--port is {port}, which cannot be used (")
