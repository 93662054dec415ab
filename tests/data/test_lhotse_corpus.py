"""Manifests of lhotse and Kaldi data folders; lhotse itself writes them."""

import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from lhotse import Recording, RecordingSet, SupervisionSegment, SupervisionSet
from lhotse.audio import AudioSource

from hwsearch.data import lhotse_corpus
from hwsearch.data.lhotse_corpus import read_corpus
from hwsearch.data.plan import Plan
from hwsearch.data.utterance import SPEECH_RMS, Utterance, load_speech
from hwsearch.errors import UserError
from hwsearch.experiment import CorpusConfig, Split

from .conftest import RATE, babble


def listed(root: Path, **keys: object) -> tuple[Utterance, ...]:
    corpus = CorpusConfig.model_validate({"kind": "lhotse", "root": root, "splits": {"test": 1.0}, **keys})
    return read_corpus(corpus, 3, Path()).speech[Split.TEST]


def prepared(folder: Path, part: str = "all", suffix: str = ".jsonl.gz", speakers: int = 3) -> Path:
    """Recordings of three seconds with three supervisions of the second channel each, as a recipe of lhotse prepares them."""
    recordings, supervisions = [], []
    for number in range(speakers):
        path = folder / "wav" / f"{part}-{number}.wav"
        path.parent.mkdir(exist_ok=True, parents=True)
        sound = np.stack([babble(3.0, 100 + number), babble(3.0, number)], axis=1)
        sf.write(path, sound, RATE, subtype="FLOAT")
        recordings.append(Recording.from_file(path, recording_id=path.stem))
        for take in range(3):
            name, speaker = f"{path.stem}-{take}", f"{part} {number}"
            supervisions.append(SupervisionSegment(name, path.stem, float(take), 1.0, 1, f"Words  {name}", "en", speaker))
    RecordingSet.from_recordings(recordings).to_file(folder / f"tiny_recordings_{part}{suffix}")
    SupervisionSet.from_segments(supervisions).to_file(folder / f"tiny_supervisions_{part}{suffix}")
    return folder / f"tiny_recordings_{part}{suffix}"


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_supervisions_of_a_manifest_are_utterances(tmp_path: Path, suffix: str) -> None:
    manifest = prepared(tmp_path, suffix=suffix)
    found = listed(manifest)
    assert [(each.id, each.speaker, each.transcript, each.channel, each.span) for each in found[:2]] == [
        ("lhotse:all-0-0", "lhotse:all 0", "words all-0-0", 1, (0.0, 1.0)),
        ("lhotse:all-0-1", "lhotse:all 0", "words all-0-1", 1, (1.0, 2.0)),
    ]
    assert len(found) == 9
    assert found == listed(tmp_path)
    assert found[0].paths == ("wav/all-0.wav",)


def test_an_utterance_is_its_part_of_the_channel_that_is_supervised(tmp_path: Path) -> None:
    prepared(tmp_path)
    one = listed(tmp_path)[4]
    assert one.id == "lhotse:all-1-1"
    dry = sf.read(tmp_path / "wav" / "all-1.wav", dtype="float32")[0][RATE : 2 * RATE, 1]
    wanted = dry * SPEECH_RMS / np.sqrt(np.mean(dry.astype(float) ** 2))
    np.testing.assert_allclose(load_speech(one, RATE), wanted, atol=1e-5)
    other = listed(tmp_path, channel=0)[4]
    assert np.corrcoef(load_speech(other, RATE), wanted)[0, 1] < 0.5


def test_all_parts_of_a_folder_are_read_or_the_one_that_is_named(tmp_path: Path) -> None:
    dev = prepared(tmp_path, "dev", speakers=2)
    prepared(tmp_path, "train-clean")
    assert len(listed(tmp_path)) == 15
    assert {each.speaker for each in listed(dev)} == {"lhotse:dev 0", "lhotse:dev 1"}


def kaldi(folder: Path, *, segments: bool) -> Path:
    folder.mkdir()
    for number in range(2):
        sf.write(folder / f"{number}.wav", babble(2.0, number), RATE, subtype="FLOAT")
    (folder / "wav.scp").write_text("".join(f"r{number} {folder / f'{number}.wav'}\n" for number in range(2)))
    if segments:
        (folder / "segments").write_text("a-1 r0 0.5 1.25\nb-1 r1 0 1.5\nb-2 r1 1.5 -1\n")
        (folder / "utt2spk").write_text("a-1 a\nb-1 b\nb-2 b\n")
        (folder / "text").write_text("a-1 Hello there\nb-1 one\nb-2 two\n")
    else:
        (folder / "utt2spk").write_text("r0 a\nr1 b\n")
        (folder / "text").write_text("r0 Hello\nr1 one\n")
    return folder


