import errno
import fcntl
import hashlib
import os
import re
import socket
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, assume, given, settings

from hwsearch.errors import UserError
from hwsearch.experiment import Fidelity
from hwsearch.search.objectives import QUALITY_AND_SIZE
from hwsearch.search.record import (
    RECORD_FILE,
    SCHEMA_VERSION,
    Asked,
    Failed,
    Header,
    Record,
    Scored,
    has_begun,
    lock_holder,
    read_record,
)
from tests.sealed import edit_lines, edit_text

TIME = "2030-01-01T00:00:00.000+00:00"


def header(**changes: object) -> Header:
    values = {
        "name": "test",
        "experiment": "a" * 64,
        "provenance": {"base": "b"},
        "seed": 0,
        "objectives": QUALITY_AND_SIZE,
        "widths": {"x.weight": (2, 4)},
        "fixed": (),
        "versions": {},
        "time": TIME,
    }
    return Header.model_validate(values | changes)


def asked(candidate: int) -> Asked:
    return Asked(candidate=candidate, strategy="test", point=(0,), state={"generation": 1}, time=TIME)


def scored(candidate: int, fidelity: Fidelity = Fidelity.POST_TRAINING) -> Scored:
    return Scored(
        candidate=candidate,
        strategy="test",
        seed=0,
        allocation={"x.weight": 2},
        metrics={"si_snr_improvement_db": 0.1 + 0.2},
        costs={"size_bytes": 12.0, "latency_ms[chip]": None},
        fidelity=fidelity,
        seconds=0.5,
        worker="here:1",
        attempts=1,
        time=TIME,
    )


def failed(candidate: int, fidelity: Fidelity = Fidelity.POST_TRAINING) -> Failed:
    return Failed(
        candidate=candidate,
        strategy="test",
        fidelity=fidelity,
        reason="boom",
        seconds=0.5,
        worker="",
        attempts=3,
        time=TIME,
    )


EVENTS = [asked(0), asked(1), scored(1), failed(0), failed(1, Fidelity.SHORT_QAT)]


def write(folder: Path, *events: Asked | Scored | Failed) -> Path:
    with Record(folder, header()) as record:
        for event in events:
            record.append(event)
    return folder / RECORD_FILE


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write(tmp_path, *EVENTS)
    found, events = read_record(tmp_path)
    assert found == header()
    assert list(events) == EVENTS


def test_a_reader_leaves_a_torn_last_line_out_and_a_driver_cuts_it_off(tmp_path: Path) -> None:
    path = write(tmp_path, *EVENTS)
    whole = path.read_bytes()
    path.write_bytes(whole + whole.splitlines()[-1][:-3])
    assert list(read_record(tmp_path)[1]) == EVENTS
    write(tmp_path, asked(2))
    assert list(read_record(tmp_path)[1]) == [*EVENTS, asked(2)]


def test_a_record_that_is_refused_keeps_its_torn_last_line(tmp_path: Path) -> None:
    path = write(tmp_path, asked(0))
    torn = path.read_bytes() + b'{"event":"sco'
    path.write_bytes(torn)
    with pytest.raises(UserError, match="holds a search of experiment"):
        Record(tmp_path, header(experiment="c" * 64))
    newer = torn.replace(b'"schema_version":', b'"schema_version":9')
    path.write_bytes(newer)
    with pytest.raises(UserError, match="which another version of hwsearch writes"):
        Record(tmp_path, header())
    assert path.read_bytes() == newer


def test_what_a_killed_driver_left_is_on_the_disk_before_the_next_one_acts_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, *EVENTS)
    with path.open("ab") as stream:
        stream.write(b'{"event":"sco')
    synced = []

    def fsync(handle: int) -> None:
        synced.append((Path(f"/proc/self/fd/{handle}").readlink(), path.read_bytes()[-1:]))

    monkeypatch.setattr(os, "fsync", fsync)
    with Record(tmp_path, header()):
        pass
    assert synced == [(path, b"\n")]


