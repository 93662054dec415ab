"""Rooms whose impulse responses were recorded, as WAV and as SOFA."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import soundfile as sf
import soxr

from hwsearch.data import recorded_rooms, sofa
from hwsearch.data.arrays import ARRAYS
from hwsearch.data.build import build_data, check_data
from hwsearch.data.dataset import load_mixture, open_dataset
from hwsearch.data.recorded_rooms import read_recorded_rooms
from hwsearch.data.rooms import RoomBank, build_bank, draw_rooms, rooms_folder
from hwsearch.errors import UserError
from hwsearch.experiment import Experiment, Split, load_experiment

from .conftest import RATE, babble

HEADER = "rir,doa_deg,room,split"


def response(seed: int, mics: int = 4, delay: int = 500, rate: int = RATE) -> np.ndarray:
    """Responses [taps, mics]: a direct sound, a little later at every microphone, and a decaying tail."""
    random = np.random.default_rng(seed)
    found = np.zeros((delay + round(0.15 * rate), mics), np.float32)
    for mic in range(mics):
        tail = random.standard_normal(len(found) - delay - mic) * np.exp(-np.arange(len(found) - delay - mic) / (0.02 * rate))
        found[delay + mic :, mic] = 0.05 * tail
        found[delay + mic, mic] = 0.9
    return found


def rooms(folder: Path, rate: int = RATE) -> Path:
    """Two rooms of each split, with four places each; and speech of nine speakers in a folder."""
    lines = [HEADER]
    for number, split in enumerate(Split):
        for room in range(2):
            for place in range(4):
                name = f"rir/{split.value} {room} {place}.wav"
                (folder / "rir").mkdir(parents=True, exist_ok=True)
                seed = 100 * number + 10 * room + place
                sf.write(folder / name, response(seed, delay=500 + 10 * place, rate=rate), rate, subtype="DOUBLE")
                lines.append(f"{name},{40 * place + 5 * room},{split.value} hall {room},{split.value}")
    (folder / "rirs.csv").write_text("\n".join(lines) + "\n")
    for speaker in range(9):
        (folder / "speech" / f"s{speaker}").mkdir(parents=True)
        for take in range(2):
            sf.write(folder / "speech" / f"s{speaker}" / f"{take}.wav", babble(0.8, 2 * speaker + take), RATE)
    return folder / "rirs.csv"


def written(folder: Path, keys: str = "", mixtures: str = "count = { validation = 2, test = 6 }") -> Path:
    file = folder / "own.toml"
    file.write_text(
        f"""\
