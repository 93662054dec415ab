"""Ctrl-C and SIGTERM: once they end a command in good order, twice at once."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType


class _Stopping:
    """How this process is being stopped: by one signal in good order, by another one at once."""

    code: int | None = None
    """The exit code of the first signal."""

    @classmethod
    def begin(cls, code: int, how: str) -> None:
        """End at once where this process is stopping already, else raise `KeyboardInterrupt`."""
        if cls.code is not None:
            with suppress(OSError):  # nobody may read it any more
                os.write(2, b"\nhwsearch: ended at once; the same command goes on where it stopped\n")
            os._exit(code)
        cls.code = code
        with suppress(OSError):
            os.write(2, f"\nstopping; {how} to end at once\n".encode())
        raise KeyboardInterrupt


def stop_code() -> int:
    """The exit code of a command that `KeyboardInterrupt` has ended: 143 where SIGTERM raised it, else 130."""
    return 130 if _Stopping.code is None else _Stopping.code


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Inside, SIGTERM is what Ctrl-C is: the first one raises `KeyboardInterrupt`, another one ends the process at once.

    Where SIGTERM is ignored it stays so. Processes forked from this one die of it.
    """
    main = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        if os.getpid() != main:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        else:
            _Stopping.begin(143, "send it again")

    before = signal.getsignal(signal.SIGTERM)
    if before is signal.SIG_IGN or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _Stopping.code = None


@contextmanager
def second_interrupt_ends() -> Iterator[None]:
    """The first Ctrl-C inside raises `KeyboardInterrupt` as ever; another one, while that tidies up, ends the process at once.

    Code 130, and nothing is tidied up any more: for work whose files stand a kill at any instant. Where Ctrl-C is ignored, as in
    a job that a shell has put into the background, it stays so.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        del number, frame
        _Stopping.begin(130, "press Ctrl-C again")

    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if _Stopping.code == 130:
            _Stopping.code = None


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Ctrl-C and SIGTERM are heard as ever, but the first `KeyboardInterrupt` of theirs is raised only at the end of the block.

    Handlers that were put below Python's inside are removed at the end, also where a signal is ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[KeyboardInterrupt] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def hear(number: int, frame: FrameType | None) -> None:
        handler = before[signal.Signals(number)]
        try:
            if callable(handler):
                handler(number, frame)
        except KeyboardInterrupt as interrupt:
            signal.alarm(0)  # Ray's handler has the process aborted three seconds later
            held.append(interrupt)

    for number, handler in before.items():
        if callable(handler):
            signal.signal(number, hear)
    try:
        yield
    finally:
        # One that comes now waits until all are as they were.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, before)
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    if held:
        raise held[0]
