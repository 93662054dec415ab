"""Mixtures that exist: lists, checks, the data set made of them, and training on them."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import soxr

from hwsearch.data.arrays import ARRAYS
from hwsearch.data.build import build_data, check_data
from hwsearch.data.dataset import format_mixture, load_mixture, open_dataset, parse_mixture
from hwsearch.data.direction import fit_array, wrapped
from hwsearch.data.example import Example
from hwsearch.data.mixture_csv import read_csv, read_librimix
from hwsearch.data.recorded import read_recorded
from hwsearch.data.sms_wsj import read_sms_wsj
from hwsearch.data.training_examples import MixedExamples, RecordedExamples
from hwsearch.errors import UserError
from hwsearch.experiment import DataConfig, Experiment, Split, load_experiment, parse_experiment

from .conftest import RATE, babble
from .mixtures import HEADER, recorded

CONV_TASNET = '[separator]\nnetwork = "conv-tasnet"\n'


def written(folder: Path, keys: str = 'path = "mixtures.csv"', *, data: str = "", more: str = "") -> Path:
    file = folder / "own.toml"
    file.write_text(f'name = "own"\nbase = "embedded"\n[data]\n{data}\n[[data.recorded]]\n{keys}\n{more}')
    return file


def built(file: Path, folder: Path, processes: int = 1) -> Experiment:
    experiment = load_experiment(file)
    build_data(experiment, folder, folder / "corpora", processes, lambda done, total: None)
    return experiment


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_data_set_holds_the_recordings_and_what_the_list_says(tmp_path: Path) -> None:
    recorded(tmp_path, rate=16000)
    built(written(tmp_path), tmp_path / "data")
    found = open_dataset(tmp_path / "data", Split.TEST)
    assert [(one.id, one.target.doa_deg, one.target.transcript, one.target.speaker) for one in found] == [
        (f"test-recorded-{n:05d}", 30.0 * n + 10, f"words {n}", f"recorded:test speaker {n}") for n in range(3)
    ]
    for number, mixture in enumerate(found):
        suffix = "flac" if number else "wav"
        sound, target = load_mixture(tmp_path / "data", mixture)
        dry = sf.read(tmp_path / "test" / f"mix {number}.{suffix}", dtype="float32")[0]
        np.testing.assert_array_equal(sound, soxr.resample(dry, 16000, RATE).T)
        dry = sf.read(tmp_path / "test" / f"tär {number}.{suffix}", dtype="float32")[0]
        np.testing.assert_allclose(target, soxr.resample(dry, 16000, RATE), atol=1e-7)
        assert (mixture.interferer, mixture.angle_deg, mixture.room, mixture.target.position_m) == (None, None, None, None)
        assert parse_mixture(format_mixture(mixture)) == mixture


def test_two_processes_give_the_same_bytes(tmp_path: Path) -> None:
    recorded(tmp_path, ("validation", "test"), rate=11025)
    for processes in (1, 2):
        built(written(tmp_path), tmp_path / f"data {processes}", processes)
    assert content(tmp_path / "data 1") == content(tmp_path / "data 2")
    assert len(content(tmp_path / "data 1")) == 15


def test_the_digest_names_the_content_wherever_it_lies(tmp_path: Path) -> None:
    recorded(tmp_path / "here")
    here = load_experiment(written(tmp_path / "here"))
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    assert load_experiment(tmp_path / "there" / "own.toml").data_digest() == here.data_digest()
    assert here.data.recorded[0].count == {Split.TEST: 3}
    again = parse_experiment(here.model_dump(mode="json"), "a run folder")
    assert again.data_digest() == here.data_digest()
    for change in (
        lambda folder: _edit(folder / "mixtures.csv", "10,Words", "11,Words"),
        lambda folder: _edit(folder / "mixtures.csv", "Words 1", "Word 1"),
        lambda folder: sf.write(folder / "test" / "tär 0.wav", babble(1.5, 999), RATE),
    ):
        shutil.rmtree(tmp_path / "there")
        shutil.copytree(tmp_path / "here", tmp_path / "there")
        change(tmp_path / "there")
        assert load_experiment(tmp_path / "there" / "own.toml").data_digest() != here.data_digest()
        # A run's experiment keeps the hash that it had.
        moved = here.data.recorded[0].model_copy(update={"path": tmp_path / "there" / "mixtures.csv"})
        with pytest.raises(UserError, match=r"mixtures\.csv: the list or its files have changed since they had the content"):
            read_recorded(here.data.model_copy(update={"recorded": (moved,)}))


def test_absolute_paths_give_the_digest_of_relative_ones(tmp_path: Path) -> None:
    recorded(tmp_path)
    relative = load_experiment(written(tmp_path)).data_digest()
    path = tmp_path / "mixtures.csv"
    path.write_text(path.read_text().replace("test/", f"{tmp_path}/test/"))
    assert load_experiment(tmp_path / "own.toml").data_digest() == relative


def test_a_hash_in_the_experiment_file_must_be_that_of_the_content(tmp_path: Path) -> None:
    recorded(tmp_path)
    found = load_experiment(written(tmp_path)).data.recorded[0].sha256
    pinned = f'path = "mixtures.csv"\nsha256 = "{found}"'
    assert load_experiment(written(tmp_path, pinned)).data.recorded[0].sha256 == found
    _edit(tmp_path / "mixtures.csv", "Words 2", "Word")
    with pytest.raises(UserError, match=f"the list and its files have sha256 '.*'; the experiment file wants '{found}'"):
        load_experiment(tmp_path / "own.toml")


def test_the_first_mixtures_of_the_splits_that_are_named_are_taken(tmp_path: Path) -> None:
    recorded(tmp_path, ("train", "validation", "test"))
    data = load_experiment(written(tmp_path, 'path = "mixtures.csv"\ncount = { test = 2, validation = 100 }')).data
    assert data.recorded[0].count == {Split.VALIDATION: 3, Split.TEST: 2}
    assert [data.fixed_count(split) for split in Split] == [0, 3, 2]
    assert not data.has_recorded(Split.TRAIN)
    assert [mixture.doa_deg for mixture in read_recorded(data).mixtures if mixture.split is Split.TEST] == [10, 40]


def test_an_old_experiment_has_the_digest_that_it_had(tmp_path: Path) -> None:
    path = Path(__file__).parents[2] / "experiments" / "quickstart.toml"
    experiment = load_experiment(path)
    assert experiment.data_digest()[:16] == "f617eb7f6fd68490"  # as README.md shows it


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def _rewrite(name: str, sound: np.ndarray, rate: int = RATE) -> Callable[[Path], None]:
    return lambda folder: sf.write(folder / "test" / name, sound, rate)


def _line(old: str, new: str) -> Callable[[Path], None]:
    return lambda folder: _edit(folder / "mixtures.csv", old, new)


LONG = babble(1.5, 1)

WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "no list": (
        lambda folder: (folder / "mixtures.csv").unlink(),
        "no such file; wanted a CSV list of mixtures of mixture,target",
    ),
    "no column": (_line(HEADER, HEADER.replace("doa_deg", "angle")), r":1: no column 'doa_deg'; wanted mixture,target,doa_deg\["),
    "an unknown column": (_line(HEADER, HEADER.replace("speaker", "talker")), r":1: unknown column 'talker'"),
    "no target": (_line("test/tär 0.wav", ""), r":2: no target; 'hwsearch separate' needs none, but to score"),
    "no mixture": (_line("test/mix 0.wav", ""), r":2: no mixture"),
    "NaN": (_line(",10,", ",nan,"), r":2: doa_deg is 'nan'; wanted 0 to 180 degrees, as data\.array 'linear6' counts them"),
    "a word": (_line(",10,", ",left,"), r":2: doa_deg is 'left'; wanted 0 to 180"),
    "out of range": (_line(",10,", ",190,"), r":2: doa_deg is '190'; wanted 0 to 180"),
    "negative": (_line(",10,", ",-1,"), r":2: doa_deg is '-1'; wanted 0 to 180"),
    "no direction": (_line(",10,", ",,"), r":2: no direction of the target, which the network is given; wanted one"),
    "a split": (_line("test speaker 0,test", "test speaker 0,dev"), r":2: split is 'dev'; wanted 'train'"),
    "a missing file": (
        lambda folder: (folder / "test" / "tär 1.flac").unlink(),
        r":3: .*tär 1\.flac: no such file; wanted a rec",
    ),
    "no audio": (lambda folder: (folder / "test" / "mix 0.wav").write_text("RIFF no"), r"mix 0\.wav: not readable as audio"),
    "empty": (lambda folder: (folder / "test" / "mix 0.wav").write_bytes(b""), r"mix 0\.wav: the file is empty"),
    "channels": (
        _rewrite("mix 0.wav", np.stack([LONG] * 5, axis=1)),
        r":2: .*mix 0\.wav: 5 channels; data\.array 'linear6' has 6 microphones: wanted a channel for each",
    ),
    "target channels": (_rewrite("tär 0.wav", np.stack([LONG] * 2, axis=1)), r"tär 0\.wav: 2 channels; wanted one, or those of"),
    "lengths": (
        _rewrite("tär 0.wav", LONG[:-7]),
        r":2: .*tär 0\.wav: 11993 samples; the mixture .*mix 0\.wav has 12000: wanted as",
    ),
    "rates": (_rewrite("tär 0.wav", LONG, 16000), r"tär 0\.wav: 16000 Hz; the mixture has 8000 Hz: wanted the same rate"),
    "too short": (
        lambda folder: [sf.write(folder / "test" / "mix 0.wav", np.stack([LONG[:800]] * 6, axis=1), RATE)],
        r"mix 0\.wav: lasts 0\.1 s; wanted 0\.5 to 699 s",
    ),
    "listed twice": (
        _line("test/mix 1.flac,test/tär 1.flac", "test/mix 0.wav,test/tär 0.wav"),
        r":3: .* is listed twice with this",
    ),
    "a speaker in two splits": (
        _line("test speaker 1,test", "test speaker 0,validation"),
        r"speaker test speaker 0 is in the .* split and, by .*, in the .* split; wanted one split",
    ),
    "a target in two splits": (
        lambda folder: (
            _edit(folder / "mixtures.csv", "tär 1.flac,40,Words 1,test speaker 1,test", "copy.wav,40,Words 1,,validation"),
            shutil.copy(folder / "test" / "tär 0.wav", folder / "test" / "copy.wav"),
            sf.write(folder / "test" / "mix 1.flac", np.stack([LONG] * 6, axis=1), RATE),
        ),
        r":2: .*tär 0\.wav is in the test split and, by .*:3, in the validation split; wanted one split",
    ),
    "a copy of a mixture in two splits": (
        lambda folder: (
            _edit(
                folder / "mixtures.csv", "mix 1.flac,test/tär 1.flac,40,Words 1,test speaker 1,test", "copy,test/new,40,,,train"
            ),
            shutil.copy(folder / "test" / "mix 0.wav", folder / "test" / "copy"),
            sf.write(folder / "test" / "new", LONG, RATE, format="WAV"),
        ),
        r":2: .*mix 0\.wav is in the test split and, by .*:3, in the train split; wanted one split",
    ),
    "too few of a split": (
        lambda folder: written(folder, 'path = "mixtures.csv"\ncount = { train = 2 }'),
        r"mixtures\.csv: no train mixture in it; data\.recorded\.count wants some",
    ),
    "no mixture in the list": (lambda folder: (folder / "mixtures.csv").write_text(HEADER), "no mixture in it; wanted some"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_list_is_refused_in_one_line_before_anything_is_written(tmp_path: Path, name: str) -> None:
    recorded(tmp_path)
    file = written(tmp_path)
    change, message = WRONG[name]
    change(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        check_data(load_experiment(file), tmp_path / "data", tmp_path / "corpora")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("value", "message"), [(0.0, "tär 0.wav: silent"), (math.nan, "tär 0.wav: holds NaN or infinite samples")]
)
def test_what_only_the_samples_say_is_refused_when_they_are_read(tmp_path: Path, value: float, message: str) -> None:
    recorded(tmp_path)
    sf.write(tmp_path / "test" / "tär 0.wav", np.full(12000, value, np.float32), RATE, subtype="FLOAT")
    with pytest.raises(UserError, match=message):
        built(written(tmp_path), tmp_path / "data")
    assert not (tmp_path / "data" / "test" / "manifest.jsonl").exists()


@pytest.mark.parametrize("name", ["mix 0.wav", "tär 0.wav"])
def test_a_file_whose_first_channel_is_silent_is_refused_when_it_is_read(tmp_path: Path, name: str) -> None:
    recorded(tmp_path)
    sf.write(tmp_path / "test" / name, np.stack([0 * LONG] + [LONG] * 5, axis=1), RATE)
    with pytest.raises(UserError, match=f"{name}: silent in channel 1: no sample reaches"):
        built(written(tmp_path), tmp_path / "data")


def test_a_manifest_that_hides_what_is_known_of_a_made_mixture_is_refused(tmp_path: Path) -> None:
    recorded(tmp_path)
    built(written(tmp_path), tmp_path / "data")
    (line, *_) = (tmp_path / "data" / "test" / "manifest.jsonl").read_text().splitlines()
    with pytest.raises(ValueError, match="interferer: nothing; wanted a value for a mixture that was made here"):
        parse_mixture(json.dumps(json.loads(line) | {"target_kind": "early"}))


# Training


def _mixtures(folder: Path) -> tuple[Any, ...]:
    recorded(folder, ("train",), rate=16000)
    return read_recorded(load_experiment(written(folder)).data).mixtures


def test_training_segments_are_parts_of_the_recordings(tmp_path: Path) -> None:
    mixtures = _mixtures(tmp_path)
    examples = RecordedExamples(mixtures, 16000, 8000, ("x",))
    wholes = {mixture.doa_deg: sf.read(mixture.mixture, dtype="float32")[0].T for mixture in mixtures}
    targets = {mixture.doa_deg: sf.read(mixture.targets[0], dtype="float32")[0] for mixture in mixtures}
    seen = set()
    for index in range(20):
        example = examples.example(0, index)
        assert example.mixture.shape == (6, 8000)
        whole = wholes[example.doa_deg]
        starts = np.flatnonzero(whole[0] == example.mixture[0, 0])
        places = [start for start in starts if np.array_equal(whole[:, start : start + 8000], example.mixture)]
        assert len(places) == 1
        np.testing.assert_array_equal(targets[example.doa_deg][places[0] : places[0] + 8000], example.target)
        seen.add((example.doa_deg, places[0]))
    assert len(seen) == 20
    assert len({doa for doa, _ in seen}) == 3
    again = examples.example(0, 3)
    examples.example(5, 5)
    assert np.array_equal(again.mixture, examples.example(0, 3).mixture)
    assert not np.array_equal(again.mixture, examples.example(1, 3).mixture)


def test_a_segment_longer_than_a_recording_is_padded_and_resampled(tmp_path: Path) -> None:
    example = RecordedExamples(_mixtures(tmp_path), RATE, 16000, ("x",)).example(0, 0)
    assert example.mixture.shape == (6, 16000)
    assert example.target.shape == (16000,)
    assert np.abs(example.target[:12000]).max() > 0.01
    assert not example.target[-2000:].any()


def test_segments_in_which_the_target_is_silent_are_drawn_again(tmp_path: Path) -> None:
    (mixture, *_) = _mixtures(tmp_path)
    sound, rate = sf.read(mixture.targets[0], dtype="float32")
    sound[: len(sound) // 2] = 0
    sf.write(mixture.targets[0], sound, rate)
    examples = RecordedExamples((mixture,), 16000, 4000, ("x",))
    assert all(examples.example(0, index).target.any() for index in range(30))


def test_a_share_of_the_examples_is_recorded(tmp_path: Path) -> None:
    class Always:
        def __init__(self, value: float) -> None:
            self.value = value

        def example(self, epoch: int, index: int) -> Example:
            del epoch, index
            return Example(np.zeros((1, 1), np.float32), np.zeros(1, np.float32), self.value)

    both = MixedExamples(Always(0.0), Always(1.0), 0.25, ("x",))
    drawn = [both.example(1, index).doa_deg for index in range(2000)]
    assert np.mean(drawn) == pytest.approx(0.25, abs=0.03)
    assert drawn == [both.example(1, index).doa_deg for index in range(2000)]


# LibriMix and SMS-WSJ, in files as their programs write them


def data_of(array: str, **mixtures: object) -> DataConfig:
    made = {"corpora": [], "rooms": {"count": {}}, "mixtures": {"count": {}, **mixtures}}
    return DataConfig.model_validate({"array": array, "recorded": [{"path": "x"}], **made})


def librimix(folder: Path, part: str = "test", *, noise: bool = True) -> Path:
    """Two mixtures with their sources, and the metadata with absolute paths."""
    header = ["mixture_ID", "mixture_path", "source_1_path", "source_2_path", *(["noise_path"] if noise else []), "length"]
    lines = [",".join(header)]
    for number in range(2):
        name = f"{1089 + number}-134686-000{number}_{121 + number}-127105-003{number}"
        voices = [0.3 * babble(1.2, 10 * number + voice) for voice in range(2)]
        for sub, sound in (("s1", voices[0]), ("s2", voices[1]), ("mix_clean", voices[0] + voices[1])):
            path = folder / part / sub / f"{name}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            sf.write(path, sound, RATE)
        paths = [str(folder / part / sub / f"{name}.wav") for sub in ("mix_clean", "s1", "s2", *(["noise"] if noise else []))]
        lines.append(",".join([name, *paths, "9600"]))
    path = folder / "metadata" / f"mixture_{part}_mix_clean.csv"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(("part", "split"), [("test", Split.TEST), ("dev", Split.VALIDATION), ("train-100", Split.TRAIN)])
def test_librimix_gives_each_of_its_two_speakers_once(tmp_path: Path, part: str, split: Split) -> None:
    found = read_librimix(librimix(tmp_path, part), data_of("mono")).mixtures
    assert [(one.split, one.speaker, one.mixture.parent.name, one.targets[0].parent.name, one.doa_deg) for one in found] == [
        (split, speaker, "mix_clean", source, None)
        for speaker, source in (("1089", "s1"), ("121", "s2"), ("1090", "s1"), ("122", "s2"))
    ]


def test_librimix_makes_a_data_set_for_a_network_without_directions(tmp_path: Path) -> None:
    librimix(tmp_path)
    keys = 'kind = "librimix"\npath = "metadata/mixture_test_mix_clean.csv"'
    file = written(tmp_path, keys, data='array = "mono"', more=CONV_TASNET)
    file.write_text(file.read_text().replace('base = "embedded"\n', ""))
    built(file, tmp_path / "data")
    found = open_dataset(tmp_path / "data", Split.TEST)
    assert [(one.microphones, one.target.doa_deg, one.doa_deg) for one in found] == [(1, None, 0.0)] * 4
    written(tmp_path, keys, data='array = "mono"')
    with pytest.raises(UserError, match=r"data\.array has one microphone, and the network wants a direction"):
        load_experiment(file)


def test_wrong_librimix_files_are_refused(tmp_path: Path) -> None:
    path = librimix(tmp_path)
    with pytest.raises(UserError, match="the name holds not one of 'train', 'dev' and 'test'"):
        read_librimix(path.rename(path.with_name("mixtures.csv")), data_of("mono"))
    path.write_text("mixture_ID,mixture_path,source_1_path,source_2_path,source_3_path,length\na,b,c,d,e,1\n")
    with pytest.raises(UserError, match=":1: column 'source_3_path'; wanted mixtures of two speakers"):
        read_librimix(path, data_of("mono"))
    path.write_text("mixture_ID,mixture_path\n")
    with pytest.raises(UserError, match=":1: no column 'source_1_path'; wanted mixture_ID,"):
        read_librimix(path, data_of("mono"))


def sms_wsj(folder: Path, radius_m: float = 0.1, turn_deg: float = 25.0) -> tuple[Path, list[list[float]]]:
    """A file of two examples as the program of SMS-WSJ writes it, and the directions of the sources from microphone 1."""
    datasets: dict[str, dict[str, Any]] = {"cv_dev93": {}, "test_eval92": {}}
    directions = []
    for number, dataset in enumerate(datasets):
        name = f"{number}_4k0c0301_4k6c030t"
        audio: dict[str, Any] = {"original_source": ["a", "b"], "rir": ["a", "b"]}
        parts = []
        for key, kind in (("speech_reverberation_early", "early"), ("speech_reverberation_tail", "tail")):
            audio[key] = []
            for voice in range(2):
                path = folder / kind / dataset / f"{name}_{voice}.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                sound = 0.2 * np.stack([babble(1.0, 100 * number + 10 * len(parts) + mic) for mic in range(6)], axis=1)
                sf.write(path, sound, RATE, subtype="FLOAT")
                parts.append(sound)
                audio[key].append(str(path))
        observation = folder / "observation" / dataset / f"{name}.wav"
        observation.parent.mkdir(parents=True, exist_ok=True)
        sf.write(observation, np.sum(parts, axis=0), RATE, subtype="FLOAT")
        audio["observation"] = str(observation)
        centre = np.array([4.0, 3.0, 1.5])
        turn = np.deg2rad(turn_deg * (number + 1))
        angles = turn + 2 * np.pi * np.arange(6) / 6
        sensors = centre[:, None] + radius_m * np.stack([np.cos(angles), np.sin(angles), np.zeros(6)])
        wanted = [40.0 + number, 310.0]
        at = np.deg2rad(wanted) + turn
        sources = centre[:, None] + 1.5 * np.stack([np.cos(at), np.sin(at), np.zeros(2)])
        directions.append(wanted)
        datasets[dataset][name] = {
            "room_dimensions": [[8.0], [6.0], [3.0]],
            "sound_decay_time": 0.3,
            "source_position": sources.tolist(),
            "sensor_position": sensors.tolist(),
            "example_id": name,
            "num_speakers": 2,
            "speaker_id": [f"4k{number}", f"4m{number}"],
            "gender": ["male", "female"],
            "kaldi_transcription": ["HELLO  THERE", "GOOD NIGHT"],
            "log_weights": [0.5, -0.5],
            "num_samples": {"original_source": [8000, 7000], "observation": 8000},
            "offset": [0, 100],
            "snr": 23.0,
            "audio_path": audio,
        }
    (folder / "sms_wsj.json").write_text(json.dumps({"datasets": datasets}))
    return folder / "sms_wsj.json", directions


def test_sms_wsj_gives_each_speaker_once_with_its_direction_from_microphone_1(tmp_path: Path) -> None:
    path, directions = sms_wsj(tmp_path)
    listed = read_sms_wsj(path, data_of("circular6"))
    assert [one.split for one in listed.mixtures] == [Split.VALIDATION] * 2 + [Split.TEST] * 2
    np.testing.assert_allclose([one.doa_deg for one in listed.mixtures], np.ravel(directions), atol=1e-6)
    np.testing.assert_allclose([one.angle_deg for one in listed.mixtures], [90.0] * 2 + [91.0] * 2, atol=1e-6)
    assert [(one.speaker, one.transcript) for one in listed.mixtures[:2]] == [("4k0", "hello there"), ("4m0", "good night")]
    assert "microphones lie up to 5.0 cm from where data.array 'circular6' has them" in listed.notes[0]
    assert read_sms_wsj(sms_wsj(tmp_path / "5 cm", radius_m=0.05)[0], data_of("circular6")).notes == ()


def test_the_target_of_sms_wsj_is_what_the_experiment_wants(tmp_path: Path) -> None:
    sms_wsj(tmp_path)
    for target, kinds in (("reverberant", ["early", "tail"]), ("early", ["early"])):
        data = f'array = "circular6"\nmixtures.target = "{target}"'
        folder = tmp_path / target
        built(written(tmp_path, 'kind = "sms-wsj"\npath = "sms_wsj.json"', data=data, more=CONV_TASNET), folder)
        for mixture in open_dataset(folder, Split.TEST):
            _, heard = load_mixture(folder, mixture)
            name = mixture.target.utterance.removeprefix("recorded:").replace("/", "_")
            parts = [sf.read(tmp_path / kind / "test_eval92" / f"{name}.wav", dtype="float32")[0][:, 0] for kind in kinds]
            np.testing.assert_allclose(heard, sum(parts), atol=1e-6)


def test_wrong_sms_wsj_files_are_refused(tmp_path: Path) -> None:
    path, _ = sms_wsj(tmp_path)
    whole = json.loads(path.read_text())
    (example,) = whole["datasets"]["cv_dev93"].values()

    def refused(message: str, array: str = "circular6", **mixtures: object) -> None:
        path.write_text(json.dumps(whole))
        with pytest.raises(UserError, match=message) as error:
            read_sms_wsj(path, data_of(array, **mixtures))
        assert "\n" not in str(error.value)

    refused("cv_dev93/0_4k0c0301_4k6c030t: 6 microphones; data.array 'linear4' has 4: wanted as many", "linear4")
    example["sensor_position"][1].append(0.0)
    refused("cv_dev93/0_4k0c0301_4k6c030t: 7 microphones; data.array 'circular6' has 6: wanted as many")
    example["sensor_position"][1].pop()
    refused("the early targets of SMS-WSJ last 50 ms; data.mixtures.early_ms is 20", target="early", early_ms=20.0)
    del example["audio_path"]["speech_reverberation_tail"]
    refused("cv_dev93/0_4k0c0301_4k6c030t: its targets are not written; wanted SMS-WSJ as it is made by default")
    example["source_position"] = [[1.0], [1.0], [1.0]]
    refused("source_position is not that of two sources")
    del example["speaker_id"]
    refused(r"datasets\.cv_dev93\.0_4k0c0301_4k6c030t\.speaker_id: ")
    whole["datasets"]["other"] = whole["datasets"].pop("cv_dev93")
    example["speaker_id"] = ["a", "b"]
    refused("data set 'other'; wanted train_si284, cv_dev93, test_eval92")
    whole = {"sets": 3}
    refused("no 'datasets'; wanted SMS-WSJ's JSON file")


@pytest.mark.parametrize("name", ["linear15", "linear6", "circular6", "linear4"])
@pytest.mark.parametrize("turn", [0.0, 77.0, 180.0, 300.0])
def test_an_array_is_found_among_microphones_that_were_turned_and_moved(name: Any, turn: float) -> None:
    array = ARRAYS[name]
    angle = np.deg2rad(turn)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    found = fit_array(array, array.positions @ rotation.T + [3.0, -2.0])
    assert found is not None
    assert found.misfit_m < 1e-12
    for doa in (0.5, 60.0, 130.0, 175.0):
        at = np.deg2rad(doa + turn)
        assert found.doa_deg(np.array([3.0, -2.0]) + 2 * np.array([np.cos(at), np.sin(at)])) == pytest.approx(doa, abs=1e-9)
    assert fit_array(array, np.zeros_like(array.positions)) is None


def test_a_direction_behind_a_linear_array_is_that_of_its_mirror_image() -> None:
    assert wrapped(-30.0, ARRAYS["linear6"]) == 30.0
    assert wrapped(200.0, ARRAYS["linear6"]) == 160.0
    assert wrapped(-30.0, ARRAYS["circular6"]) == 330.0
    assert wrapped(390.0, ARRAYS["circular6"]) == 30.0


def test_lists_are_read_for_the_data_of_their_experiment(tmp_path: Path) -> None:
    path = recorded(tmp_path)
    assert read_csv(path, data_of("linear6")).mixtures[0].doa_deg == 10.0
    _edit(path, ",10,", ",355,")
    assert read_csv(path, data_of("circular6")).mixtures[0].doa_deg == 355.0
