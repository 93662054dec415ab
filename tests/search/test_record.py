import errno
import fcntl
import os
import re
import socket
from pathlib import Path

import pytest

from hwsearch.errors import UserError
from hwsearch.experiment import Fidelity
from hwsearch.search.folder_lock import lock_holder
from hwsearch.search.objectives import QUALITY_AND_SIZE
from hwsearch.search.record import RECORD_FILE, SCHEMA_VERSION, Asked, Failed, Header, Record, Scored, has_begun, read_record

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
    with pytest.raises(UserError, match="which a newer hwsearch writes"):
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
    Record(tmp_path, header()).close()
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
        (b"{ not JSON", "line 3: not a valid entry"),
        (b"\0\0\0\0", "line 3: not a valid entry"),
        (b'{"event":"asked","candidate":1}', "line 3: not a valid entry (asked.strategy: Field required)"),
        (
            scored(0).model_dump_json().replace("0.30000000000000004", "NaN").encode(),
            "line 3: not a valid entry",
        ),
        (asked(5).model_dump_json().encode(), "line 3: candidate 5 asked; wanted 1"),
        (scored(7).model_dump_json().encode(), "line 3: candidate 7 finished before it was asked"),
        (header().model_dump_json().encode(), "line 3: found a second header"),
    ],
)
def test_a_damaged_middle_line_is_named_by_file_and_number(tmp_path: Path, line: bytes, message: str) -> None:
    path = write(tmp_path, *EVENTS)
    lines = path.read_bytes().splitlines()
    lines[2] = line
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(UserError, match=re.escape(f"{path}, {message}")):
        list(read_record(tmp_path)[1])


def test_a_candidate_cannot_finish_twice_at_one_fidelity(tmp_path: Path) -> None:
    once = [asked(0), *(scored(0, fidelity) for fidelity in Fidelity)]
    write(tmp_path, *once, failed(0, Fidelity.SHORT_QAT))
    with pytest.raises(UserError, match="line 7: candidate 0 finished a second time at fidelity 'short-qat'"):
        list(read_record(tmp_path)[1])


def test_a_second_driver_is_refused_by_the_pid_of_the_first(tmp_path: Path) -> None:
    with (
        Record(tmp_path, header()),
        pytest.raises(UserError, match=f"process {os.getpid()} is searching here"),
    ):
        Record(tmp_path, header())
    Record(tmp_path, header()).close()


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
        (
            {"experiment": "c" * 64, "name": "other"},
            "holds a search of experiment 'test' (aaaaaaaaaaaa), not of 'other'",
        ),
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
    Record(tmp_path, header()).close()


@pytest.mark.parametrize(("version", "what"), [(0, "0"), (-1, "-1"), (4, "4, which a newer hwsearch writes")])
def test_a_schema_that_is_not_known_is_refused(tmp_path: Path, version: int, what: str) -> None:
    path = write(tmp_path)
    path.write_text(path.read_text().replace(f'"schema_version":{SCHEMA_VERSION}', f'"schema_version":{version}'))
    before = path.read_bytes()
    message = re.escape(f"{path}: schema version {what}; wanted 3 or earlier, from 1 on")
    with pytest.raises(UserError, match=message):
        read_record(tmp_path)
    with pytest.raises(UserError, match=message):
        Record(tmp_path, header())
    assert path.read_bytes() == before


def test_a_point_has_an_index_for_every_free_choice_of_the_header(tmp_path: Path) -> None:
    widths = {"x.weight": (2, 4), "y.weight": (2, 4), "z.weight": (2, 4, 8), "masks": (8,)}
    grouped = header(widths=widths, groups=(("x.weight", "y.weight"),))
    with Record(tmp_path, grouped) as record:
        record.append(asked(0).model_copy(update={"point": (1, 2)}))
    assert next(read_record(tmp_path)[1]).point == (1, 2)
    with Record(tmp_path, grouped) as record:
        record.append(asked(1).model_copy(update={"point": (1, 1, 2)}))
    with pytest.raises(UserError, match="line 3: candidate 1's point is outside the space"):
        list(read_record(tmp_path)[1])


@pytest.mark.parametrize("weights", ["../out.safetensors", "a/b.safetensors", "abc.pt", "ABC.safetensors"])
def test_a_name_of_weights_that_leaves_its_folder_is_refused(tmp_path: Path, weights: str) -> None:
    path = write(tmp_path, asked(0), scored(0).model_copy(update={"weights": weights}))
    with pytest.raises(UserError, match=re.escape(f"{path}, line 3: not a valid entry (scored.weights")):
        list(read_record(tmp_path)[1])


def test_a_folder_without_a_record_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file; wanted the record of a search"):
        read_record(tmp_path / "nowhere")


def test_a_folder_in_the_records_place_is_named(tmp_path: Path) -> None:
    (tmp_path / RECORD_FILE).mkdir()
    for look in (read_record, has_begun):
        with pytest.raises(UserError, match=re.escape(f"{RECORD_FILE}: cannot be read (Is a directory); wanted the record")):
            look(tmp_path)


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (asked(0).model_copy(update={"point": (2,)}), "candidate 0's point is outside the space"),
        (asked(0).model_copy(update={"point": (0, 0)}), "candidate 0's point is outside the space"),
        (scored(1).model_copy(update={"allocation": {"y.weight": 2}}), "candidate 1's allocation is not of the header's sites"),
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
