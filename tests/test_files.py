"""Files appear whole or not at all, and what cannot be read or written is said in one line."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwsearch.errors import UserError
from hwsearch.files.reading import canonical_json, digest, file_digest, read_json
from hwsearch.files.writing import (
    atomic_write,
    atomic_write_bytes,
    atomic_write_folder,
    atomic_write_json,
    atomic_write_text,
    check_writable,
)

ROOT = Path(__file__).parents[1]

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=8,
)


def test_a_written_file_holds_its_content_and_everyone_may_read_it(tmp_path: Path) -> None:
    atomic_write_text(tmp_path / "new" / "folder" / "name.txt", "naïve\n")
    path = tmp_path / "new" / "folder" / "name.txt"
    assert path.read_bytes() == "naïve\n".encode()
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(path.parent.iterdir()) == [path]


def test_a_temporary_file_has_the_name_of_the_one_to_be_and_lies_on_its_disk(tmp_path: Path) -> None:
    seen: list[Path] = []

    def write(temporary: Path) -> None:
        seen.append(temporary)
        temporary.write_text("sound")

    atomic_write(tmp_path / "sound.wav", write)
    assert (seen[0].name, seen[0].parent.parent, seen[0].parent.name[0]) == ("sound.wav", tmp_path, ".")
    assert [path.name for path in tmp_path.iterdir()] == ["sound.wav"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    atomic_write_json(path, {"old": 1})

    def fail(temporary: Path) -> None:
        temporary.write_text("half of")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        atomic_write(path, fail)
    with pytest.raises(ValueError, match="JSON"):
        atomic_write_json(path, {"new": float("nan")})
    assert json.loads(path.read_text()) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("before", [None, b"old"])
@pytest.mark.parametrize(
    ("dies", "content"),
    [
        ("def write(temporary):\n    temporary.write_bytes(b'half'); die()\n", None),
        # As safetensors does: its own file beside the one that it is asked for.
        ("def write(temporary):\n    (temporary.parent / '.tmpA1').write_bytes(b'half'); die()\n", None),
        ("pathlib.Path.replace = die", None),
        ("shutil.rmtree = die", b"new"),
    ],
)
def test_the_next_write_removes_what_a_killed_process_left(
    tmp_path: Path, before: bytes | None, dies: str, content: bytes | None
) -> None:
    path = tmp_path / "name.bin"
    if before is not None:
        path.write_bytes(before)
    program = (
        "import os, pathlib, shutil, sys; from hwsearch.files.writing import atomic_write\n"
        "def die(*arguments, **options):\n    os.kill(os.getpid(), 9)\n"
        "def write(temporary):\n    temporary.write_bytes(b'new')\n"
        f"{dies}\n"
        "atomic_write(pathlib.Path(sys.argv[1]), write)"
    )
    ended = subprocess.run([sys.executable, "-c", program, path], cwd=ROOT, check=False)
    assert ended.returncode == -9
    assert (path.read_bytes() if path.exists() else None) == (content or before)
    assert list(tmp_path.glob(".*"))
    atomic_write_bytes(path, b"next")
    assert path.read_bytes() == b"next"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "name"

    def write(temporary: Path) -> None:
        temporary.write_bytes(b"outer")
        atomic_write_bytes(path, b"inner")
        assert path.read_bytes() == b"inner"
        assert temporary.read_bytes() == b"outer"

    atomic_write(path, write)
    assert path.read_bytes() == b"outer"
    assert list(tmp_path.iterdir()) == [path]


def test_what_else_has_the_hidden_name_is_left_alone(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine").write_text("mine")
    (tmp_path / ".linked-part").symlink_to(elsewhere)
    (tmp_path / ".taken-part").write_text("mine")
    for name in ("linked", "taken"):
        atomic_write_text(tmp_path / name, "new")
        assert (tmp_path / name).read_text() == "new"
    assert (elsewhere / "mine").read_text() == (tmp_path / ".taken-part").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".linked-part", ".taken-part", "elsewhere", "linked", "taken"]


KILLED_AT_EVERY_STEP = """
import json, os, pathlib, shutil, signal, sys
from hwsearch.files import writing as files
path, exchanges = pathlib.Path(sys.argv[1]), sys.argv[2] == "exchanges"
def write(content):
    def fill(folder):
        for name in ("a", "b"):
            (folder / name).write_text(content)
    return fill
def found():
    return sorted(file.read_text() for file in path.iterdir()) if path.exists() else None
if not exchanges:
    files._exchange = lambda first, second: False
