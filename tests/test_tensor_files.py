"""Files of tensors: they come back bit for bit, and no bit of them changes unnoticed."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from hwsearch.errors import UserError
from hwsearch.files.tensors import check_tensors, load_tensors, read_tensors, write_tensors

TENSORS = {
    "weight": torch.arange(6, dtype=torch.float32).reshape(2, 3) / 7,
    "half": torch.ones(3, dtype=torch.float16),
    "count": torch.tensor(5),
    "none": torch.zeros(0),
}
DESCRIPTION = {"seed": 0, "scores": [0.1 + 0.2, -1e-300], "made by": "tést"}


def written(path: Path) -> Path:
    write_tensors(path, TENSORS, "test", DESCRIPTION)
    return path


def test_what_is_written_is_read_bit_for_bit(tmp_path: Path) -> None:
    description, tensors = read_tensors(written(tmp_path / "a.safetensors"), "test", "a test")
    assert description == DESCRIPTION
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def test_equal_content_gives_equal_files(tmp_path: Path) -> None:
    assert written(tmp_path / "a").read_bytes() == written(tmp_path / "b").read_bytes()


def test_the_digest_is_that_of_description_and_tensors(tmp_path: Path) -> None:
    """Computed anew from what it is said to be, with NumPy."""
    with safe_open(written(tmp_path / "a"), framework="np") as stored:
        found = json.loads(stored.metadata()["test"])
        arrays = {name: stored.get_tensor(name) for name in sorted(stored.keys())}
    seal = found.pop("sha256")
    content = json.dumps(found, sort_keys=True, separators=(",", ":")).encode()
    for name, array in arrays.items():
        content += json.dumps([name, f"torch.{array.dtype}", list(array.shape)], separators=(",", ":")).encode() + array.tobytes()
    assert seal == hashlib.sha256(content).hexdigest()


@given(st.data())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bit_changes_unnoticed(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "a.safetensors"
    if not path.exists():
        written(path)
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    flipped = tmp_path / "flipped.safetensors"
    flipped.write_bytes(content)
    try:
        description, tensors = read_tensors(flipped, "test", "a test")
    except UserError as refused:
        message = str(refused)
        assert message.isprintable()
    else:  # what fills up the header, or how a character of it is written, says nothing
        assert description == DESCRIPTION
        assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())
        assert tensors.keys() == TENSORS.keys()


def test_a_file_without_a_digest_is_taken_where_it_is_known(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(TENSORS, path, {"test": json.dumps(DESCRIPTION)})
    with pytest.raises(UserError, match="it carries no digest of its content"):
        read_tensors(path, "test", "a test")
    assert read_tensors(path, "test", "a test", known=[hashlib.sha256(path.read_bytes()).hexdigest()])[0] == DESCRIPTION


@pytest.mark.parametrize("text", ["[1]", "{", '{"sha256": 1}', '{"sha256": "", "loss": NaN}', "[" * 5000])
def test_a_description_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    save_file(TENSORS, tmp_path / "a", {"test": text})
    with pytest.raises(UserError, match=rf"^{tmp_path / 'a'}: not a test \(.+\); mend it$"):
        read_tensors(tmp_path / "a", "test", "a test", "mend it")


@pytest.mark.parametrize(
    ("put", "said"),
    [
        (lambda path: None, "no such file; wanted a test"),
        (Path.mkdir, "is a folder; wanted a test"),
        (os.mkfifo, "is a pipe; wanted a test"),
        (lambda path: path.write_bytes(b"x" * 40), r"not a test \(.+\); mend it"),
        (lambda path: path.write_bytes(b""), r"not a test \(.+\); mend it"),
        (lambda path: save_file(TENSORS, path), r"not a test \('test'\); mend it"),
    ],
)
def test_what_is_no_file_of_tensors_is_one_line(tmp_path: Path, put: Callable[[Path], object], said: str) -> None:
    put(tmp_path / "a")
    with pytest.raises(UserError, match=rf"^{tmp_path / 'a'}: {said}$"):
        read_tensors(tmp_path / "a", "test", "a test", "mend it")


def test_files_of_others_are_loaded_with_their_metadata(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "plain")
    save_file(TENSORS, tmp_path / "told", {"by": "others"})
    for name, wanted in (("plain", {}), ("told", {"by": "others"})):
        metadata, tensors = load_tensors(tmp_path / name, "tensors")
        assert metadata == wanted
        assert all(torch.equal(tensors[each], TENSORS[each]) for each in TENSORS)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"more": torch.zeros(1)}, "'more' is unknown"),
        (
            {"weight": torch.zeros(2, 3, dtype=torch.float64)},
            r"'weight' is torch.float64 \[2, 3\]; wanted torch.float32 \[2, 3\]",
        ),
        ({"weight": torch.zeros(3, 2)}, r"'weight' is torch.float32 \[3, 2\]; wanted torch.float32 \[2, 3\]"),
        ({"weight": torch.full((2, 3), torch.nan)}, "'weight' holds values out of range"),
        ({"half": torch.full((3,), -torch.inf, dtype=torch.float16)}, "'half' holds values out of range"),
    ],
)
def test_tensors_that_are_not_the_wanted_ones_are_named(changes: dict[str, torch.Tensor], said: str) -> None:
    wanted = {name: (tensor.dtype, tensor.shape) for name, tensor in TENSORS.items()}
    check_tensors(Path("a"), TENSORS, wanted)
    with pytest.raises(UserError, match=f"^a: tensor {said}"):
        check_tensors(Path("a"), {**TENSORS, **changes}, wanted)
    with pytest.raises(UserError, match=r"^a: tensor 'count' is missing"):
        check_tensors(Path("a"), {name: tensor for name, tensor in TENSORS.items() if name != "count"}, wanted)
