"""Who listens where, as the kernel tells it."""

import socket
import struct
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

LISTENS = "0A"


def listening(processes: Iterable[int]) -> dict[tuple[str, int], int]:
    """Addresses and ports that these processes listen on, with one process each."""
    owners: dict[str, int] = {}
    for process in processes:
        for descriptor in Path(f"/proc/{process}/fd").iterdir():
            try:
                owners.setdefault(str(descriptor.readlink()), process)
            except FileNotFoundError:  # closed meanwhile
                continue
    found = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            columns = line.split()
            owner = owners.get(f"socket:[{columns[9]}]")
            if columns[3] == LISTENS and owner is not None:
                address, port = columns[1].split(":")
                found[str(_address(address)), int(port, 16)] = owner
    return found


def is_loopback(address: str) -> bool:
    """Whether an address is reached from this machine only."""
    parsed = ip_address(address)
    inner = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return (inner or parsed).is_loopback


def descendants(process: int) -> set[int]:
    """A process and all that it has started."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:  # ended meanwhile
            continue
    found = {process}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def named(process: int, name: str) -> list[int]:
    """Descendants of a process whose program has this name."""
    found = []
    for child in descendants(process) - {process}:
        try:
            program = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")[0]
        except OSError:
            continue
        if program.decode().rpartition("/")[2] == name:
            found.append(child)
    return found


def _address(text: str) -> IPv4Address | IPv6Address:
    """The kernel writes words in the machine's own byte order."""
    words = [int(text[start : start + 8], 16) for start in range(0, len(text), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    return ip_address(socket.inet_ntop(socket.AF_INET if len(words) == 1 else socket.AF_INET6, packed))