seen, step, ended = [], 0, -1
while ended:
    shutil.rmtree(path.parent, ignore_errors=True)
    files.atomic_write_folder(path, write("old"))
    step += 1
    child = os.fork()
    if child == 0:
        left = step
        def hook(event, arguments):
            global left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        files.atomic_write_folder(path, write("new"))
        os._exit(0)
    ended = os.waitpid(child, 0)[1]
    killed = found()
    try:
        files.atomic_write_folder(path, lambda folder: 1 / 0)
    except ZeroDivisionError:
        seen.append((killed, found(), [file.name for file in path.parent.iterdir()]))
print(json.dumps(seen))
"""
"""Writes a folder again and again, and is killed at the first step of it, at the second and so on to the end."""


@pytest.mark.parametrize("system", ["exchanges", "renames"])
def test_a_folder_is_the_old_one_or_the_new_one_wherever_its_writer_is_killed(tmp_path: Path, system: str) -> None:
    path = tmp_path / "parent" / "folder"
    command = [sys.executable, "-c", KILLED_AT_EVERY_STEP, path, system]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    seen = json.loads(ended.stdout)
    assert len(seen) > 10
    for killed, later, left in seen:
        assert later in (["old", "old"], ["new", "new"])
        assert killed == later or (killed is None and system == "renames")
        assert left == ["folder"]
    assert (seen[0][0], seen[-1][0]) == (["old", "old"], ["new", "new"])


def test_a_folder_is_written_where_a_link_leads(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    atomic_write_folder(tmp_path / "link", lambda folder: (folder / "name").touch())
    assert (tmp_path / "link").is_symlink()
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["name"]


def test_where_nothing_can_be_written_one_line_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    for path in (*(tmp_path / name for name in ("folder", "file/name", "loop/name")), Path("/proc/name"), Path("/dev/full/name")):
        for write in (lambda path: atomic_write_bytes(path, b""), check_writable):
            with pytest.raises(UserError, match=rf"^{path}: .+\Z"):
                write(path)
    with pytest.raises(UserError, match=r"loop: cannot be written \(Too many levels of symbolic links\)"):
        check_writable(tmp_path / "loop")
    check_writable(tmp_path / "file")
    check_writable(tmp_path / "new" / "name")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder", "loop"]
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_is_the_users_to_mend(tmp_path: Path) -> None:
    def write(temporary: Path) -> None:
        del temporary
        with open("/dev/full", "wb", buffering=0) as full:  # noqa: PTH123
            full.write(b"too much")

    with pytest.raises(UserError, match=rf"{tmp_path / 'name'}: cannot be written \(No space left on device\)"):
        atomic_write(tmp_path / "name", write)
    assert not list(tmp_path.iterdir())


def test_json_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "cut.json").write_text('{"a": 1')
    (tmp_path / "latin.json").write_bytes(b'"\xe9"')
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "long.json").write_text("9" * 10_000)
    for path, found in (
        (tmp_path / "cut.json", "not valid JSON (Expecting ',' delimiter: line 1 column 8 (char 7))"),
        (tmp_path / "latin.json", "not UTF-8 text (invalid continuation byte at byte 1)"),
        (tmp_path / "deep.json", "not valid JSON (nested too deep)"),
        (tmp_path / "long.json", "not valid JSON (a number of too many digits)"),
        (tmp_path / "absent.json", "no such file"),
        (tmp_path, "is a folder"),
        (Path("/dev/zero"), "is a device"),
    ):
        with pytest.raises(UserError, match=f"^{re.escape(f'{path}: {found}; wanted a list')}$"):
            read_json(path, "a list")


@given(VALUES)
def test_what_is_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.getbasetemp() / "value.json"
    atomic_write_json(path, value)
    assert read_json(path, "a value") == value


@given(st.dictionaries(st.text(), VALUES, min_size=2, max_size=4))
def test_the_order_of_keys_does_not_change_a_digest(value: dict[str, object]) -> None:
    assert digest(dict(reversed(value.items()))) == digest(value)
    assert json.loads(canonical_json(value)) == value


def test_a_digest_is_the_sha_256_of_the_canonical_json() -> None:
    assert canonical_json({"b": [1, 2.5], "a": None}) == '{"a":null,"b":[1,2.5]}'
    assert digest({"b": [1, 2.5], "a": None}) == hashlib.sha256(b'{"a":null,"b":[1,2.5]}').hexdigest()
    assert digest({"a": 1}) != digest({"a": 2})


def test_a_file_digest_is_the_sha_256_of_its_bytes(tmp_path: Path) -> None:
    content = os.urandom(3_000_001)
    (tmp_path / "name").write_bytes(content)
    assert file_digest(tmp_path / "name") == hashlib.sha256(content).hexdigest()
