"""Lock files: one process at a time holds one, and everyone can see which."""

import os
from pathlib import Path

import pytest

from hwsearch.errors import UserError
from hwsearch.files.locks import Lock, lock_holder

BUSY = "is at work here; wait for it"


def test_one_at_a_time_holds_a_lock_and_is_named(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lock"
    assert lock_holder(path) is None
    with Lock(path, BUSY):
        with pytest.raises(UserError, match=f"^{path.parent}: process {os.getpid()} {BUSY}$"):
            Lock(path, BUSY)
        holder = lock_holder(path)
        assert holder is not None
        assert holder.process == str(os.getpid())
    assert lock_holder(path) is None
    with Lock(path, BUSY):
        pass


def test_a_lock_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for path, said in ((tmp_path / "folder", "Is a directory"), (tmp_path / "file" / "lock", "(File exists|Not a directory)")):
        with pytest.raises(UserError, match=rf"^{path}: cannot be locked \({said}\); wanted a place with room"):
            Lock(path, BUSY)