def test_a_torn_header_is_written_again(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(UserError, match="empty"):
        read_record(tmp_path)
    write(tmp_path, asked(0))
    assert list(read_record(tmp_path)[1]) == [asked(0)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{ not JSON}", "line 3: not a valid entry"),
        (b"\0\0\0}", "line 3: not a valid entry"),
        (b'{"event":"asked","candidate":1}', "line 3: not a valid entry (asked.strategy: found nothing, wanted a value)"),
        (asked(5).model_dump_json().encode(), "line 3: candidate 5 asked; wanted 1"),
        (scored(7).model_dump_json().encode(), "line 3: candidate 7 finished before it was asked"),
        (header().model_dump_json().encode(), "line 3: found a second header"),
    ],
)
def test_a_damaged_middle_line_is_named_by_file_and_number(tmp_path: Path, line: bytes, message: str) -> None:
    path = write(tmp_path, *EVENTS)
    edit_lines(path, lambda lines: [*lines[:2], line, *lines[3:]])
    with pytest.raises(UserError, match=re.escape(f"{path}, {message}")):
        list(read_record(tmp_path)[1])


def test_a_candidate_cannot_finish_twice_at_one_fidelity(tmp_path: Path) -> None:
    once = [asked(0), *(scored(0, fidelity) for fidelity in Fidelity)]
    write(tmp_path, *once, failed(0, Fidelity.SHORT_QAT))
    with pytest.raises(UserError, match=f"line {len(once) + 2}: candidate 0 finished a second time at fidelity 'short-qat'"):
        list(read_record(tmp_path)[1])


def test_a_second_driver_is_refused_by_the_pid_of_the_first(tmp_path: Path) -> None:
    with Record(tmp_path, header()), pytest.raises(UserError, match=f"process {os.getpid()} is searching here"):
        Record(tmp_path, header())
    with Record(tmp_path, header()):
        pass


def test_a_driver_on_another_machine_is_named_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Record(tmp_path, header()):
        monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
        with pytest.raises(UserError, match=rf"process {os.getpid()} on {re.escape(os.uname().nodename)} is searching here"):
            write(tmp_path)
        holder = lock_holder(tmp_path)
    assert holder is not None
    assert holder.process == f"{os.getpid()} on {os.uname().nodename}"


