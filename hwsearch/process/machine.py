"""What this machine gives to a process: memory, and cores that a container may limit."""

import os
from pathlib import Path

_LIMITS = Path("/sys/fs/cgroup")
"""Limits of this process's container, on Linux."""


def memory_bytes() -> int:
    """Return the memory of this machine, or of its container, in bytes."""
    whole: int = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _first_word(_LIMITS / "memory.max")
    return min(whole, int(limit)) if limit.isdigit() else whole


def available_bytes() -> int:
    """Return the memory that is free, or would be if files were read again, in bytes."""
    limit, used = (_first_word(_LIMITS / name) for name in ("memory.max", "memory.current"))
    left = int(limit) - int(used) if limit.isdigit() and used.isdigit() else memory_bytes()
    for line in _text(Path("/proc/meminfo")).splitlines():
        name, _, amount = line.partition(":")
        if name == "MemAvailable":
            return min(left, 1024 * int(amount.split()[0]))
    return left


def core_quota() -> float | None:
    """Return the processor time that the container gives, in cores; None if it sets no limit."""
    quota, _, period = _text(_LIMITS / "cpu.max").strip().partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def _first_word(path: Path) -> str:
    return (_text(path).split() or [""])[0]


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, ValueError):
        return ""
