"""Noise from a folder, in mixtures that are made."""

import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from hwsearch.data.build import build_data, check_data
from hwsearch.data.dataset import load_mixture, open_dataset
from hwsearch.data.dynamic import DynamicMixtures
from hwsearch.data.noise import NoiseFile, Noises, check_noise, make_noise, read_noise
from hwsearch.data.rooms import build_bank
from hwsearch.data.seeding import generator
from hwsearch.errors import UserError
from hwsearch.experiment import Experiment, Split, load_experiment

from .conftest import RATE, babble
from .test_recorded_rooms import response

NOISE = '[data.noise]\nfolder = "noise"\nsnr_db = [5, 20]\nsplits = { train = 0.5, validation = 0.25, test = 0.25 }\n'


def noise_folder(folder: Path, count: int = 8, mics: int = 1, rate: int = RATE) -> Path:
    """Loose files of noise, and one folder with three files."""
    names = [f"street {n}.wav" for n in range(count)] + [f"kitchen/ch{n}.flac" for n in range(3)]
    for number, name in enumerate(names):
        path = folder / "noise" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        sound = 0.1 * np.random.default_rng(number).standard_normal((2 * rate, mics))
        sf.write(path, sound, rate)
    return folder / "noise"


def written(folder: Path, noise: str = NOISE, **rooms: int) -> Path:
    for speaker in range(9):
        place = folder / "speech" / f"s{speaker}"
        if not place.exists():
            place.mkdir(parents=True)
            for take in range(2):
                sf.write(place / f"{take}.wav", babble(0.8, 2 * speaker + take), RATE)
    keys = "".join(f"{name} = {value}\n" for name, value in rooms.items())
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
count = {{ train = 1, validation = 1, test = 1 }}
size_max_m = [5.0, 5.0, 3.0]
t60_max_s = 0.1
{keys}
[data.mixtures]
seconds = 1.0
count = {{ validation = 2, test = 4 }}
{noise}"""
    )
    return file


def built(file: Path, folder: Path, processes: int = 1) -> Experiment:
    experiment = load_experiment(file)
    build_data(experiment, folder, folder / "corpora", processes, lambda done, total: None)
    return experiment


def test_no_noise_is_in_two_splits_and_files_of_one_folder_stay_together(tmp_path: Path) -> None:
    noise_folder(tmp_path)
    experiment = load_experiment(written(tmp_path))
    homes = defaultdict(set)
    for seed in range(20):
        dealt = read_noise(experiment.data, seed)
        ids = [file.id for noises in dealt.values() for file in noises.files]
        assert len(ids) == len(set(ids)) == 11
        for split, noises in dealt.items():
            assert noises.files
            homes[seed] |= {split for file in noises.files if file.id.startswith("kitchen/")}
    assert all(len(splits) == 1 for splits in homes.values())
    assert len({*map(tuple, homes.values())}) > 1


def test_the_speech_lies_above_the_noise_by_the_level_in_the_manifest(tmp_path: Path) -> None:
    noise_folder(tmp_path)
    file = written(tmp_path)
    noisy = built(file, tmp_path / "noisy")
    # The same mixtures without noise: the names of the random generators hold the data digest.
    quiet = noisy.model_copy(update={"data": noisy.data.model_copy(update={"noise": None})})
    object.__setattr__(quiet, "data_digest", noisy.data_digest)
    build_data(quiet, tmp_path / "quiet", tmp_path / "corpora", 1, lambda done, total: None)
    heard = {file.id for file in read_noise(noisy.data, 7)[Split.TEST].files}
    levels = []
    for with_noise, without in zip(*(open_dataset(tmp_path / name, Split.TEST) for name in ("noisy", "quiet")), strict=True):
        assert with_noise.noise in heard
        assert with_noise.noise_below_db is not None
        assert (without.noise, without.noise_below_db) == (None, None)
        sound, target = load_mixture(tmp_path / "noisy", with_noise)
        speech, other = load_mixture(tmp_path / "quiet", without)
        scale = np.dot(other, target) / np.dot(other, other)
        np.testing.assert_allclose(target, scale * other, atol=1e-5)
        noise = sound - scale * speech
        found = 10 * np.log10(np.sum((scale * speech[0]) ** 2) / np.sum(noise[0] ** 2))
        assert found == pytest.approx(with_noise.noise_below_db, abs=0.01)
        levels.append(found)
    assert all(5 <= level <= 20 for level in levels)
    assert np.ptp(levels) > 1
    assert '"noise"' not in (tmp_path / "quiet" / "test" / "manifest.jsonl").read_text()


def test_two_processes_give_the_same_bytes_and_other_noise_gives_others(tmp_path: Path) -> None:
    noise_folder(tmp_path, rate=11025)
    file = written(tmp_path)
    for processes in (1, 2):
        built(file, tmp_path / f"{processes}", processes)
    one, two = ({path.relative_to(tmp_path / n): path.read_bytes() for path in (tmp_path / n).rglob("*.*")} for n in "12")
    assert one == two
    before = load_experiment(file).data_digest()
    sf.write(tmp_path / "noise" / "street 0.wav", np.ones(9000), RATE)
    assert load_experiment(file).data_digest() != before


def drawn(path: Path, mics: int = 3, samples: int = 4000, rate: int = RATE) -> tuple[np.ndarray, np.ndarray]:
    """Noise from a file, and the responses of the room."""
    responses = np.stack([response(place, mics=mics, delay=20).T for place in range(3)])
    noises = Noises((NoiseFile("x", path),), (5.0, 20.0))
    noise = make_noise(generator("x"), noises, responses, (0, 2), (samples, rate))
    assert 5 <= noise.snr_db <= 20
    return noise.sound, responses


def test_noise_of_as_many_channels_is_added_as_it_is(tmp_path: Path) -> None:
    recorded = np.random.default_rng(0).uniform(-0.5, 0.5, (16000, 3)).astype(np.float32)
    sf.write(tmp_path / "x.wav", recorded, RATE, subtype="FLOAT")
    sound, _ = drawn(tmp_path / "x.wav")
    (start,) = np.flatnonzero(recorded[:, 0] == sound[0, 0])
    np.testing.assert_array_equal(sound, recorded[start : start + 4000].T)


def test_noise_of_one_channel_sounds_from_the_place_that_is_free(tmp_path: Path) -> None:
    recorded = np.random.default_rng(0).uniform(-0.5, 0.5, 16000).astype(np.float32)
    sf.write(tmp_path / "x.wav", recorded, RATE, subtype="FLOAT")
    sound, responses = drawn(tmp_path / "x.wav")
    images = [np.convolve(recorded, responses[1, mic], mode="valid") for mic in range(3)]
    place = int(np.argmax(np.correlate(images[0], sound[0], mode="valid")))
    for mic in range(3):
        np.testing.assert_allclose(sound[mic], images[mic][place : place + 4000], atol=1e-4)


def test_noise_shorter_than_a_mixture_is_repeated(tmp_path: Path) -> None:
    recorded = np.random.default_rng(0).uniform(-0.5, 0.5, (1000, 3)).astype(np.float32)
    sf.write(tmp_path / "x.wav", recorded, RATE, subtype="FLOAT")
    sound, _ = drawn(tmp_path / "x.wav")
    np.testing.assert_array_equal(sound[:, 1000:2000], sound[:, :1000])
    assert sorted(sound[0, :1000]) == sorted(recorded[:, 0])


def test_a_silent_piece_of_noise_is_passed_over(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.wav" for number in range(2)]
    recorded = np.zeros((80000, 3), np.float32)
    recorded[0] = 0.5
    sf.write(paths[0], recorded, RATE)
    sf.write(paths[1], recorded + 0.1, RATE)
    responses = np.stack([response(place, mics=3).T for place in range(3)])
    noises = Noises(tuple(NoiseFile(path.name, path) for path in paths), (5.0, 5.0))
    assert make_noise(generator("y"), noises, responses, (0, 1), (4000, RATE)).file.id == "1.wav"


def test_training_mixtures_have_noise_and_are_functions_of_their_number(tmp_path: Path) -> None:
    noise_folder(tmp_path)
    data = load_experiment(written(tmp_path)).data
    bank = build_bank(data, "x", Split.TRAIN, tmp_path / "bank", 1, lambda done, total: None)
    speech = {f"s{i}": [np.random.default_rng(i).standard_normal(9000).astype(np.float32)] for i in range(4)}
    sets = [
        DynamicMixtures(speech, bank, data.mixtures, RATE, RATE, ("x",), noises)
        for noises in (None, read_noise(data, 0)[Split.TRAIN])
    ]
    for index in range(5):
        quiet, noisy = (each.example(2, index) for each in sets)
        scale = np.dot(quiet.target, noisy.target) / np.dot(quiet.target, quiet.target)
        noise = noisy.mixture - scale * quiet.mixture
        level = 10 * np.log10(np.mean((scale * quiet.mixture[0]) ** 2) / np.mean(noise[0] ** 2))
        assert 4 < level < 21
        assert np.array_equal(noisy.mixture, sets[1].example(2, index).mixture)


def test_training_alone_has_noise_unless_others_are_named(tmp_path: Path) -> None:
    noise_folder(tmp_path)
    experiment = built(written(tmp_path, '[data.noise]\nfolder = "noise"\nsnr_db = [0, 0]\n'), tmp_path / "data")
    assert set(read_noise(experiment.data, 7)) == {Split.TRAIN}
    assert {mixture.noise for split in (Split.VALIDATION, Split.TEST) for mixture in open_dataset(tmp_path / "data", split)} == {
        None
    }


def test_what_is_done_to_noise_is_said(tmp_path: Path) -> None:
    noise_folder(tmp_path, rate=16000)
    data = load_experiment(written(tmp_path)).data
    assert check_noise(data, 7) == (
        f"{tmp_path / 'noise'}: 11 noise files of 16000 Hz: resampled to 8000 Hz",
        f"{tmp_path / 'noise'}: 11 noise files of one channel: the noise sounds from a place in the room where nobody speaks",
    )


@pytest.mark.parametrize(
    ("change", "noise", "rooms", "message"),
    [
        (None, NOISE.replace("[5, 20]", "[20, 5]"), {}, r"data\.noise: snr_db \[20\.0, 5\.0\] must rise"),
        (None, NOISE.replace("[5, 20]", "[5, 90]"), {}, r"data\.noise\.snr_db\.1 is 90; wanted at most 60"),
        (None, NOISE.replace("[5, 20]", "[nan, 20]"), {}, r"data\.noise\.snr_db\.0 is nan; wanted a finite number"),
        (
            None,
            NOISE.replace("0.5", "0.9"),
            {},
            "data.noise: splits must name at least one split, with shares that sum to at most 1",
        ),
        (None, NOISE.replace('"noise"', '"noises"'), {}, "noises: no such folder; wanted WAV or FLAC files of noise in it"),
        (lambda folder: [path.unlink() for path in folder.rglob("*.*")], NOISE, {}, "noise: no WAV or FLAC file in it"),
        (
            lambda folder: [path.unlink() for path in folder.glob("street*") if "0" not in path.name],
            NOISE,
            {},
            r"noise: noise files: 2; wanted at least 3, 1 in each of train, validation, test",
        ),
        (
            lambda folder: ((folder / "street 1.wav").unlink(), os.mkfifo(folder / "street 1.wav")),
            NOISE,
            {},
            r"street 1\.wav: is a pipe; wanted a recording",
        ),
        (lambda folder: (folder / "street 1.wav").write_bytes(b""), NOISE, {}, r"street 1\.wav: the file is empty"),
        (lambda folder: (folder / "street 1.wav").write_text("no"), NOISE, {}, r"street 1\.wav: not readable as audio"),
        (
            lambda folder: sf.write(folder / "street 1.wav", np.ones((9000, 2)), RATE),
            NOISE,
            {},
            r"street 1\.wav: 2 channels; data\.array 'linear4' has 4 microphones: wanted a channel for each, or one",
        ),
        (
            lambda folder: sf.write(folder / "street 1.wav", np.ones(90), RATE),
            NOISE,
            {},
            r"lasts 0\.01125 s; wanted noise of at least",
        ),
        (
            None,
            NOISE,
            {"sources_per_room": 2},
            r"data\.rooms\.sources_per_room is 2; noise of one channel sounds from a third place",
        ),
    ],
)
def test_wrong_noise_is_refused_in_one_line_before_anything_is_made(
    tmp_path: Path, change: Callable[[Path], object] | None, noise: str, rooms: dict[str, int], message: str
) -> None:
    folder = noise_folder(tmp_path)
    if change is not None:
        change(folder)
    with pytest.raises(UserError, match=message) as error:
        check_data(load_experiment(written(tmp_path, noise, **rooms)), tmp_path / "data", tmp_path / "corpora")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "data").exists()


def test_noise_for_mixtures_that_are_not_made_is_refused(tmp_path: Path) -> None:
    noise_folder(tmp_path)
    file = written(tmp_path)
    file.write_text(
        file.read_text().replace("count = { train = 1, validation = 1, test = 1 }", "count = { validation = 1, test = 1 }")
    )
    with pytest.raises(
        UserError, match=r"noise for the train split, whose mixtures are not made: data\.rooms\.count has no 'train'"
    ):
        check_data(load_experiment(file), tmp_path / "data", tmp_path / "corpora")


def test_noise_that_has_changed_since_the_experiment_was_read_is_refused(tmp_path: Path) -> None:
    folder = noise_folder(tmp_path)
    experiment = load_experiment(written(tmp_path))
    (folder / "street 3.wav").unlink()
    with pytest.raises(UserError, match="its files have changed since the experiment was read"):
        check_data(experiment, tmp_path / "data", tmp_path / "corpora")


@pytest.mark.parametrize("place", [0, -1])
def test_noise_replaced_by_other_noise_of_the_same_size_is_other_noise(tmp_path: Path, place: int) -> None:
    folder = noise_folder(tmp_path)
    experiment = load_experiment(written(tmp_path))
    path = folder / "street 3.wav"
    content = bytearray(path.read_bytes())
    content[44 if place == 0 else -1] ^= 1  # behind the header
    path.write_bytes(content)
    again = load_experiment(written(tmp_path))
    assert again.data_digest() != experiment.data_digest()
    with pytest.raises(UserError, match="its files have changed since the experiment was read"):
        check_data(experiment, tmp_path / "data", tmp_path / "corpora")