def test_a_file_system_without_locks_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(handle: int, kind: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    for _ in range(2):
        with pytest.raises(UserError, match=r"search\.lock: cannot be locked \(No locks available\)"):
            write(tmp_path)
        with pytest.raises(UserError, match=r"search\.lock: cannot be locked \(No locks available\)"):
            lock_holder(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"experiment": "c" * 64, "name": "other"}, "holds a search of experiment 'test' (aaaaaaaaaaaa), not of 'other'"),
        ({"provenance": {"base": "c"}}, "was made with base b, not c"),
    ],
)
def test_another_experiments_folder_is_refused_and_left_unlocked(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    before = write(tmp_path, *EVENTS).read_bytes()
    with pytest.raises(UserError, match=re.escape(message)):
        Record(tmp_path, header(**changes))
    assert (tmp_path / RECORD_FILE).read_bytes() == before
    with Record(tmp_path, header()):
        pass


@pytest.mark.parametrize("version", [-1, 0, SCHEMA_VERSION - 1, SCHEMA_VERSION + 1])
def test_a_schema_that_is_not_known_is_refused(tmp_path: Path, version: int) -> None:
    path = write(tmp_path)
    path.write_text(path.read_text().replace(f'"schema_version":{SCHEMA_VERSION}', f'"schema_version":{version}'))
    before = path.read_bytes()
    message = re.escape(
        f"{path}: schema version {version}, which another version of hwsearch writes; wanted 7: search under another name"
    )
    with pytest.raises(UserError, match=message):
        read_record(tmp_path)
    with pytest.raises(UserError, match=message):
        Record(tmp_path, header())
    assert path.read_bytes() == before


def test_a_point_has_an_index_for_every_free_choice_of_the_header(tmp_path: Path) -> None:
    widths = {"x.weight": (2, 4), "y.weight": (2, 4), "z.weight": (2, 4, 8), "mask_head.output": (8,)}
    grouped = header(widths=widths, groups=(("x.weight", "y.weight"),))
    with Record(tmp_path, grouped) as record:
        record.append(asked(0).model_copy(update={"point": (1, 2)}))
    assert next(read_record(tmp_path)[1]).point == (1, 2)
    with Record(tmp_path, grouped) as record:
        record.append(asked(1).model_copy(update={"point": (1, 1, 2)}))
    with pytest.raises(UserError, match="line 3: candidate 1 has a point outside the space"):
        list(read_record(tmp_path)[1])


@pytest.mark.parametrize("weights", ["../out.safetensors", "a/b.safetensors", "abc.pt", "ABC.safetensors"])
def test_a_name_of_weights_that_leaves_its_folder_is_refused(tmp_path: Path, weights: str) -> None:
    path = write(tmp_path, asked(0), scored(0).model_copy(update={"weights": weights}))
    with pytest.raises(UserError, match=re.escape(f"{path}, line 3: not a valid entry (scored.weights")):
        list(read_record(tmp_path)[1])


def test_a_folder_without_a_record_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file; wanted the record of a search"):
        read_record(tmp_path / "nowhere")


@pytest.mark.parametrize(("put", "said"), [(Path.mkdir, "is a folder"), (os.mkfifo, "is a pipe")])
def test_what_is_no_file_in_the_records_place_is_named(tmp_path: Path, put: Callable[[Path], None], said: str) -> None:
    put(tmp_path / RECORD_FILE)
    for look in (read_record, has_begun):
        with pytest.raises(UserError, match=f"{RECORD_FILE}: {said}; wanted the record"):
            look(tmp_path)


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (asked(0).model_copy(update={"point": (2,)}), "candidate 0 has a point outside the space"),
        (asked(0).model_copy(update={"point": (0, 0)}), "candidate 0 has a point outside the space"),
        (
            scored(1).model_copy(update={"allocation": {"y.weight": 2}}),
            "candidate 1 has an allocation that is not of the header's sites",
        ),
        (scored(1).model_copy(update={"allocation": {"x.weight": 3}}), "candidate 1 has 3 bits at site 'x.weight'"),
        (scored(1).model_copy(update={"metrics": {}}), "candidate 1 has no 'si_snr_improvement_db'"),
        (scored(1).model_copy(update={"costs": {"size_bytes": None}}), "candidate 1 has no 'size_bytes'"),
    ],
)
def test_an_entry_that_does_not_fit_the_header_is_named(tmp_path: Path, event: Asked | Scored, reason: str) -> None:
    before = [] if isinstance(event, Asked) else [asked(0), asked(1)]
    path = write(tmp_path, *before, event)
    with pytest.raises(UserError, match=re.escape(f"{path}, line {2 + len(before)}: {reason}")):
        list(read_record(tmp_path)[1])


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_lost_or_moved_line_is_named(whole: bytes, data: st.DataObject) -> None:
    """Whatever becomes of a line that others follow: its number is said, and nothing of it or behind it is read."""
    lines = whole.splitlines()
    row = data.draw(st.integers(0, len(lines) - 2))
    match data.draw(st.sampled_from(["flip", "drop", "swap", "repeat", "insert"])):
        case "flip":
            place, bit = data.draw(st.integers(0, len(lines[row]) - 1)), data.draw(st.integers(0, 7))
            flipped = lines[row][place] ^ (1 << bit)
            assume(flipped not in b"\r\n")
            lines[row] = lines[row][:place] + bytes([flipped]) + lines[row][place + 1 :]
        case "drop":
            del lines[row]
        case "swap":
            lines[row], lines[row + 1] = lines[row + 1], lines[row]
        case "repeat":
            lines.insert(row, lines[row])
            row += 1
        case "insert":
            lines.insert(row, b"{}")
    with TemporaryDirectory() as folder:
        path = Path(folder) / RECORD_FILE
        path.write_bytes(b"\n".join(lines) + b"\n")
        read = []
        with pytest.raises(UserError, match=rf"record\.jsonl(, line {row + 1}|: schema version)"):
            read += list(islice(read_record(Path(folder))[1], len(lines)))
        assert not read
        with pytest.raises(UserError, match=rf"record\.jsonl(, line {row + 1}|: schema version)"):
            Record(Path(folder), header())
        assert path.read_bytes() == b"\n".join(lines) + b"\n"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write(tmp_path_factory.mktemp("whole"), *EVENTS).read_bytes()