def test_a_kaldi_folder_is_read_with_segments_and_without(tmp_path: Path) -> None:
    found = listed(kaldi(tmp_path / "parts", segments=True))
    assert [(each.id, each.speaker, each.transcript, each.span) for each in found] == [
        ("lhotse:a-1", "lhotse:a", "hello there", (0.5, 1.25)),
        ("lhotse:b-1", "lhotse:b", "one", (0.0, 1.5)),
        ("lhotse:b-2", "lhotse:b", "two", (1.5, 2.0)),
    ]
    assert len(load_speech(found[0], RATE)) == pytest.approx(0.75 * RATE, abs=2)
    whole = listed(kaldi(tmp_path / "whole", segments=False))
    assert [(each.id, each.speaker, each.transcript, each.span) for each in whole] == [
        ("lhotse:r0", "lhotse:a", "hello", None),
        ("lhotse:r1", "lhotse:b", "one", None),
    ]


def test_no_command_of_a_kaldi_folder_is_run(tmp_path: Path) -> None:
    folder = kaldi(tmp_path / "kaldi", segments=True)
    (folder / "wav.scp").write_text(f"r0 {folder / '0.wav'}\nr1 touch {tmp_path / 'harm'} |\n")
    with pytest.raises(UserError, match=r"wav\.scp:2: names a command, and none is run; wanted the path of a sound file"):
        listed(folder)
    assert not (tmp_path / "harm").exists()


def _other_source(folder: Path) -> None:
    recording = Recording("r", [AudioSource("command", [0], f"touch {folder / 'harm'}")], RATE, RATE, 1.0)
    RecordingSet.from_recordings([recording]).to_file(folder / "x_recordings.jsonl")
    SupervisionSet.from_segments([SupervisionSegment("s", "r", 0, 1.0, speaker="a")]).to_file(folder / "x_supervisions.jsonl")


def _edited(name: str, **changes: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        prepared(folder, suffix=".jsonl")
        path = folder / f"tiny_{name}_all.jsonl"
        first, *others = path.read_text().splitlines()
        path.write_text("\n".join([json.dumps(json.loads(first) | changes), *others]))

    return edit


def _truncated(folder: Path) -> None:
    path = prepared(folder)
    path.write_bytes(path.read_bytes()[:60])


def _bomb(folder: Path) -> None:
    path = prepared(folder)
    path.write_bytes(gzip.compress(b"[" * 1000))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, r"no manifest of recordings in it; wanted lhotse's manifests"),
        (lambda folder: prepared(folder).with_name("tiny_supervisions_all.jsonl.gz").unlink(), "no such file; wanted lhotse's"),
        (_other_source, "supervision s: recording r is no single, unchanged file"),
        (_edited("supervisions", speaker=None), "supervision all-0-0 has no speaker"),
        (_edited("supervisions", recording_id="x"), "supervision all-0-0 is of no recording there"),
        (_edited("supervisions", start="soon"), "lhotse cannot read"),
        (_edited("supervisions", start=math.nan), "supervision all-0-0: starts at nan s and ends at nan s; wanted a part of"),
        (_edited("supervisions", start=-1.0), "supervision all-0-0: starts at -1 s"),
        (_edited("supervisions", duration=math.inf), "supervision all-0-0: starts at 0 s and ends at inf s"),
        (_edited("supervisions", channel="left"), "supervision all-0-0: channel is 'left'; wanted a number from 0 on"),
        (_edited("supervisions", channel=[-1]), r"supervision all-0-0: channel is \[-1\]; wanted a number from 0 on"),
        (_edited("recordings", sources=3), "lhotse cannot read"),
        (_edited("recordings", sources=[{"type": "file", "channels": [0], "source": "gone.wav"}]), r"gone\.wav: no such file"),
        (_truncated, "lhotse cannot read"),
        (_bomb, "lhotse cannot read"),
    ],
)
def test_a_fault_is_one_line(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    make(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        listed(tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "harm").exists()


def test_without_lhotse_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lhotse_corpus, "find_spec", lambda name: None)
    with pytest.raises(UserError) as error:
        listed(tmp_path)
    assert str(error.value) == "data.corpora: kind 'lhotse' wants a package that is not installed: pip install 'hwsearch[lhotse]'"


def test_a_mixture_of_other_parts_of_the_same_file_is_another(tmp_path: Path) -> None:
    prepared(tmp_path)
    utterances = listed(tmp_path)
    plans = [Plan.__new__(Plan) for _ in range(2)]
    for plan, target in zip(plans, (utterances[0], listed(tmp_path, channel=0)[0]), strict=True):
        object.__setattr__(plan, "target", target)
        object.__setattr__(plan, "candidates", utterances[3:5])
    assert plans[0].made_from != plans[1].made_from
