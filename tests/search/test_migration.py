"""Records of earlier schema versions, each written by the code that had it: searches of the synthetic problem for 12 candidates
with NSGA-II. In `records/version-1` four more could not be scored; in the later ones one, and two sites share a width.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from hwsearch.errors import UserError
from hwsearch.experiment import Fidelity
from hwsearch.results.candidates import read_candidates
from hwsearch.search import identity
from hwsearch.search import record as record_module
from hwsearch.search.migration import STEPS, can_upgrade, schema_version, upgrade
from hwsearch.search.record import (
    RECORD_FILE,
    SCHEMA_VERSION,
    Asked,
    Failed,
    Header,
    Record,
    Scored,
    kept_aside,
    read_record,
    versions_here,
)
from tests.search.studies.expected import check_trials, load_mirror
from tests.search.synthetic import make_experiment, search
from tests.tiny import snapshot

RECORDS = Path(__file__).with_name("records")

NAMES = {
    "blocks.0.input": "input_proj.output",
    "blocks.1.input": "blocks.0.add.output",
    "mask_input": "blocks.1.add.output",
    "masks": "mask_head.output",
}
"""What the sites of these networks of two blocks are called since version 5."""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A run folder with the record of version 1."""
    return Path(shutil.copytree(RECORDS / "version-1", tmp_path / "old"))


def old_lines() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (RECORDS / "version-1" / RECORD_FILE).read_text().splitlines()]


def test_every_version_left_behind_has_a_step_and_a_record() -> None:
    assert sorted(STEPS) == list(range(1, SCHEMA_VERSION))
    for version in STEPS:
        first = (RECORDS / f"version-{version}" / RECORD_FILE).read_bytes().splitlines()[0]
        assert schema_version(first) == version


@pytest.mark.parametrize("version", sorted(STEPS))
def test_a_record_of_an_earlier_version_is_read_and_left_as_it_is(version: int, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(RECORDS / f"version-{version}", tmp_path / "run"))
    before = snapshot(folder)
    header, events = read_record(folder)
    assert header.schema_version == SCHEMA_VERSION
    assert sum(isinstance(event, Scored) for event in events) == 13
    assert len(read_candidates(folder).candidate) == 12
    assert snapshot(folder) == before


def test_version_1_says_the_same_in_the_words_of_the_present(old: Path) -> None:
    """Everything that it held is there unchanged; what failed, failed at the one fidelity that there was."""
    header, events = read_record(old)
    lines = old_lines()
    widths = {NAMES.get(site, site): each for site, each in lines[0]["widths"].items()}
    wanted = {**lines[0], "widths": widths, "schema_version": SCHEMA_VERSION, "groups": [], "run": None}
    assert header.model_dump(mode="json") == wanted
    found = list(events)
    assert [type(event) for event in found] == [
        {"asked": Asked, "scored": Scored, "failed": Failed}[line["event"]] for line in lines[1:]
    ]
    for event, line in zip(found, lines[1:], strict=True):
        if "allocation" in line:
            line["allocation"] = {NAMES.get(site, site): bits for site, bits in line["allocation"].items()}
        assert line.items() <= event.model_dump(mode="json").items()
        if not isinstance(event, Asked):
            assert event.fidelity is Fidelity.POST_TRAINING


def test_a_driver_writes_it_anew_keeps_the_old_one_and_appends(old: Path) -> None:
    before = (old / RECORD_FILE).read_bytes()
    header, iterator = read_record(old)
    events = list(iterator)
    (old / RECORD_FILE).write_bytes(before + b'{"event":"sco')
    asked = Asked(candidate=17, strategy="test", point=(0,) * 8, state={}, time=header.time)
    with Record(old, header) as record:
        record.append(asked)
    assert kept_aside(old, 1).read_bytes() == before
    assert schema_version((old / RECORD_FILE).read_bytes().splitlines()[0]) == SCHEMA_VERSION
    assert list(read_record(old)[1]) == [*events, asked]
    after = (old / RECORD_FILE).read_bytes()
    Record(old, header).close()
    assert (old / RECORD_FILE).read_bytes() == after
    assert kept_aside(old, 1).read_bytes() == before


def test_a_record_of_another_search_is_refused_before_anything_is_written(old: Path) -> None:
    header, _ = read_record(old)
    before = (old / RECORD_FILE).read_bytes()
    with pytest.raises(UserError, match="holds a search of experiment 'synthetic'"):
        Record(old, header.model_copy(update={"experiment": "a" * 64}))
    assert (old / RECORD_FILE).read_bytes() == before
    assert not kept_aside(old, 1).exists()


