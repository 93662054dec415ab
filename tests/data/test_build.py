import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from hwsearch.data.audio import wav_header
from hwsearch.data.build import build_data, check_data
from hwsearch.data.corpus import load_corpora
from hwsearch.data.dataset import Mixture, load_mixture, manifest_hash, open_dataset
from hwsearch.data.rooms import draw_rooms
from hwsearch.errors import UserError
from hwsearch.experiment import Experiment, Split, parse_experiment

from .conftest import RATE, babble

MIXTURES = 12


def _experiment(csv_corpus: Path, mixtures: int = MIXTURES, **mixing: object) -> Experiment:
    return parse_experiment(
        {
            "name": "tiny",
            "seed": 7,
            "data": {
                "array": "linear4",
                "corpora": [{"kind": "csv", "root": str(csv_corpus), "splits": {"train": 0.3, "validation": 0.3, "test": 0.4}}],
                "rooms": {
                    "count": {"train": 1, "validation": 1, "test": 2},
                    "sources_per_room": 3,
                    "size_min_m": [4.0, 4.0, 2.5],
                    "size_max_m": [5.0, 5.0, 3.0],
                    "t60_min_s": 0.1,
                    "t60_max_s": 0.12,
                },
                "mixtures": {
                    "count": {"validation": 2, "test": mixtures},
                    "seconds": 0.7,
                    "overlap_mean": 0.8,
                    **mixing,
                },
            },
        },
        source="test",
    )


def _build(experiment: Experiment, folder: Path, processes: int = 1) -> tuple[Mixture, ...]:
    build_data(experiment, folder, folder / "corpora", processes, lambda _done, _total: None)
    return open_dataset(folder, Split.TEST)


