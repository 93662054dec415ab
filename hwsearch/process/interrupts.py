"""Ctrl-C and SIGTERM: the first ends a command in good order, the second ends it at once.

A signal does not raise an exception where it arrives. In a native call, or while a record is written, the exception could get
lost, turn into another one or leave half a result. Instead, a thread notes the signal, even while the main thread is in a native
call. The command ends at its next call of `checkpoint` or `pause`, which raise `KeyboardInterrupt`. If it makes no such call
within `PATIENCE_SECONDS`, the process ends at once; its files survive a kill at any instant.
"""

import atexit
import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import click

PATIENCE_SECONDS = 10.0
"""Longest time from a signal to the next checkpoint."""

LOOK_SECONDS = 0.2
"""Time between two checks of the patience."""

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
STOP = b"\0"
AGAIN = {signal.SIGINT: "press Ctrl-C again", signal.SIGTERM: "send it again"}


class _Listener:
    """Hears the signals of this process."""

    def __init__(self) -> None:
        self.heard = threading.Event()
        self.code: int | None = None
        """The exit code of the first signal."""
        self.raised = False
        self.held = False
        """Whether the main thread does something that must be finished. The patience begins after it."""
        self.quiet = False
        self._deadline = 0.0

    def listen(self, source: int) -> None:
        """Note the signals from `source`, one byte each, until `STOP` comes."""
        while True:
            waiting = self.heard.is_set() and not self.raised
            if not select.select([source], [], [], LOOK_SECONDS if waiting else None)[0]:
                self._look()
                continue
            received = os.read(source, 1)
            if received == STOP:
                return
            if received[0] in CODES:
                self._take(signal.Signals(received[0]))

    def _take(self, number: signal.Signals) -> None:
        if self.heard.is_set():
            _end_at_once(CODES[number])
        self.code = CODES[number]
        self._deadline = time.monotonic() + PATIENCE_SECONDS
        atexit.register(_deaf)
        if not self.quiet:
            _say(f"\nstopping; {AGAIN[number]} to end at once\n")
        self.heard.set()

    def _look(self) -> None:
        now = time.monotonic()
        if self.held:
            self._deadline = now + PATIENCE_SECONDS
        elif now > self._deadline and not self.raised:
            _end_at_once(130 if self.code is None else self.code)


_listener: _Listener | None = None


def checkpoint() -> None:
    """End the command here if a signal has asked for it: raise `KeyboardInterrupt`, though only once.

    Without `interrupts_heard`, as in a program that imports this package, it does nothing.
    """
    listener = _listener
    if listener is not None and listener.heard.is_set() and not listener.raised:
        listener.raised = True
        raise KeyboardInterrupt


def interrupt_taken() -> None:
    """Take a signal that has come, or not yet, as what the command was waiting for: `checkpoint` does not raise any more."""
    if _listener is not None:
        _listener.raised = True


def pause(seconds: float) -> None:
    """Sleep until the time is over or a signal comes. It is also a checkpoint."""
    listener = _listener
    if listener is None or listener.raised:
        time.sleep(seconds)
        return
    listener.heard.wait(seconds)
    checkpoint()


def ask_secretly(question: str) -> str:
    """Ask for a password on the terminal. Ctrl-C or the end of the input raises `click.Abort` at once."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        answer: str = click.prompt(question, hide_input=True, err=True)
    finally:
        signal.signal(signal.SIGINT, before)
    return answer


def stop_code() -> int:
    """Return the exit code of a command that `KeyboardInterrupt` has ended: 143 after SIGTERM, else 130."""
    return 130 if _listener is None or _listener.code is None else _listener.code


@contextmanager
def interrupts_heard() -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM end the work at its next checkpoint, and another one ends the process at once.

    Ignored signals stay ignored, such as Ctrl-C in a background job of a shell. Programs started from here take signals as
    usual. Outside the main thread nothing changes.
    """
    global _listener  # noqa: PLW0603 - signals are the process's
    if _listener is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in CODES}
    source, sink = os.pipe()
    os.set_blocking(sink, False)
    listener = _listener = _Listener()
    thread = threading.Thread(target=listener.listen, args=(source,), name="signals", daemon=True)
    thread.start()
    sink_before = signal.set_wakeup_fd(sink, warn_on_full_buffer=False)
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _heard)
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
        signal.set_wakeup_fd(sink_before)
        os.write(sink, STOP)  # closing it would not do where a forked process has it, too
        thread.join()
        os.close(sink)
        os.close(source)
        _listener = None


@contextmanager
def interrupts_quiet() -> Iterator[None]:
    """Inside, the first signal prints no line. Use it for displays that the user normally ends with Ctrl-C."""
    with _told("quiet"):
        yield


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Hold back `KeyboardInterrupt` until the end of the block, however long it takes. Use it for work that must be finished.

    If a library installs handlers below Python's inside the block, they are removed at the end, even for ignored signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[KeyboardInterrupt] = []
    before = {number: signal.getsignal(number) for number in CODES}

    def hear(number: int, frame: FrameType | None) -> None:
        signal.alarm(0)  # Ray's handler has the process aborted three seconds later
        handler = before[signal.Signals(number)]
        try:
            if callable(handler):
                handler(number, frame)
        except KeyboardInterrupt as interrupt:
            held.append(interrupt)

    for number, handler in before.items():
        if callable(handler):
            signal.signal(number, hear)
    try:
        with _told("held"):
            yield
    finally:
        # A signal that comes now waits until all handlers are restored.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, before)
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    if held:
        raise held[0]
    checkpoint()


@contextmanager
def _told(state: str) -> Iterator[None]:
    """Set a state of the listener, if there is one, for the length of the block."""
    listener = _listener
    if listener is not None:
        setattr(listener, state, True)
    try:
        yield
    finally:
        if listener is not None:
            setattr(listener, state, False)


def _heard(number: int, frame: FrameType | None) -> None:
    """Do nothing: the listener has the signal. Because Python has a handler, a waiting system call goes on after the signal."""
    del number, frame


def _forget() -> None:
    """Reset signals in a forked process. It ignores Ctrl-C, because its parent ends it then, and SIGTERM ends it."""
    global _listener  # noqa: PLW0603 - signals are the process's
    if _listener is None:
        return
    _listener = None
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


os.register_at_fork(after_in_child=_forget)


def _deaf() -> None:
    """Ignore signals while the interpreter ends, when nothing is left to stop."""
    for number in CODES:
        signal.signal(number, signal.SIG_IGN)


def _end_at_once(code: int) -> None:
    _say("\nhwsearch: ended at once; the same command goes on where it stopped\n")
    os._exit(code)


def _say(text: str) -> None:
    with suppress(OSError):  # nobody may read it any more
        os.write(2, text.encode())
