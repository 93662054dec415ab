"""Files read whole, and the memory that this takes."""

import tracemalloc
from pathlib import Path

import pytest

from hw_models.reading import Unreadable, read_bytes


def test_reading_takes_memory_for_what_is_there_not_for_what_may_be(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"abc")
    tracemalloc.start()
    try:
        assert read_bytes(tmp_path / "small", 2**26) == b"abc"
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("size", "fits"), [(9, True), (10, True), (11, False)])
def test_a_file_may_have_as_many_bytes_as_are_stated_and_no_more(tmp_path: Path, size: int, fits: bool) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * size)
    if fits:
        assert read_bytes(path, 10) == b"x" * size
    else:
        with pytest.raises(Unreadable, match="larger than"):
            read_bytes(path, 10)