name = "own"
seed = 7
[data]
array = "linear4"
[[data.corpora]]
kind = "folder"
root = "speech"
splits = {{ train = 0.34, validation = 0.33, test = 0.33 }}
[data.rooms]
recorded = "rirs.csv"
{keys}
[data.mixtures]
seconds = 1.0
{mixtures}
"""
    )
    return file


def built(file: Path, folder: Path, processes: int = 1) -> Experiment:
    experiment = load_experiment(file)
    build_data(experiment, folder, folder / "corpora", processes, lambda done, total: None)
    return experiment


def bank(file: Path, folder: Path, split: Split = Split.TEST) -> RoomBank:
    experiment = load_experiment(file)
    data, name = experiment.data, experiment.data_digest()
    return build_bank(data, name, split, folder, 1, lambda done, total: None)


def test_rooms_are_those_of_the_list_without_the_delay_that_all_places_share(tmp_path: Path) -> None:
    rooms(tmp_path)
    found = bank(written(tmp_path), tmp_path / "bank")
    assert [room.doa_deg for room in found.rooms] == [(0.0, 40.0, 80.0, 120.0), (5.0, 45.0, 85.0, 125.0)]
    kept = RATE // 200
    for room in found.rooms:
        responses = found.impulse_responses(room.index)
        for place in range(4):
            wanted = response(200 + 10 * room.index + place, delay=500 + 10 * place)[500 - kept :].T
            heard = responses[place]
            assert np.array_equal(heard[:, : wanted.shape[1]], wanted)
            assert not heard[:, wanted.shape[1] :].any()


def test_responses_are_resampled(tmp_path: Path) -> None:
    rooms(tmp_path, rate=16000)
    heard = bank(written(tmp_path), tmp_path / "bank").impulse_responses(0)[2]
    wanted = soxr.resample(response(202, delay=520, rate=16000), 16000, RATE).T
    start = int(np.argmax(np.abs(heard[0]))) - int(np.argmax(np.abs(wanted[0])))
    np.testing.assert_allclose(heard[:, : wanted.shape[1] + start], wanted[:, -start:], atol=1e-6)


def test_mixtures_in_recorded_rooms_are_speech_convolved_with_their_responses(tmp_path: Path) -> None:
    rooms(tmp_path)
    for processes in (1, 2):
        built(written(tmp_path), tmp_path / f"data {processes}", processes)
    one, two = (
        {path.name: path.read_bytes() for path in sorted((tmp_path / f"data {n}").rglob("*")) if path.is_file()} for n in (1, 2)
    )
    assert one == two
    folder = tmp_path / "data 1"
    for mixture in open_dataset(folder, Split.TEST):
        assert (mixture.t60_s, mixture.room_size_m, mixture.array_centre_m, mixture.target.position_m) == (None,) * 4
        assert mixture.interferer is not None
        assert mixture.room is not None
        responses = np.load(rooms_folder(folder, Split.TEST) / f"room-{mixture.room:05d}.npy")
        room = draw_rooms((experiment := load_experiment(tmp_path / "own.toml")).data, experiment.data_digest(), Split.TEST)[
            mixture.room
        ]
        images = []
        for talker in (mixture.target, mixture.interferer):
            name = talker.utterance.removeprefix("folder:")
            dry = sf.read(tmp_path / "speech" / name)[0]
            placed = np.pad(dry, (talker.start, mixture.samples))[: mixture.samples]
            images.append(np.convolve(placed, responses[room.doa_deg.index(talker.doa_deg), 1])[: mixture.samples])
        if not (mixture.target.whole and mixture.interferer.whole):
            continue
        sound, _ = load_mixture(folder, mixture)
        _, (residual,), *_ = np.linalg.lstsq(np.stack(images, axis=1), sound[1])
        assert residual < 1e-6 * np.sum(sound[1] ** 2)


def test_speakers_are_never_closer_than_the_smallest_angle(tmp_path: Path) -> None:
    rooms(tmp_path)
    built(written(tmp_path, "min_angle_deg = 60.0", "count = { test = 30 }"), tmp_path / "data")
    angles = {mixture.angle_deg for mixture in open_dataset(tmp_path / "data", Split.TEST)}
    assert angles == {80.0, 120.0}


def test_rooms_are_counted_and_named_by_their_content(tmp_path: Path) -> None:
    rooms(tmp_path)
    experiment = load_experiment(written(tmp_path))
    assert experiment.data.rooms.count == dict.fromkeys(Split, 2)
    fewer = load_experiment(written(tmp_path, "count = { validation = 5, test = 1 }"))
    assert fewer.data.rooms.count == {Split.VALIDATION: 2, Split.TEST: 1}
    written(tmp_path)
    sf.write(tmp_path / "rir" / "test 0 0.wav", response(5), RATE)
    assert load_experiment(tmp_path / "own.toml").data_digest() != experiment.data_digest()
    with pytest.raises(UserError, match="the list or its files have changed since they had the content"):
        check_data(experiment, tmp_path / "data", tmp_path / "corpora")


def _line(old: str, new: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        text = (folder / "rirs.csv").read_text()
        assert text.count(old) == 1
        (folder / "rirs.csv").write_text(text.replace(old, new))

    return edit


FIRST = "rir/train 0 0.wav,0,train hall 0,train"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda folder: (folder / "rirs.csv").unlink(),
            r"rirs\.csv: no such file; wanted a CSV list of impulse responses of rir",
        ),
        (_line(HEADER, "rir,doa_deg,place,split"), r":1: no column 'room'; wanted rir,doa_deg,room,split"),
        (_line(FIRST, "rir/train 0 0.wav,nan,train hall 0,train"), r":2: doa_deg is 'nan'; wanted 0 to 180"),
        (_line(FIRST, "rir/train 0 0.wav,,train hall 0,train"), r":2: no doa_deg; wanted the direction of the place"),
        (_line(FIRST, "rir/train 0 0.wav,200,train hall 0,train"), r":2: doa_deg is '200'"),
        (_line(FIRST, "rir/train 0 0.wav,0,,train"), r":2: no room"),
        (_line(FIRST, "rir/train 0 0.wav,0,train hall 0,dev"), r":2: split is 'dev'"),
        (_line(FIRST, "rir/train 0 0.wav,0,train hall 0,test"), r":3: room train hall 0 is in two splits"),
        (_line(FIRST, "rir/gone.wav,0,train hall 0,train"), r":2: .*gone\.wav: no such file; wanted impulse responses"),
        (lambda folder: (folder / "rirs.csv").write_text(HEADER), "no room in it; wanted a line for each"),
        (
            lambda folder: (folder / "rirs.csv").write_text(f"{HEADER}\n{FIRST}\n"),
            r":2: room train hall 0 has no two places 5 degrees apart",
        ),
        (
            lambda folder: sf.write(folder / "rir" / "test 1 1.wav", response(1, mics=3), RATE),
            r"test 1 1\.wav: 3 channels; data\.array 'linear4' has 4 microphones: wanted a response for each",
        ),
        (lambda folder: (folder / "rir" / "test 1 1.wav").write_text("no"), r"test 1 1\.wav: not readable as audio"),
        (
            lambda folder: sf.write(folder / "rir" / "test 1 1.wav", np.ones((81000, 4)), RATE),
            r"test 1 1\.wav: lasts 10\.125 s; wanted at most 10 s",
        ),
        (
            lambda folder: (folder / "rir" / "test 1 1.wav").write_bytes((folder / "rir" / "train 0 0.wav").read_bytes()),
            r":23: .*test 1 1\.wav is in the test split and, by .*:2, in the train split; wanted one, so that test rooms are new",
        ),
        (
            lambda folder: (
                sf.write(folder / "rir" / "0.wav", np.eye(80000, 4), RATE),
                _line(FIRST, "\n".join(f"rir/0.wav,{angle},a,train" for angle in range(180)))(folder),
            ),
            r":2: room a: 180 places of 10 s take 220 MiB; wanted at most 100: fewer places, or shorter responses",
        ),
        (
            lambda folder: os.mkfifo(folder / "rir" / "new.wav") or _line(FIRST, "rir/new.wav,0,a,test")(folder),
            "is a pipe; wanted",
        ),
    ],
)
def test_a_wrong_list_of_rooms_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None], message: str
) -> None:
    monkeypatch.setattr(recorded_rooms, "LARGEST_BYTES", 100 * 2**20)
    rooms(tmp_path)
    change(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        check_data(load_experiment(written(tmp_path)), tmp_path / "data", tmp_path / "corpora")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "data").exists()


def test_a_response_that_a_microphone_does_not_hear_is_refused_when_it_is_read(tmp_path: Path) -> None:
    rooms(tmp_path)
    sf.write(tmp_path / "rir" / "test 0 1.wav", response(1) * [1, 0, 1, 1], RATE)
    with pytest.raises(UserError, match=r"test 0 1\.wav: silent in channel 2: no sample reaches"):
        bank(written(tmp_path), tmp_path / "bank")


# SOFA


def write_sofa(path: Path, doas: list[float], *, turn_deg: float = 0.0, spherical: bool = False, **changes: Any) -> np.ndarray:
    """A file as AES69 describes it, with sources at directions of the array and the listener turned; the responses [M, R, N]."""
    responses = np.stack([response(number, delay=50).T for number in range(len(doas))])
    at = np.deg2rad(np.array(doas) + turn_deg)
    listener, view = np.array([2.0, 3.0, 1.5]), np.deg2rad(turn_deg)
    sources = listener + 1.5 * np.stack([np.cos(at), np.sin(at), 0 * at], axis=1)
    if spherical:  # from the listener, who lies at the origin and looks along the x axis
        listener, view = np.zeros(3), 0.0
        sources = np.stack([np.array(doas), np.zeros(len(doas)), np.full(len(doas), 1.5)], axis=1)
    arrays = {
        "Data.IR": responses,
        "Data.SamplingRate": np.array([float(RATE)]),
        "SourcePosition": sources,
        "ListenerPosition": listener[None],
        "ListenerView": np.array([[np.cos(view), np.sin(view), 0.0]]),
        "ReceiverPosition": np.pad(ARRAYS["linear4"].positions, ((0, 0), (0, 1)))[:, :, None],
        **changes,
    }
    with h5py.File(path, "w") as file:
        file.attrs["Conventions"] = "SOFA"
        for name, values in arrays.items():
            if values is not None:
                file[name] = values
        if spherical:
            file["SourcePosition"].attrs["Type"] = "spherical"
    return responses


def listed(folder: Path, line: str = "room.sofa,,hall,test") -> Path:
    (folder / "speech").exists() or rooms(folder)
    (folder / "rirs.csv").write_text(f"{HEADER}\n{line}\n")
    return written(folder, mixtures="count = { test = 2 }")


@pytest.mark.parametrize(("turn", "spherical"), [(0.0, False), (35.0, False), (200.0, False), (0.0, True)])
def test_a_sofa_file_gives_directions_and_responses(tmp_path: Path, turn: float, *, spherical: bool) -> None:
    doas = [10.0, 75.0, 170.0]
    wanted = write_sofa(tmp_path / "room.sofa", doas, turn_deg=turn, spherical=spherical)
    file = listed(tmp_path)
    (room,) = read_recorded_rooms(load_experiment(file).data)
    np.testing.assert_allclose([one.doa_deg for one in room.responses], doas, atol=1e-6)
    heard = bank(file, tmp_path / "bank").impulse_responses(0)
    kept = 50 - RATE // 200
    np.testing.assert_allclose(heard, wanted[:, :, kept:], atol=1e-7)


def test_a_direction_in_the_list_stands_for_that_of_a_file_with_one_measurement(tmp_path: Path) -> None:
    for number in range(2):
        write_sofa(tmp_path / f"{number}.sofa", [10.0], ReceiverPosition=np.zeros((4, 3, 1)))
    file = listed(tmp_path, "0.sofa,20,hall,test\n1.sofa,90,hall,test")
    (room,) = read_recorded_rooms(load_experiment(file).data)
    assert [one.doa_deg for one in room.responses] == [20.0, 90.0]


@pytest.mark.parametrize(
    ("changes", "line", "message"),
    [
        ({}, "room.sofa,20,hall,test", "2 measurements, and one doa_deg; wanted an empty doa_deg"),
        ({"ReceiverPosition": np.zeros((4, 3, 1))}, None, "all its receivers lie in one place, so directions are unknown"),
        ({"ReceiverPosition": np.ones((3, 3, 1))}, None, "3 receivers; data.array 'linear4' has 4 microphones"),
        ({"Data.IR": np.zeros((2, 4))}, None, r"Data.IR has the shape \[2, 4\]; wanted measurements, receivers"),
        ({"Data.IR": None}, None, "not readable as SOFA"),
        ({"Data.SamplingRate": np.array([np.nan])}, None, r"Data.SamplingRate is \[nan\]; wanted one whole rate"),
        ({"SourcePosition": np.full((2, 3), np.nan)}, None, "a position is not finite"),
        ({"SourcePosition": np.zeros((5, 3))}, None, "not readable as SOFA"),
        ({"Data.Delay": np.array([[0.0, 0.0, 2.0, 0.0]])}, None, "Data.Delay differs between microphones; wanted delays within"),
        ({"Data.Delay": np.full((2, 4), np.nan)}, None, "Data.Delay differs between microphones"),
        ({"Data.IR": np.zeros((513, 4, 2))}, None, "513 measurements; wanted at most 512, in a file with a part of them"),
        ({"SourcePosition": np.zeros((2**19, 3))}, None, "not readable as SOFA .SourcePosition has 1572864 values"),
        ({"Data.IR": h5py.ExternalLink("other.h5", "x")}, None, "not readable as SOFA"),
    ],
)
def test_a_wrong_sofa_file_is_refused_in_one_line(
    tmp_path: Path, changes: dict[str, Any], line: str | None, message: str
) -> None:
    write_sofa(tmp_path / "room.sofa", [10.0, 90.0], **changes)
    with pytest.raises(UserError, match=message) as error:
        load_experiment(listed(tmp_path, line or "room.sofa,,hall,test"))
    assert "\n" not in str(error.value)


def test_a_delay_of_all_microphones_changes_nothing(tmp_path: Path) -> None:
    write_sofa(tmp_path / "room.sofa", [10.0, 90.0], **{"Data.Delay": np.array([[3.5] * 4, [0.0] * 4])})
    (room,) = read_recorded_rooms(load_experiment(listed(tmp_path)).data)
    assert len(room.responses) == 2


def test_what_is_no_sofa_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "room.sofa").write_text("no")
    file = listed(tmp_path)
    with pytest.raises(UserError, match=r"room\.sofa: not readable as SOFA"):
        load_experiment(file)
    monkeypatch.setattr(sofa, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"SOFA files want a package that is not installed: pip install 'hwsearch\[sofa\]'"):
        load_experiment(file)
