from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsearch.errors import UserError
from hwsearch.files.seals import read_sealed_json, write_sealed_json

VALUES = st.recursive(
    st.none() | st.integers(-9999, 9999) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.integers(0, 300), inner, max_size=4)
        | st.dictionaries(st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=8,
)


def as_read(value: object) -> object:
    """Write keys as JSON does, and lists for tuples."""
    if isinstance(value, dict):
        return {str(key): as_read(found) for key, found in value.items()}
    return [as_read(found) for found in value] if isinstance(value, list) else value


@settings(deadline=None)
@given(content=st.dictionaries(st.text(min_size=1, max_size=4), VALUES, max_size=4))
def test_what_is_written_is_read_whatever_its_keys(tmp_path_factory: pytest.TempPathFactory, content: dict[str, object]) -> None:
    path = tmp_path_factory.mktemp("sealed") / "content.json"
    write_sealed_json(path, content)
    assert read_sealed_json(path, "content", "delete it") == as_read(content)


def test_numbers_as_keys_keep_the_seal_where_they_sort_otherwise_than_their_digits(tmp_path: Path) -> None:
    path = tmp_path / "losses.json"
    write_sealed_json(path, {"losses": {64: 0.5, 128: 0.25}})
    assert read_sealed_json(path, "losses", "delete it") == {"losses": {"64": 0.5, "128": 0.25}}
    path.write_text(path.read_text().replace("0.25", "0.26"))
    with pytest.raises(UserError, match="changed since it was written"):
        read_sealed_json(path, "losses", "delete it")
