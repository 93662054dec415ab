"""Jobs in new processes, none of which outlives the command."""

import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context, parent_process
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from hwsearch.errors import UserError
from hwsearch.process.interrupts import checkpoint

Result = TypeVar("Result")

LOOK_SECONDS = 0.1
"""Interval at which the waiting process looks for a signal."""

LEAVE_SECONDS = 3.0
"""Time for running jobs to finish after the rest is cancelled."""


def each_result(work: Callable[..., Result], jobs: Sequence[tuple[Any, ...]], processes: int) -> Generator[Result]:
    """Do jobs of an unfinished build as `in_processes`, but in this process if there is only one process or one job."""
    if processes > 1 and len(jobs) > 1:
        ended = "a process that makes data was ended from outside; the same command goes on where it stopped"
        yield from in_processes(work, jobs, processes, ended)
        return
    for job in jobs:
        yield work(*job)


def in_processes(work: Callable[..., Result], jobs: Sequence[tuple[Any, ...]], processes: int, ended: str) -> Generator[Result]:
    """Call `work` with each job's arguments, and yield the results in the order in which they are ready.

    A caller that stops early closes the iterator. This drops waiting jobs, and ends running ones after `LEAVE_SECONDS`.

    Args:
        work: a function of a module.
        jobs: the arguments of each job.
        processes: largest number of processes.
        ended: the error message if a process ends before its job is done.

    Raises:
        UserError: `ended`.
    """
    finished: SimpleQueue[Future[Result]] = SimpleQueue()
    with ProcessPoolExecutor(min(processes, len(jobs)), mp_context=get_context("spawn"), initializer=_end_with_parent) as pool:
        try:
            with deaf_to_interrupts():
                for job in jobs:
                    pool.submit(work, *job).add_done_callback(finished.put)
            for _ in jobs:
                yield _next(finished).result()
        except BrokenProcessPool:
            checkpoint()  # a SIGTERM to all processes ends this one, too
            raise UserError(ended) from None
        finally:
            late = threading.Timer(LEAVE_SECONDS, _end_children)
            late.start()
            pool.shutdown(wait=True, cancel_futures=True)
            late.cancel()


@contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Processes started inside this block never receive Ctrl-C, which a terminal sends to every process of a command.

    A worker interrupted while it passes on a result would keep the lock of the pool's queue, and the pool would wait for ever.
    Child processes inherit the mask of blocked signals; this process receives the signal after the block.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _next(finished: "SimpleQueue[Future[Result]]") -> "Future[Result]":
    while True:
        checkpoint()
        try:
            return finished.get(timeout=LOOK_SECONDS)
        except Empty:
            continue


def _end_children() -> None:
    for child in active_children():
        child.terminate()


def _end_with_parent() -> None:
    """End this process of the pool when the process that started it has been killed."""

    def watch() -> None:
        parent = parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
