"""Journals: whatever a kill or a full disk tears, whole lines stay, and writing goes on behind them."""

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from hwsearch.errors import UserError
from hwsearch.files.journal import Journal, parse_line, read_lines
from hwsearch.files.seals import unseal_lines

ENTRIES = [b'{"line":%d}' % number for number in range(5)]
MEND = "delete it"


def write(path: Path, *entries: bytes, sealed: bool = True) -> Path:
    with Journal(path, "a journal", sealed=sealed) as journal:
        journal.append(entries)
    return path


def read(path: Path, *, sealed: bool = True) -> list[bytes]:
    lines = read_lines(path, "a journal")
    return list(unseal_lines(lines, path, MEND)) if sealed else lines


@pytest.mark.parametrize("sealed", [True, False])
@given(cut=st.integers(0, 300), batches=st.lists(st.integers(0, 3), max_size=3))
@settings(deadline=None, max_examples=50)
def test_a_file_cut_anywhere_keeps_its_whole_lines_and_goes_on(
    tmp_path_factory: pytest.TempPathFactory, sealed: bool, cut: int, batches: list[int]
) -> None:
    path = write(tmp_path_factory.mktemp("cut") / "a.jsonl", *ENTRIES, sealed=sealed)
    path.write_bytes(path.read_bytes()[:cut])
    whole = path.read_bytes().count(b"\n")
    assert read(path, sealed=sealed) == ENTRIES[:whole]
    later = [b'{"later":%d}' % number for number in range(sum(batches))]
    with Journal(path, "a journal", sealed=sealed) as journal:
        for before, count in enumerate(batches):
            first = sum(batches[:before])
            journal.append(later[first : first + count])
    assert read(path, sealed=sealed) == ENTRIES[:whole] + later


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("room", [0, 10, 40])
def test_where_a_full_disk_tears_a_line_the_next_one_is_whole(tmp_path: Path, sealed: bool, room: int) -> None:
    path = write(tmp_path / "a.jsonl", ENTRIES[0], sealed=sealed)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal(path, "a journal", sealed=sealed) as journal:
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + room, hard))
        try:
            with pytest.raises(UserError, match=r"a\.jsonl: cannot be written \(File too large\); it keeps all lines before"):
                journal.append(ENTRIES[1:])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        kept = read(path, sealed=sealed)
        journal.append([b'{"later":1}'])
    assert kept == ENTRIES[: len(kept)]
    assert read(path, sealed=sealed) == [*kept, b'{"later":1}']


def test_lines_are_on_the_disk_before_anyone_acts_on_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[Path, bytes]] = []

    def fsync(handle: int) -> None:
        place = Path(f"/proc/self/fd/{handle}").readlink()
        synced.append((place, path.read_bytes()))

    monkeypatch.setattr(os, "fsync", fsync)
    path = tmp_path / "a.jsonl"
    with Journal(path, "a journal", sealed=False) as journal:
        assert [place for place, _ in synced] == [path, tmp_path], "of a new file, its name too"
        journal.append(ENTRIES[:2], durably=False)
        assert len(synced) == 2
        journal.append(ENTRIES[2:])
    assert synced[2:] == [(path, b"".join(line + b"\n" for line in ENTRIES))], "once for several"
    with path.open("ab") as stream:
        stream.write(b"torn")
    Journal(path, "a journal").close()
    assert synced[3:] == synced[2:3], "also what a killed writer left"


def test_a_broken_line_is_named_by_file_and_number(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *ENTRIES)
    path.write_bytes(path.read_bytes().replace(b":2,", b":3,"))
    with pytest.raises(UserError, match=rf"^{path}, line 3: changed since it was written, .*; delete it$"):
        read(path)
    with pytest.raises(UserError, match=rf"^{path}, line 7: not a valid entry \(found 'x', wanted a whole number\); delete it$"):
        parse_line(TypeAdapter(int), b'"x"', path, 7, MEND)


@pytest.mark.parametrize(("put", "said"), [(Path.mkdir, "is a folder"), (os.mkfifo, "is a pipe")])
def test_what_is_no_file_is_named_and_not_waited_for(tmp_path: Path, put: Callable[[Path], None], said: str) -> None:
    put(tmp_path / "a.jsonl")
    for use in (write, read):
        with pytest.raises(UserError, match=rf"a\.jsonl: {said}; wanted a journal"):
            use(tmp_path / "a.jsonl")


def test_a_journal_that_cannot_be_made_leaves_nothing_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"nowhere/a\.jsonl: cannot be written \(No such file or directory\)"):
        write(tmp_path / "nowhere" / "a.jsonl")

    def fsync(handle: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)
    before = os.listdir("/proc/self/fd")  # noqa: PTH208
    with pytest.raises(UserError, match=r"a\.jsonl: cannot be written \(Input/output error\)"):
        write(tmp_path / "a.jsonl")
    assert os.listdir("/proc/self/fd") == before  # noqa: PTH208
