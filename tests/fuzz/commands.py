"""A command run in this process under watch: how it ended, what it wrote, and whether that is a good end."""

import faulthandler
import os
import re
import resource
import signal
import sys
import tempfile
import time
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from tests.tiny import PROGRESS, hwsearch

CPU_SECONDS = 10
"""The longest that a command may compute before its work begins."""
WAIT_SECONDS = 10
"""The longest that it may wait."""
LEAST_SHARE = 0.001
"""Of a core; a command that has less waits."""
STUCK_SECONDS = 300
"""A command that heeds no signal for so long ends the whole process."""
MEMORY_BYTES = 2 * 2**30
"""The most memory that it may take beside what this process has."""
LONGEST_LINE = 1020
"""The most characters of an error: what is found in a file is shown in part."""
STUCK_FILE = Path(".hypothesis").absolute() / "fuzz" / f"stuck-{os.getpid()}.txt"
"""What this process did when it was ended."""


class WorkBeganError(BaseException):
    """The command has accepted what it was given, and would work from here on."""


class TooLongError(BaseException):
    """The command takes longer than it may."""


@dataclass(frozen=True)
class Ending:
    """How a command ended; without a code its work began."""

    code: int | None
    stdout: str
    stderr: str
    native: str
    """What libraries wrote to the standard error past Python."""

    def problem(self) -> str | None:
        """What is wrong with this end, or None."""
        lines = [line for line in self.stderr.removesuffix("\n").split("\n") if not PROGRESS.fullmatch(line)]
        refused = self.code == 2
        signs = (self.stdout + self.stderr).replace("\n", "")
        wrong = {
            "a library writes to stderr": self.native,
            "it writes control characters": any(unicodedata.category(sign) == "Cc" for sign in signs),
            "an unknown exit code": self.code not in {None, 0, 2},
            "success beside a warning or a traceback": not refused and re.search(r"Warning: |Traceback", self.stderr),
            "not one line on stderr": refused and (len(lines) != 1 or not lines[0].startswith("hwsearch: error: ")),
            "an answer before the error": refused and self.stdout,
            "a line too long": refused and len(lines[0]) > LONGEST_LINE,
        }
        return next((problem for problem, found in wrong.items() if found), None)


def run_watched(arguments: Sequence[object]) -> Ending:
    """Run a command line; what it raises passes through, as does `TooLongError`."""
    answer = None
    with _native_stderr() as native, _limited_memory(), _watched(arguments), warnings.catch_warnings():
        _warn_as_python_does()
        with suppress(WorkBeganError):
            answer = hwsearch(*arguments)
    if answer is None:
        return Ending(None, "", "", native[0])
    return Ending(answer.code, answer.stdout, answer.stderr, native[0])


def _warn_as_python_does() -> None:
    """pytest collects warnings; a command writes them to stderr."""

    def show(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object) -> None:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno))

    warnings.showwarning = show
    warnings.simplefilter("always")
    for hidden in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", hidden)


@contextmanager
def _native_stderr() -> Iterator[list[str]]:
    """Collect what is written to file descriptor 2; the list has it at the end."""
    said: list[str] = []
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            said.append(file.read().decode(errors="replace"))


@contextmanager
def _limited_memory() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextmanager
def _watched(arguments: Sequence[object]) -> Iterator[None]:
    """Raise `TooLongError` where a command computes or waits for too long; end the process where that does not help."""
    computed = time.process_time()

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal computed
        del frame
        before, computed = computed, time.process_time()
        if number == signal.SIGPROF:
            raise TooLongError(f"it computes for {CPU_SECONDS} seconds")
        # However busy the machine is, a command that does not wait gets a share of it.
        if computed - before < LEAST_SHARE * WAIT_SECONDS:
            raise TooLongError(f"it waits for {WAIT_SECONDS} seconds")

    timers = ((signal.SIGPROF, signal.ITIMER_PROF, CPU_SECONDS), (signal.SIGALRM, signal.ITIMER_REAL, WAIT_SECONDS))
    handlers = {number: signal.signal(number, stop) for number, *_ in timers}
    STUCK_FILE.parent.mkdir(parents=True, exist_ok=True)
    with STUCK_FILE.open("w") as stuck:
        stuck.write(f"{[str(argument) for argument in arguments]}\n")
        stuck.flush()
        faulthandler.dump_traceback_later(STUCK_SECONDS, exit=True, file=stuck)
        for _, timer, seconds in timers:
            signal.setitimer(timer, seconds, seconds)
        try:
            yield
        finally:
            for number, timer, _ in timers:
                signal.setitimer(timer, 0)
                signal.signal(number, handlers[number])
            faulthandler.cancel_dump_traceback_later()
    STUCK_FILE.unlink()