def _content(folder: Path) -> dict[str, bytes]:
    """All files but the hidden ones that a kill leaves."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


@pytest.fixture(scope="module")
def experiment(csv_corpus: Path) -> Experiment:
    return _experiment(csv_corpus)


@pytest.fixture(scope="module")
def folder(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data")
    _build(experiment, path)
    return path


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """The built data, to be changed."""
    return Path(shutil.copytree(folder, tmp_path / "copied"))


@pytest.fixture(scope="module")
def mixtures(folder: Path) -> tuple[Mixture, ...]:
    return open_dataset(folder, Split.TEST)


def test_the_same_experiment_gives_the_same_bytes_in_one_process_or_two(
    experiment: Experiment, folder: Path, tmp_path: Path
) -> None:
    _build(experiment, tmp_path, processes=2)
    assert _content(tmp_path) == _content(folder)


def test_a_build_killed_half_way_goes_on_and_ends_the_same(experiment: Experiment, folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "build.py"
    script.write_text(
        textwrap.dedent("""
            import json, sys, time
            from pathlib import Path
            from hwsearch.data.build import build_data
            from hwsearch.experiment import parse_experiment

            def slowly(done, total):
                print(done, total, flush=True)
                time.sleep(0.05)

            if __name__ == "__main__":
                experiment = parse_experiment(json.loads(sys.argv[1]), "test")
                build_data(experiment, Path(sys.argv[2]), Path(sys.argv[2]) / "corpora", 1, slowly)
        """)
    )
    target = tmp_path / "data"
    command = [sys.executable, str(script), experiment.model_dump_json(), str(target)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    kept: set[str] = set()
    for _ in range(2):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert process.stdout is not None
        for line in process.stdout:
            done, total = map(int, line.split())
            if done >= total - MIXTURES + len(kept) + 3:
                break
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert not (target / "test" / "manifest.jsonl").exists()
        kept = {line for line in (target / ".journal.jsonl").read_text().splitlines() if line}
    assert 3 <= len(kept) < MIXTURES
    with (target / ".journal.jsonl").open("a") as journal:
        journal.write('{"id":"test-00011","sample_')
    name = json.loads(min(kept))["mixture_path"]
    written = (target / name).stat().st_mtime_ns
    _build(experiment, target)
    assert (target / name).stat().st_mtime_ns == written, "what was whole is kept"
    assert _content(target) == _content(folder)


def test_a_finished_build_is_left_alone_and_a_damaged_file_is_made_again(
    experiment: Experiment, folder: Path, copied: Path
) -> None:
    before = _times(copied, "*.wav")
    _build(experiment, copied)
    assert _times(copied, "*.wav") == before
    damaged = copied / "test" / "00003-target.wav"
    damaged.write_bytes(damaged.read_bytes()[:-2])
    (copied / "test" / "00004-mixture.wav").unlink()
    _build(experiment, copied)
    assert _content(copied) == _content(folder)


def test_progress_rises_to_the_number_of_rooms_and_mixtures(experiment: Experiment, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    build_data(experiment, tmp_path, tmp_path / "c", 1, lambda done, total: told.append((done, total)))
    assert told[-1] == (4 + 2 + MIXTURES, 4 + 2 + MIXTURES)
    assert told == sorted(told)


def test_the_level_between_the_speakers_is_the_one_in_the_manifest(folder: Path, mixtures: tuple[Mixture, ...]) -> None:
    for mixture in mixtures:
        sound, target = load_mixture(folder, mixture)
        interferer = sound[0].astype(np.float64) - target
        power = np.sum(target.astype(np.float64) ** 2) / mixture.target.samples
        interferer_power = np.sum(interferer**2) / mixture.interferer.samples
        assert 10 * np.log10(power / interferer_power) == pytest.approx(mixture.sir_db, abs=0.01)
    assert np.std([mixture.sir_db for mixture in mixtures]) > 0.5


def test_both_speak_where_the_manifest_says(folder: Path, mixtures: tuple[Mixture, ...]) -> None:
    tail = round(0.15 * RATE)  # the longest T60 is 0.12 s
    for mixture in mixtures:
        sound, target = load_mixture(folder, mixture)
        speaking = np.zeros((2, mixture.samples), bool)
        for row, talker, heard in (
            (0, mixture.target, target),
            (1, mixture.interferer, sound[0] - target),
        ):
            end = talker.start + talker.samples
            speaking[row, talker.start : end] = True
            loud = np.sqrt(np.mean(heard[talker.start : end] ** 2))
            assert np.abs(heard[: talker.start]).max(initial=0) < 0.02 * loud
            assert np.abs(heard[end + tail :]).max(initial=0) < 0.05 * loud
            assert np.abs(heard[end - RATE // 20 : end]).max() > 0.3 * loud
        assert speaking.all(axis=0).mean() == pytest.approx(mixture.overlap, abs=1e-9)
        assert mixture.samples <= 0.7 * RATE


def test_overlap_is_the_one_drawn_where_utterances_are_long_enough(mixtures: tuple[Mixture, ...]) -> None:
    for mixture in mixtures:
        assert mixture.overlap == pytest.approx(mixture.overlap_drawn, abs=0.002)
        assert 0.6 <= mixture.overlap <= 1.0


def test_the_target_arrives_from_its_direction(folder: Path, mixtures: tuple[Mixture, ...]) -> None:
    for mixture in mixtures:
        for talker in (mixture.target, mixture.interferer):
            east, north, _ = np.subtract(talker.position_m, mixture.array_centre_m)
            assert abs(np.rad2deg(np.arctan2(north, east))) == pytest.approx(talker.doa_deg, abs=0.05)
        assert mixture.angle_deg == pytest.approx(abs(mixture.target.doa_deg - mixture.interferer.doa_deg))
        assert mixture.angle_deg >= 5.0


def test_every_utterance_of_the_split_is_a_target_equally_often(
    experiment: Experiment, mixtures: tuple[Mixture, ...], tmp_path: Path
) -> None:
    speech = load_corpora(experiment.data, experiment.seed, tmp_path)[Split.TEST]
    counts = Counter(mixture.target.utterance for mixture in mixtures)
    assert set(counts) <= {utterance.id for utterance in speech}
    assert max(counts.values()) - (min(counts.values()) if len(counts) == len(speech) else 0) <= 1
    assert all(mixture.target.speaker != mixture.interferer.speaker for mixture in mixtures)


def test_a_cut_utterance_has_no_transcript_and_a_whole_one_keeps_its_words(
    csv_corpus: Path, mixtures: tuple[Mixture, ...]
) -> None:
    talkers = [talker for mixture in mixtures for talker in (mixture.target, mixture.interferer)]
    assert {talker.whole for talker in talkers} == {True, False}
    for talker in talkers:
        number = talker.utterance.removeprefix("csv:").removesuffix(".wav")
        assert talker.transcript == (f"words number {number}" if talker.whole else None)
        if talker.whole:
            assert talker.samples == sf.info(csv_corpus.parent / f"{number}.wav").frames


def test_training_and_test_share_no_room(experiment: Experiment, folder: Path) -> None:
    rooms = [(folder / "rooms" / split.value / "room-00000.npy").read_bytes() for split in Split]
    assert len(set(rooms)) == 3


def test_the_files_are_the_dry_speech_convolved_with_the_room_plus_noise(csv_corpus: Path, tmp_path: Path) -> None:
    noisy = _experiment(csv_corpus, seconds=2.0, noise_snr_db=10.0, target="early", early_ms=20.0)
    rooms = draw_rooms(noisy.data, noisy.data_digest(), Split.TEST)
    whole = [made for made in _build(noisy, tmp_path) if made.target.whole and made.interferer.whole]
    assert whole
    for mixture in whole:
        sound, target = load_mixture(tmp_path, mixture)
        room = rooms[mixture.room]
        responses = np.load(tmp_path / "rooms" / "test" / f"room-{mixture.room:05d}.npy")
        images, early = [], []
        for talker in (mixture.target, mixture.interferer):
            dry = sf.read(csv_corpus.parent / talker.utterance.removeprefix("csv:"))[0]
            response = responses[room.doa_deg.index(talker.doa_deg), 0]
            first = response.copy()
            first[np.argmax(np.abs(first)) + RATE // 50 :] = 0
            placed = np.pad(dry, (talker.start, mixture.samples - talker.start - len(dry)))
            images.append(np.convolve(placed, response)[: mixture.samples])
            early.append(np.convolve(placed, first)[: mixture.samples])
        assert np.corrcoef(early[0], target)[0, 1] > 0.99999
        _, (residual,), *_ = np.linalg.lstsq(np.stack(images, axis=1), sound[0])
        clean = np.sum(sound[0].astype(np.float64) ** 2) - residual
        assert 10 * np.log10(clean / residual) == pytest.approx(10.0, abs=0.4)


def test_a_changed_file_is_refused_by_name(copied: Path, mixtures: tuple[Mixture, ...]) -> None:
    mixture = mixtures[0]
    path = copied / mixture.mixture_path
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"00000-mixture\.wav: changed since"):
        load_mixture(copied, mixture)
    path.unlink()
    with pytest.raises(UserError, match=r"00000-mixture\.wav: no such file"):
        load_mixture(copied, mixture)


BROKEN = {
    "target.doa_deg": [float("inf"), float("nan"), -1.0, 361.0, "60", None, True, [60.0]],
    "target.start": [-1, 10**9, 2**70, 1.5],
    "interferer.samples": [0, 10**9, "x"],
    "interferer.position_m": [[1.0, 2.0], [1.0, 2.0, float("inf")], 3],
    "target.whole": [1, "true"],
    "target.speaker": [None, "", 5],
    "target.transcript": [5, []],
    "id": ["", 7],
    "made_from": ["", "x"],
    "samples": [0, -5, 1],
    "sample_rate": [0, 44100, "8000"],
    "array": ["linear7", "linear15"],
    "microphones": [0, 5],
    "room": [-1, 0.5],
    "room_size_m": [[0.0, 1.0, 1.0], []],
    "t60_s": [0.0, float("inf")],
    "angle_deg": [float("inf"), -1.0, 181.0],
    "overlap": [1.1, -0.1],
    "sir_db": [float("nan"), "loud"],
    "target_kind": ["anechoic"],
    "mixture_path": ["", "/etc/passwd", "../x.wav", "test/../../x.wav", 3],
    "target_sha256": ["", "z" * 64],
    "unknown": [1],
}


def test_a_broken_manifest_is_refused_with_its_line(experiment: Experiment, folder: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "test" / "manifest.jsonl"
    manifest.parent.mkdir()
    with pytest.raises(UserError, match="build the data first"):
        open_dataset(tmp_path, Split.TEST)
    with pytest.raises(UserError, match="build the data first"):
        manifest_hash(tmp_path, Split.TEST)
    (tmp_path / "data.json").write_bytes((folder / "data.json").read_bytes())
    first, second, *_ = (folder / "test" / "manifest.jsonl").read_text().splitlines()
    lines = [second[:-9], second.replace('"sir_db":', '"sir":'), "[]", "", "null", "[" * 100_000]
    for name, values in BROKEN.items():
        for value in values:
            content = json.loads(second)
            *section, key = name.split(".")
            (content[section[0]] if section else content)[key] = value
            lines.append(json.dumps(content).replace("Infinity", "1e999"))
    for broken in lines:
        manifest.write_text(f"{first}\n{broken}\n")
        with pytest.raises(UserError, match=r"manifest\.jsonl:2: broken line .*; delete the file and build") as error:
            open_dataset(tmp_path, Split.TEST)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"manifest\.jsonl:2: broken line"):
        _build(experiment, tmp_path)
    manifest.write_text(f"{first}\n{second}\n{first}\n")
    with pytest.raises(UserError, match=r"manifest\.jsonl:3: mixture test-00000 is listed twice"):
        open_dataset(tmp_path, Split.TEST)
    manifest.write_text("")
    with pytest.raises(UserError, match="empty"):
        open_dataset(tmp_path, Split.TEST)


def test_pipes_and_giants_in_the_place_of_files_are_neither_waited_for_nor_read(
    copied: Path, mixtures: tuple[Mixture, ...]
) -> None:
    manifest, sound = copied / "test" / "manifest.jsonl", copied / mixtures[0].mixture_path
    for put, said in ((os.mkfifo, "is a pipe"), (_terabyte, "larger than 256 MiB")):
        for path in (manifest, sound):
            path.unlink()
            put(path)
        for use in (open_dataset, manifest_hash):
            with pytest.raises(UserError, match=rf"manifest\.jsonl: {said}; wanted the test mixtures"):
                use(copied, Split.TEST)
        with pytest.raises(UserError, match=f"{sound.name}: {said}; wanted the sound that the manifest lists"):
            load_mixture(copied, mixtures[0])


def _terabyte(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**40)


def test_a_direction_changed_in_the_manifest_is_put_right(experiment: Experiment, folder: Path, copied: Path) -> None:
    manifest = copied / "test" / "manifest.jsonl"
    first, *others = manifest.read_text().splitlines()
    content = json.loads(first)
    content["target"]["doa_deg"] = 1.0
    manifest.write_text("\n".join([json.dumps(content), *others]) + "\n")
    _build(experiment, copied)
    assert _content(copied) == _content(folder)


def test_another_experiment_has_another_manifest_and_folder(experiment: Experiment, folder: Path, tmp_path: Path) -> None:
    other = experiment.model_copy(update={"seed": 8})
    _build(other, tmp_path)
    assert manifest_hash(tmp_path, Split.TEST) != manifest_hash(folder, Split.TEST)
    with pytest.raises(UserError, match="holds the data of another experiment"):
        _build(other, folder)


def _copied(csv_corpus: Path, folder: Path) -> Path:
    """A corpus that a test may change."""
    shutil.copytree(csv_corpus.parent, folder)
    return folder / csv_corpus.name


def _times(folder: Path, pattern: str) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob(pattern)}


def test_corrected_words_cost_no_sound(csv_corpus: Path, tmp_path: Path) -> None:
    corpus = _copied(csv_corpus, tmp_path / "corpus")
    data = tmp_path / "data"
    made = _build(_experiment(corpus), data)
    said = next(mixture.target for mixture in made if mixture.target.whole)
    before = _times(data, "*.wav") | _times(data, "*.npy")
    corpus.write_text(corpus.read_text().replace(f"{said.transcript}\n".replace("words", "Words"), "Other words\n"))
    made = _build(_experiment(corpus), data)
    assert _times(data, "*.wav") | _times(data, "*.npy") == before
    talkers = [talker for mixture in made for talker in (mixture.target, mixture.interferer)]
    now = {talker.transcript for talker in talkers if talker.utterance == said.utterance and talker.whole}
    assert now == {"other words"}
    _build(_experiment(corpus), tmp_path / "anew")
    assert _content(data) == _content(tmp_path / "anew")


def test_a_corrected_path_costs_only_the_mixtures_that_may_have_it(csv_corpus: Path, tmp_path: Path) -> None:
    corpus = _copied(csv_corpus, tmp_path / "corpus")
    data = tmp_path / "data"
    target = _build(_experiment(corpus, 20), data)[0].target.utterance
    name = target.removeprefix("csv:")
    rooms, before = _times(data, "*.npy"), _times(data, "*.wav")
    sf.write(corpus.parent / "better.wav", babble(0.6, 99), RATE)
    corpus.write_text(corpus.read_text().replace(f"\n{name},", "\nbetter.wav,"))
    _build(_experiment(corpus, 20), data)
    assert _times(data, "*.npy") == rooms
    after = _times(data, "*.wav")
    kept = {path for path in before if after[path] == before[path]}
    assert "test/00000-target.wav" not in kept
    assert any(path.startswith("test/") for path in kept)
    assert {path for path in before if path.startswith("validation/")} <= kept, "no mixture of another split"
    _build(_experiment(corpus, 20), tmp_path / "anew")
    assert _content(data) == _content(tmp_path / "anew")


def test_the_data_of_another_version_are_refused(experiment: Experiment, copied: Path) -> None:
    path = copied / "data.json"
    path.write_text(json.dumps({"data": json.loads(path.read_text())["data"], "speech": "x"}))
    with pytest.raises(UserError, match="made by another version of hwsearch, whose data differ; delete the folder"):
        _build(experiment, copied)


@pytest.mark.parametrize("content", [b"", b"RIFF", b"fLaC" + bytes(60), wav_header(RATE, 1, 16000), None])
def test_a_recording_that_cannot_be_used_is_refused_before_rooms_are_simulated(
    content: bytes | None, csv_corpus: Path, tmp_path: Path
) -> None:
    corpus = _copied(csv_corpus, tmp_path / "corpus")
    for path in corpus.parent.glob("*.wav"):
        if content is None:
            sf.write(path, babble(0.05, 1), RATE)
        else:
            path.write_bytes(content)
    for act in (_build, lambda experiment, folder: check_data(experiment, folder, folder / "corpora")):
        with pytest.raises(UserError, match=r"corpus/\d+\.wav: ") as error:
            act(_experiment(corpus), tmp_path / "data")
        assert "\n" not in str(error.value)
        assert not (tmp_path / "data").exists()


def test_checking_reads_no_recording_of_what_is_made(csv_corpus: Path, tmp_path: Path) -> None:
    corpus = _copied(csv_corpus, tmp_path / "corpus")
    data = tmp_path / "data"
    _build(_experiment(corpus), data)
    before = _content(data)
    for path in corpus.parent.glob("*.wav"):
        path.write_bytes(b"")
    check_data(_experiment(corpus), data, data / "corpora")
    assert _content(data) == before


def test_data_that_the_disk_has_no_room_for_are_refused(
    experiment: Experiment, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=400_000)
    monkeypatch.setattr("hwsearch.data.feasible.shutil.disk_usage", lambda _: free)
    with pytest.raises(UserError, match=r"4 rooms and 14 mixtures of up to 0\.7 s take up to 0\.0 GB; .* has 0\.0 GB free"):
        _build(experiment, tmp_path / "data" / "new")
    assert not (tmp_path / "data").exists()
    _build(experiment, copied)  # what is there needs no more


def test_mixtures_of_a_split_without_rooms_are_refused(experiment: Experiment, tmp_path: Path) -> None:
    content = experiment.model_dump(mode="json")
    del content["data"]["rooms"]["count"]["test"]
    with pytest.raises(UserError, match=r"data\.rooms\.count: no 'test'"):
        _build(parse_experiment(content, "test"), tmp_path)
