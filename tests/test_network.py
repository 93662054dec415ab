"""Nothing leaves this machine: no command connects anywhere else, looks a name up or queues a report, nor do its libraries."""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.sockets import is_loopback
from tests.tiny import HWSEARCH, TRIALS, Tiny

WATCHED = "connect,sendto,sendmsg,sendmmsg"
NAMES_PORT = 53

INTERNET = re.compile(r'sin6?_port=htons\((\d+)\).*?(?:inet_addr\(|inet_pton\(AF_INET6, )"([^"]+)"')
RESOLVER = re.compile(r'sun_path="[^"]*resolve[^"]*"')
"""systemd's, which looks names up for others."""


def at_home(home: Path) -> dict[str, str]:
    """An environment without what continuous integration sets: some libraries report nothing where they see it."""
    return {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), "HOME": str(home), "OMP_NUM_THREADS": "1"}


def reports_in(home: Path) -> list[Path]:
    """What is left below a home folder, but for the caches of Matplotlib and Ray's token."""
    ours = ("matplotlib", "fontconfig", ".ray")
    return [path for path in home.rglob("*") if path.is_file() and not set(ours) & set(path.relative_to(home).parts)]


def connections(command: Sequence[object], home: Path) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run a command with all that it starts; how it ended, and where these sent anything beyond loopback, lookups included."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed; wanted it to see what native code sends")
    home.mkdir()
    seen = home.with_name("strace.txt")
    watch = ["strace", "-f", "--seccomp-bpf", "-qq", "-e", f"trace={WATCHED}", "-e", "signal=none", "-o", str(seen)]
    ended = subprocess.run(
        [*watch, *map(str, command)], env=at_home(home), capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    if "PTRACE" in ended.stderr:
        pytest.skip(f"strace may not watch processes here: {ended.stderr.splitlines()[0]}")
    return ended, [line for line in seen.read_text().splitlines() if _leaves(line)]


def _leaves(line: str) -> bool:
    found = INTERNET.search(line)
    if found is None:
        return RESOLVER.search(line) is not None
    return int(found[1]) == NAMES_PORT or not is_loopback(found[2])


@pytest.mark.parametrize(
    "call",
    [
        "socket.getaddrinfo('collector.invalid', 443)",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'me', ('203.0.113.1', 443))",
        "socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).connect(('2001:db8::1', 443))",
    ],
)
def test_whatever_leaves_is_seen(tmp_path: Path, call: str) -> None:
    ended, left = connections([sys.executable, "-c", f"import socket; {call}"], tmp_path / "home")
    assert left, ended.stderr


def test_a_recording_is_separated_without_a_word_to_anybody(tiny: Tiny, tmp_path: Path) -> None:
    arguments = ["--input", tiny.recording(), "--doa", 45, "--output", tmp_path / "target.wav"]
    ended, left = connections([HWSEARCH, "separate", tiny.model, *arguments], tmp_path / "home")
    assert ended.returncode == 0, ended.stderr
    assert left == []
    assert reports_in(tmp_path / "home") == []


def test_a_search_on_ray_stays_on_this_machine(copied: Tiny, tmp_path: Path) -> None:
    search = ["search", copied.file, "--runs-dir", copied.runs, "--trials", TRIALS + 2, "--workers", 1]
    ended, left = connections([HWSEARCH, *search], tmp_path / "home")
    assert ended.returncode == 0, ended.stderr
    assert "starting Ray" in ended.stderr
    assert left == []
    assert reports_in(tmp_path / "home") == []


@pytest.mark.parametrize("module", ["hwsearch", "hwsearch.files.writing"])
def test_whatever_is_imported_first_switches_reports_off(tmp_path: Path, module: str) -> None:
    """Check the package in a Python that has not loaded ONNX Runtime before."""
    script = f"import {module}, onnxruntime, os; print(os.environ['RAY_USAGE_STATS_ENABLED'])"
    environment = {**at_home(tmp_path), "ORT_DISABLE_TELEMETRY": "0", "RAY_USAGE_STATS_ENABLED": "1"}
    ended = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert ended.stdout == "0\n", ended.stderr
    assert reports_in(tmp_path) == []


def test_the_cost_simulator_loads_nothing_that_reports() -> None:
    script = (
        "import importlib, pkgutil, sys, hw_models\n"
        "for module in pkgutil.walk_packages(hw_models.__path__, 'hw_models.'):\n"
        "    importlib.import_module(module.name)\n"
        "print(sorted({'onnxruntime', 'ray', 'hwsearch'} & set(sys.modules)))\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.stdout == "[]\n", ended.stderr


def test_scripts_that_run_onnx_runtime_load_the_package_first() -> None:
    folder = Path(__file__).parents[1] / "experiments"
    found = 0
    for script in folder.rglob("*.py"):
        packages = [
            alias.name.partition(".")[0]
            for node in ast.walk(ast.parse(script.read_text()))
            if isinstance(node, ast.Import)
            for alias in node.names
        ]
        if "onnxruntime" in packages:
            found += 1
            assert "hwsearch" in packages[: packages.index("onnxruntime")], script
    assert found
