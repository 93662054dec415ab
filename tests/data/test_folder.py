"""A folder with a folder for each speaker."""

import os
import shutil
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsearch.data.build import build_data
from hwsearch.data.corpus import Speech, load_corpora
from hwsearch.data.dataset import Mixture, open_dataset
from hwsearch.data.folder import read_corpus, sounds_below
from hwsearch.data.source import deal_to_all
from hwsearch.data.utterance import load_speech
from hwsearch.errors import UserError
from hwsearch.experiment import CorpusConfig, Split, parse_experiment

from .conftest import RATE, babble
from .speakers import ODD, odd_speakers
from .test_corpus import data

SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}


def read(root: Path, seed: int = 3, **keys: object) -> Speech:
    corpus = CorpusConfig.model_validate({"kind": "folder", "root": root, "splits": SHARES, **keys})
    return dict(read_corpus(corpus, seed, Path()).speech)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return odd_speakers(tmp_path_factory.mktemp("my speech"))


def test_every_recording_below_a_speakers_folder_is_found_whatever_its_name(odd: Path) -> None:
    found = [utterance for utterances in read(odd).values() for utterance in utterances]
    assert Counter(utterance.speaker for utterance in found) == dict.fromkeys([f"folder:{name}" for name in ODD[:8]], 5)
    assert all(unicodedata.is_normalized("NFC", utterance.id) for utterance in found)
    assert all((odd / path).is_file() for utterance in found for path in utterance.paths)
    assert "folder:Ann Lee/day 2/room/take 4.FLAC" in {utterance.id for utterance in found}


def test_each_split_gets_two_speakers_though_a_tenth_of_eight_is_one(odd: Path) -> None:
    counts = [len({utterance.speaker for utterance in utterances}) for utterances in read(odd).values()]
    assert counts == [4, 2, 2]
    assert read(odd) == read(odd)
    assert read(odd) != read(odd, seed=4)


def test_a_channel_is_taken_and_the_rate_is_that_of_the_experiment(odd: Path) -> None:
    found = {utterance.id: utterance for utterances in read(odd).values() for utterance in utterances}
    stereo = found["folder:Jörg Müller/take ünö 0.wav"]
    dry = sf.read(stereo.root / stereo.paths[0])[0][:, 0]
    wanted = soxr.resample(dry, 16000, RATE)
    heard = load_speech(stereo, RATE)
    assert abs(len(heard) - len(wanted)) <= 1
    count = min(len(heard), len(wanted))
    assert np.corrcoef(heard[:count], wanted[:count])[0, 1] > 0.999
    other = {utterance.id: utterance for utterances in read(odd, channel=1).values() for utterance in utterances}[stereo.id]
    np.testing.assert_allclose(load_speech(other, RATE), -heard, atol=1e-4)


def test_words_come_from_the_text_beside_a_recording(odd: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(odd, tmp_path / "copy"))
    first, second = sorted((root / "4711").glob("take*.wav"))[:2]
    first.with_suffix(".txt").write_text("Hello \n  WORLD\n")
    first.with_suffix(".lab").write_text("not this")
    second.with_suffix(".lab").write_text("\ufeffÄpfel")
    words = {utterance.paths[0]: utterance.transcript for utterances in read(root).values() for utterance in utterances}
    assert {path: said for path, said in words.items() if said is not None} == {
        str(first.relative_to(root)): "hello world",
        str(second.relative_to(root)): "äpfel",
    }


@settings(deadline=None)
@given(
    count=st.integers(1, 60),
    shares=st.dictionaries(st.sampled_from(list(Split)), st.floats(0.01, 1 / 3), min_size=1),
    seed=st.integers(0, 10**6),
)
def test_no_split_with_a_share_stays_empty(count: int, shares: dict[Split, float], seed: int) -> None:
    names = [f"speaker {number}" for number in range(count)]
    if count < len(shares):
        with pytest.raises(UserError, match=f"x: {count}; wanted at least {2 * len(shares)}, 2 in each of "):
            deal_to_all(names, shares, seed, "x", least=2)
        return
    dealt = deal_to_all(names, shares, seed, "x", least=2)
    assert dealt == deal_to_all(reversed(names), shares, seed, "x", least=2)
    counts = Counter(dealt.values())
    assert set(counts) == set(shares)
    assert min(counts.values()) >= (2 if count >= 2 * len(shares) else 1)
    for split, share in shares.items():
        # What a split gets beyond its share makes two; what it lacks went to others, of which there are at most two.
        assert share * count - 1 - 4 <= counts[split] <= max(2, share * count + 1)


