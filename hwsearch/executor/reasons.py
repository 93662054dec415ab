"""Reasons why a job, a worker or Ray failed, each in one line that any file can hold."""

import time
from collections.abc import Callable

from hwsearch.errors import UserError
from hwsearch.executor.interface import Argument, Result

NO_ANSWER = "no answer within"
"""Start of the reason if a job hung in every attempt."""

CONTINUE = "run the same command again to continue"
"""Advice for a failure of Ray."""


def attempt(work: Callable[[Argument], Result], argument: Argument) -> tuple[Result | None, str | None, float]:
    """Run a job; return its result, or its exception in one line, and the seconds it took."""
    start = time.perf_counter()
    try:
        return work(argument), None, time.perf_counter() - start
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - a job is foreign code; what it raises is its outcome, and others go on
        return None, one_error(error), time.perf_counter() - start


def no_answer(time_limit_s: float) -> str:
    """Say that an attempt hung."""
    return f"{NO_ANSWER} {time_limit_s:g} s"


def times(count: int) -> str:
    """Say in words how often something happened."""
    return "once" if count == 1 else f"{count} times"


def one_error(error: BaseException) -> str:
    """Return type and message of an exception in one line."""
    return f"{type(error).__name__}: {one_line(error)}"


def one_line(error: BaseException) -> str:
    """Return the message of an exception in one line. File names in it may hold bytes that are no text."""
    return " ".join(str(error).split())[:500].encode(errors="backslashreplace").decode()
