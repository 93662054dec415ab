"""What travels to a worker process arrives as it was sent."""

from multiprocessing import Pipe
from typing import TypeVar

Value = TypeVar("Value")

LONGEST = 20_000
"""Bytes: what is sent is small, for data go by files; and a pipe that nobody reads meanwhile takes no more than 64 KiB."""


def travelled(value: Value) -> Value:
    """A value sent through the pipe that worker processes are fed by."""
    sender, receiver = Pipe()
    try:
        sender.send(value)
        return receiver.recv()
    finally:
        sender.close()
        receiver.close()
