"""Ctrl-C, which a terminal sends to every process of a command, is for the one that waits, not for those that work."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Processes started inside never hear Ctrl-C: the one that starts them does, behind the block, and ends them.

    A worker interrupted while it hands a result over keeps the lock of the pool's queue, and the pool waits for ever. A
    blocked signal stays blocked in the processes started meanwhile.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