def test_sentences_that_all_speakers_say_are_named_as_the_reason_for_a_lack_of_speakers(tmp_path: Path) -> None:
    for speaker in range(4):
        (tmp_path / str(speaker)).mkdir()
        sf.write(tmp_path / str(speaker) / "a.wav", babble(0.5, speaker), RATE)
        (tmp_path / str(speaker) / "a.txt").write_text("the north wind")
    config = data({"kind": "folder", "root": tmp_path, "splits": {"train": 0.5, "test": 0.5}}, wanted=("train", "test"))
    with pytest.raises(
        UserError, match=r"speakers in the train split: 0, of 2, once sentences are left out that another split has"
    ):
        load_corpora(config, 0, tmp_path)


def test_too_few_speakers_for_all_splits_are_counted(tmp_path: Path) -> None:
    splits = {"train": 0.6, "validation": 0.2, "test": 0.2}
    for speaker in range(4):
        (tmp_path / str(speaker)).mkdir()
        sf.write(tmp_path / str(speaker) / "a.wav", babble(0.5, speaker), RATE)
    config = data({"kind": "folder", "root": tmp_path, "splits": splits}, wanted=tuple(splits))
    with pytest.raises(UserError) as error:
        load_corpora(config, 0, tmp_path)
    said = "in the splits: 4; wanted at least 6, 2 in each of train, validation, test"
    assert str(error.value) == f"data.corpora: speakers of {tmp_path} {said}"


def test_a_fault_in_a_folder_is_one_line(tmp_path: Path) -> None:
    root = tmp_path / "speech"
    wanted = "wanted a folder of WAV or FLAC files for each speaker"

    def refused() -> str:
        with pytest.raises(UserError) as error:
            read(root)
        return str(error.value)

    assert refused() == f"{root}: no such folder; {wanted}"
    root.mkdir()
    assert refused() == f"{root}: no WAV or FLAC file in the folders in it; {wanted}"
    (root / "ann").mkdir()
    assert refused() == f"{root}: no WAV or FLAC file in the folders in it; {wanted}"
    sf.write(root / "ann" / "1.wav", babble(0.5, 1), RATE)
    assert refused() == (f"{root}: speakers: 1; wanted at least 6, 2 in each of train, validation, test")
    sf.write(root / "2.WAV", babble(0.5, 1), RATE)
    assert refused() == f"{root / '2.WAV'}: lies in no speaker's folder; {wanted}"
    (root / "2.WAV").unlink()
    os.mkfifo(root / "ann" / "1.txt")
    assert refused() == f"{root / 'ann' / '1.txt'}: is a pipe; wanted the words of 1.wav"
    (root / "ann" / "1.txt").unlink()
    Path(os.fsdecode(os.fsencode(root / "ann") + b"/\xff.wav")).touch()
    assert refused() == f"{root / 'ann'}: holds the name b'\\xff.wav', which is not UTF-8; wanted another name"


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "noise", tmp_path / "elsewhere"
    for place in (folder, elsewhere):
        place.mkdir()
        (place / "1.wav").touch()
    for name in ("a", "b"):
        (folder / name).symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(folder)
    assert [path.relative_to(folder).as_posix() for path in sounds_below(folder)] == ["1.wav", "a/1.wav"]


def test_a_recording_replaced_in_place_costs_only_the_mixtures_that_may_have_it(tmp_path: Path) -> None:
    for speaker in range(8):
        (tmp_path / "speech" / str(speaker)).mkdir(parents=True)
        for take in range(20):
            sf.write(tmp_path / "speech" / str(speaker) / f"{take}.wav", babble(0.5, 100 * speaker + take), RATE)
    section = data({"kind": "folder", "root": tmp_path / "speech", "splits": {"test": 1.0}}, wanted=("test",)).model_dump(
        mode="json"
    )
    section["mixtures"] |= {"count": {"test": 6}, "seconds": 0.5}
    experiment = parse_experiment({"name": "own", "data": section}, "a test")

    def built(name: str) -> list[Mixture]:
        build_data(experiment, tmp_path / name, tmp_path / "corpora", 1, lambda done, total: None)
        return list(open_dataset(tmp_path / name, Split.TEST))

    before = built("data")
    path = tmp_path / "speech" / before[0].target.utterance.removeprefix("folder:")
    size = path.stat().st_size
    sf.write(path, babble(0.5, 9999), RATE)
    assert path.stat().st_size == size
    after = built("data")
    assert after[0].target_sha256 != before[0].target_sha256
    assert set(after) & set(before), "mixtures without the recording are kept"
    assert after == built("anew")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match=f"{path.name}: is a pipe; wanted a recording"):
        built("data")


def test_a_channel_that_a_file_lacks_is_refused(odd: Path) -> None:
    found = {utterance.id: utterance for utterances in read(odd, channel=2).values() for utterance in utterances}
    load_speech(found["folder:4711/take ünö 0.wav"], RATE)  # a single channel is always taken
    with pytest.raises(
        UserError, match=r"take ünö 0\.wav: no channel 2, as data\.corpora\.channel wants; its channels are 0 to 1"
    ):
        load_speech(found["folder:Jörg Müller/take ünö 0.wav"], RATE)