def test_the_seal_of_a_line_is_a_digest_of_it_and_of_the_seal_before(tmp_path: Path) -> None:
    """Computed anew from the format's description, of which records on disk depend."""
    path = write(tmp_path, asked(0))
    seal = ""
    previous = ""
    for line in path.read_text().splitlines():
        content, _, seal = line.removesuffix('"}').rpartition(',"seal":"')
        assert seal == hashlib.sha256(f"{previous}{content}}}".encode()).hexdigest()[:16]
        previous = f',"seal":"{seal}"}}'
    assert seal


SENSELESS = [
    (b'"time":"2030-01-01T00:00:00.000+00:00"', b'"time":"yesterday"', "time: 'yesterday' is no time"),
    (b'"time":"2030-01-01T00:00:00.000+00:00"', b'"time":"2030-01-01T00:00:00"', "is no time"),
    (b'"time":"2030-01-01T00:00:00.000+00:00"', b'"time":"0001-01-01T00:00:00+14:00"', "is no time"),
    (b'"time":"2030-01-01T00:00:00.000+00:00"', b'"time":"9999-12-31T23:59:59-14:00"', "is no time"),
    (b'"time":"2030-01-01T00:00:00.000+00:00"', b'"time":1', "time: found 1, wanted text"),
    (b'"seconds":0.5', b'"seconds":1e300', "seconds"),
    (b'"seconds":0.5', b'"seconds":-1.0', "seconds"),
    (b'"attempts":1', b'"attempts":true', "attempts: found true, wanted a whole number"),
    (b'"attempts":1', b'"attempts":"1"', "attempts: found '1', wanted a whole number"),
    (b'"attempts":1', b'"attempts":1' + b"0" * 5000, "not a valid entry"),
    (b'"size_bytes":12.0', b'"size_bytes":-5.0', "candidate 1 has 'size_bytes' -5, which is outside 1 to"),
    (b'"size_bytes":12.0', b'"size_bytes":0.0', "candidate 1 has 'size_bytes' 0"),
    (b'"latency_ms[chip]":null', b'"latency_ms[chip]":-1.0', "candidate 1 has 'latency_ms[chip]' -1"),
    (b'"size_bytes":12.0', b'"size_bytes":Infinity', "costs.size_bytes"),
    (b'"size_bytes":12.0', b'"size_bytes":1e999', "costs.size_bytes"),
    (b"0.30000000000000004", b"400.0", "candidate 1 has 'si_snr_improvement_db' 400, which is outside -300 to 300"),
    (b"0.30000000000000004", b"NaN", "metrics.si_snr_improvement_db"),
    (b"0.30000000000000004", b"[" * 3000 + b"]" * 3000, "not a valid entry"),
    (b'"size_bytes":12.0', b'"si_snr_improvement_db":12.0', "among its metrics and among its costs"),
    (b'"state":{"generation":1}', b'"state":{"generation":"1"}', "state.generation"),
    (b'"state":{"generation":1}', b'"state":{"generation":[]}', "candidate 0 has a state whose 'generation' is none"),
    (b'"state":{"generation":1}', b'"state":{"behind":1}', "candidate 0 has a state whose 'behind' is none"),
    (b'"state":{"generation":1}', b'"state":{"behind":[[9]]}', "candidate 0 has a point outside the space"),
    (b'"candidate":1,"strategy":"test","point":[0]', b'"candidate":1,"strategy":"test","point":null', "candidate 1 has no point"),
    (b'"allocation":{"x.weight":2}', b'"allocation":{"x.weight":2.0}', "allocation.x.weight"),
    (b'"worker":"here:1"', b'"worker":"\xff"', "not a valid entry"),
    (b'"worker":"here:1"', b'"worker":"\\ud800"', "not a valid entry"),
    (b'"widths":{"x.weight":[2,4]}', b'"widths":{"x.weight":[4,2]}', "line 1: not a valid entry"),
    (b'"widths":{"x.weight":[2,4]}', b'"widths":{"x.weight":[2,9]}', "line 1: not a valid entry"),
    (b'"widths":{"x.weight":[2,4]}', b'"widths":{"x.weight":[]}', "line 1: not a valid entry"),
    (b'"groups":[]', b'"groups":[["x.weight","x.weight"]]', "its groups share a site"),
    (b'"groups":[]', b'"groups":[["y.weight"]]', "no site of the header"),
]


