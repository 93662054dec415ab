"""A folder of sensitivities: bound to what made it, written by one at a time, and never worse for a kill."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsearch.errors import UserError
from hwsearch.sensitivity.cache import JOBS_FILE, KEY_FILE, open_journal
from hwsearch.sensitivity.jobs import Kind, Result
from tests.sealed import edit_lines

PARTS = {"base": "abc", "[quantization]": {"weight_scale": "per_channel", "calibration_mixtures": 8}}
RESULTS = (
    Result(kind=Kind.TRACE, subject="features", samples=((0.1, 1e-300), (3.0, -1 / 3)), seconds=0.25),
    Result(kind=Kind.KL, subject="validation-00001", by_width={"kl": {"features": {4: 0.1 + 0.2, 8: 0.0}}}),
    Result(kind=Kind.TRAINING, subject="features", samples=((11.5,),), bits=4),
)


def filled(folder: Path) -> Path:
    with open_journal(folder, PARTS) as journal:
        for result in RESULTS:
            journal.append(result)
    return folder / JOBS_FILE


def test_results_come_back_bit_for_bit_in_order(tmp_path: Path) -> None:
    filled(tmp_path)
    with open_journal(tmp_path, PARTS) as journal:
        assert journal.results == RESULTS


@given(st.data())
@settings(deadline=None, max_examples=40)
def test_a_file_cut_anywhere_keeps_its_whole_lines_and_goes_on(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    path = filled(folder)
    content = path.read_bytes()
    kept = content[: data.draw(st.integers(0, len(content)))]
    path.write_bytes(kept)
    whole = kept.count(b"\n")
    with open_journal(folder, PARTS) as journal:
        assert journal.results == RESULTS[:whole]
        for result in RESULTS[whole:]:
            journal.append(result)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {**PARTS, "base": "abd"},
            "made with another base; delete the folder to make them again",
        ),
        (
            {**PARTS, "[quantization]": {"weight_scale": "per_tensor", "calibration_mixtures": 8}},
            r"made with another \[quantization\] \(weight_scale per_channel, now per_tensor\)",
        ),
        (
            {**PARTS, "[quantization]": {"weight_scale": "per_channel"}},
            r"another \[quantization\] \(calibration_mixtures 8, now None\)",
        ),
    ],
)
def test_the_part_that_changed_is_named(tmp_path: Path, parts: dict, message: str) -> None:
    before = filled(tmp_path).read_bytes()
    with pytest.raises(UserError, match=message) as refused, open_journal(tmp_path, parts):
        pass
    assert str(refused.value).startswith(str(tmp_path))
    assert "\n" not in str(refused.value)
    with open_journal(tmp_path, PARTS) as journal:
        assert journal.results == RESULTS
    assert (tmp_path / JOBS_FILE).read_bytes() == before


def test_a_part_not_wanted_before_is_added_and_one_not_wanted_now_stays(tmp_path: Path) -> None:
    for parts in (PARTS, {**PARTS, "[qat]": {"steps": 3}}, PARTS):
        with open_journal(tmp_path, parts):
            pass
    assert json.loads((tmp_path / KEY_FILE).read_text())["parts"] == {**PARTS, "[qat]": {"steps": 3}}
    with pytest.raises(UserError, match=r"another \[qat\]"), open_journal(tmp_path, {"[qat]": {"steps": 4}}):
        pass


def test_one_at_a_time_writes(tmp_path: Path) -> None:
    with (
        open_journal(tmp_path, PARTS),
        pytest.raises(UserError, match=f"process {os.getpid()} is estimating sensitivities here"),
        open_journal(tmp_path, PARTS),
    ):
        pass
    with open_journal(tmp_path, PARTS):
        pass


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{[}", "not valid JSON"),
        (b'{"kind":"guess","subject":"features"}', "kind: found .guess., wanted .curvature., "),
        (b'{"kind":"kl","subject":"m","by_width":{"kl":{"features":{"4":NaN}}}}', ""),
        (b'{"kind":"kl","subject":"m","by_width":{"kl":{"features":{"4":1e31}}}}', "by_width.kl.features.4: "),
        (b'{"kind":"trace","subject":"features","samples":[["1"]]}', "samples.0.0: "),
        (b'{"kind":"trace","subject":"features","samples":[[]]}', "samples.0: found [[][]], wanted at least 1 entry"),
        (b'{"kind":"trace","subject":"features","samples":[[1.0],[1.0,2.0]]}', "samples of the mix"),
        (b'{"kind":"trace","subject":"features"}', "samples are missing"),
        (b'{"kind":"trace","subject":"features","more":1}', "more: found 1, wanted no such field"),
    ],
)
def test_a_broken_line_is_named_with_what_to_do(tmp_path: Path, line: bytes, message: str) -> None:
    path = filled(tmp_path)
    edit_lines(path, lambda lines: [lines[0], line, *lines[1:]])
    with pytest.raises(UserError, match=f"line 2: not a valid entry .{message}") as refused, open_journal(tmp_path, PARTS):
        pass
    assert f"delete {tmp_path}" in str(refused.value)


def test_a_pipe_in_the_results_place_is_not_waited_for(tmp_path: Path) -> None:
    path = filled(tmp_path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match=f"{path.name}: is a pipe; wanted"), open_journal(tmp_path, PARTS):
        pass


@pytest.mark.parametrize("row", range(3))
def test_a_line_that_was_edited_or_is_gone_is_named(tmp_path: Path, row: int) -> None:
    path = filled(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    edited = [*lines[:row], lines[row].replace(b"features", b"outliers"), *lines[row + 1 :]]
    for damaged in (edited, [*lines[:row], *lines[row + 1 :], lines[row]] if row < 2 else edited):
        path.write_bytes(b"".join(damaged))
        with pytest.raises(UserError, match=rf"jobs\.jsonl, line {row + 1}: changed since"), open_journal(tmp_path, PARTS):
            pass
        assert path.read_bytes() == b"".join(damaged)


def test_an_edited_key_is_refused(tmp_path: Path) -> None:
    filled(tmp_path)
    path = tmp_path / KEY_FILE
    path.write_text(path.read_text().replace("abc", "abd"))
    with pytest.raises(UserError, match=rf"{path}: changed since .*; delete {tmp_path}"), open_journal(tmp_path, PARTS):
        pass


@pytest.mark.parametrize("content", ["[]", '{"format": 2, "parts": {}}', '{"format": 1}', "{"])
def test_a_broken_or_missing_key_is_refused(tmp_path: Path, content: str) -> None:
    filled(tmp_path)
    (tmp_path / KEY_FILE).write_text(content)
    with pytest.raises(UserError, match=KEY_FILE), open_journal(tmp_path, PARTS):
        pass
    (tmp_path / KEY_FILE).unlink()
    with pytest.raises(UserError, match=f"{KEY_FILE}: missing, though {JOBS_FILE} is there"), open_journal(tmp_path, PARTS):
        pass