@pytest.mark.parametrize("version", [2, 3, 4])
def test_a_search_of_an_earlier_version_goes_on(version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the very order, with the mirror of it all; what is new says with what it was made, where that has changed since."""
    folder = Path(shutil.copytree(RECORDS / f"version-{version}", tmp_path / "run"))
    header, iterator = read_record(folder)
    before = list(iterator)
    experiment = make_experiment(14, groups=[["blocks.0.expand.weight", "blocks.1.expand.weight"]])
    # An experiment's hash changes whenever there is a new key; what is tested is the record.
    monkeypatch.setattr(identity, "search_digest", lambda _: header.experiment)
    search(folder, experiment)
    after = list(read_record(folder)[1])
    assert after[: len(before)] == before
    found = [event for event in after[len(before) :] if not isinstance(event, Asked)]
    assert len(found) == 2
    here = None if versions_here() == header.versions else versions_here()
    assert [event.versions for event in found] == [here, here]
    check_trials(folder, load_mirror(folder))
    assert kept_aside(folder, version).read_bytes() == (RECORDS / f"version-{version}" / RECORD_FILE).read_bytes()


@pytest.mark.parametrize("writes", [0, 1])
def test_a_driver_that_dies_while_it_writes_leaves_a_whole_record(
    old: Path, writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the old one is aside, and between that and the new one's coming."""
    header, _ = read_record(old)
    before = (old / RECORD_FILE).read_bytes()
    write, done = record_module.atomic_write_bytes, []

    def die(path: Path, content: bytes) -> None:
        if len(done) == writes:
            raise KeyboardInterrupt
        done.append(path)
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(record_module, "atomic_write_bytes", die)
        with pytest.raises(KeyboardInterrupt):
            Record(old, header)
    assert (old / RECORD_FILE).read_bytes() == before
    Record(old, header).close()
    assert kept_aside(old, 1).read_bytes() == before
    assert read_record(old)[0] == header


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (b'{"event":"asked", torn', "line 5: not a valid entry"),
        (b'{"event":"failed","candidate":0}', "line 5: not a valid entry (failed.strategy: found nothing, wanted a value)"),
        (b"[]", "line 5: not a valid entry"),
    ],
)
def test_a_damaged_line_of_an_earlier_version_is_named(old: Path, damage: bytes, message: str) -> None:
    lines = (old / RECORD_FILE).read_bytes().splitlines()
    lines[4] = damage
    (old / RECORD_FILE).write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(UserError) as refused:
        list(read_record(old)[1])
    assert str(refused.value).startswith(f"{old / RECORD_FILE}, {message}")


def test_steps_are_taken_one_after_another() -> None:
    """A version 6 that would count time in milliseconds, from a record of version 1."""

    def to_version_6(entry: dict[str, Any]) -> dict[str, Any]:
        return {**entry, "seconds": 1000 * entry["seconds"]} if "seconds" in entry else entry

    steps = {**STEPS, 5: to_version_6}
    raw = (RECORDS / "version-1" / RECORD_FILE).read_bytes().splitlines()
    found = [json.loads(line) for line in upgrade(raw, 1, 6, steps)]
    for before, after in zip(old_lines(), found, strict=True):
        assert after.get("seconds") == (None if "seconds" not in before else 1000 * before["seconds"])
        assert after.get("fidelity") == ("post-training" if before["event"] in {"scored", "failed"} else None)
    assert found[0]["schema_version"] == 6
    assert can_upgrade(1, 6, steps)
    assert not can_upgrade(1, 6)
    assert not can_upgrade(3, 2, steps)


def test_a_header_of_the_present_needs_no_upgrade(tmp_path: Path) -> None:
    header, _ = read_record(RECORDS / "version-1")
    Record(tmp_path, Header.model_validate(header.model_dump())).close()
    assert [path.name for path in tmp_path.glob("record*")] == [RECORD_FILE]


def test_sites_have_their_present_names_wherever_a_header_names_them() -> None:
    layers = ["input_proj", "blocks.0.expand", "blocks.0.depthwise", "blocks.0.project", "mask_head"]
    sites = [f"{layer}.weight" for layer in layers] + ["features", "blocks.0.input", "blocks.0.expand.output"]
    sites += ["blocks.0.depthwise.output", "blocks.0.project.output", "mask_input", "masks"]
    line = {
        "event": "header",
        "schema_version": 4,
        "widths": {site: [8] for site in sites},
        "fixed": ["masks", "features"],
        "groups": [["blocks.0.input", "mask_input"]],
    }
    (found,) = (json.loads(line) for line in upgrade([json.dumps(line).encode()], 4, 5))
    assert list(found["widths"])[5:] == [
        *("features", "input_proj.output", "blocks.0.expand.output", "blocks.0.depthwise.output"),
        *("blocks.0.project.output", "blocks.0.add.output", "mask_head.output"),
    ]
    assert found["fixed"] == ["mask_head.output", "features"]
    assert found["groups"] == [["input_proj.output", "blocks.0.add.output"]]


def test_a_sealed_record_of_an_earlier_version_that_was_changed_is_refused(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(RECORDS / "version-4", tmp_path / "run"))
    path = folder / RECORD_FILE
    path.write_text(path.read_text().replace('"utterances":16.0', '"utterances":17.0', 1))
    with pytest.raises(UserError, match="line 3: changed since it was written"):
        read_record(folder)