@pytest.mark.parametrize(("before", "after", "message"), SENSELESS)
def test_nonsense_behind_a_good_seal_is_one_line(tmp_path: Path, before: bytes, after: bytes, message: str) -> None:
    path = write(tmp_path, *EVENTS)
    edit_text(path, before, after)
    with pytest.raises(UserError, match=re.escape(message)) as refused:
        list(read_record(tmp_path)[1])
    assert str(refused.value).startswith(f"{path}, line ")


# Searches that leave out parts of the network

OPTIONS = {"block.kept": (0, 1), "y.channels": (4, 8, 16)}
PARTLY = {"widths": {"x.weight": (2, 4), "y.weight": (2, 4), "y.output": (8,)}, "options": OPTIONS}
WHOLE = {"x.weight": 2, "y.weight": 4, "y.output": 8}


def kept(candidate: int, allocation: dict[str, int], structure: dict[str, int]) -> Scored:
    return scored(candidate).model_copy(update={"allocation": allocation, "structure": structure})


def proposed(candidate: int, *point: int) -> Asked:
    return asked(candidate).model_copy(update={"point": point})


def test_what_is_left_out_is_written_and_read(tmp_path: Path) -> None:
    entries = [
        *(proposed(number, 0, 1, *left) for number, left in enumerate(((1, 2), (1, 1), (0, 2)))),
        kept(0, WHOLE, {}),
        kept(1, WHOLE, {"y.channels": 8}),
        kept(2, {"x.weight": 2}, {"block.kept": 0}),
    ]
    with Record(tmp_path, header(**PARTLY)) as record:
        record.extend(entries)
    found, read = read_record(tmp_path)
    assert found == header(**PARTLY)
    assert found.space.options == tuple(OPTIONS.items())
    assert found.space.shape == (2, 2, 2, 3)
    assert list(read) == entries
    with Record(tmp_path, header(**PARTLY)):
        pass


def test_a_record_from_before_anything_could_be_left_out_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, *EVENTS)
    edit_text(path, b',"options":{}', b"")
    edit_text(path, b',"structure":{}', b"")
    found, read = read_record(tmp_path)
    assert found == header()
    assert list(read) == EVENTS


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (kept(1, WHOLE, {"y.channels": 5}), "keeps 5 of 'y.channels'"),
        (kept(1, WHOLE, {"y.channels": 16}), "keeps 16 of 'y.channels'"),  # the whole is not named
        (kept(1, WHOLE, {"z.channels": 4}), "keeps 4 of 'z.channels'"),
        (kept(1, {"x.weight": 2}, {}), "has an allocation that is not of the header's sites"),
        (kept(1, {"x.weight": 2}, {"y.channels": 4}), "has an allocation that is not of the header's sites"),
        (kept(1, {}, {"block.kept": 0}), "has an allocation that is not of the header's sites"),
        (kept(1, {"x.weight": 2, "z.weight": 2}, {"block.kept": 0}), "has an allocation that is not of the header's sites"),
        (kept(1, {"x.weight": 8}, {"block.kept": 0}), "has 8 bits at site 'x.weight'"),
        (proposed(1, 0, 1), "has a point outside the space"),
        (proposed(1, 0, 1, 1, 3), "has a point outside the space"),
    ],
)
def test_an_entry_that_keeps_what_the_header_does_not_know_is_named(tmp_path: Path, entry: Asked | Scored, reason: str) -> None:
    before = [proposed(0, 0, 1, 1, 2), *([] if isinstance(entry, Asked) else [proposed(1, 0, 1, 1, 1)])]
    with Record(tmp_path, header(**PARTLY)) as record:
        record.extend([*before, entry])
    with pytest.raises(UserError, match=re.escape(f"line {2 + len(before)}: candidate 1 {reason}; wanted an undamaged record")):
        list(read_record(tmp_path)[1])


@pytest.mark.parametrize("values", [(1,), (), (8, 4), (4, 4), (-1, 1)])
def test_a_header_whose_options_have_no_values_to_choose_from_is_refused(values: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=re.escape(f"option 'y.channels' is kept at {list(values)}")):
        header(options={"y.channels": values})
