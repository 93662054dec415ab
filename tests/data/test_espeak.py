import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import soundfile as sf

from hwsearch.data.espeak import SAMPLE_RATE, read_corpus, voices
from hwsearch.data.sentences import sentence_split
from hwsearch.data.source import Source
from hwsearch.data.utterance import Utterance, load_speech
from hwsearch.errors import UserError
from hwsearch.experiment import CorpusConfig, Split

PER_SPEAKER = 4
DIGITS = {"zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"}


def _corpus(cache: Path, counts: dict[Split, int], per_speaker: int, digit_strings: float, seed: int) -> Source:
    total = sum(counts.values())
    shares = {split: count / total for split, count in counts.items()}
    corpus = CorpusConfig(
        kind="espeak", splits=shares, speakers=total, utterances_per_speaker=per_speaker, digit_strings=digit_strings
    )
    return read_corpus(corpus, seed, cache)


def _read(cache: Path, seed: int = 5) -> dict[Split, tuple[Utterance, ...]]:
    source = _corpus(cache, {Split.TRAIN: 4, Split.VALIDATION: 2, Split.TEST: 2}, PER_SPEAKER, 0.5, seed)
    source.synthesise()
    return dict(source.speech)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("espeak")
    _read(folder)
    return folder


def _content(cache: Path) -> dict[str, bytes]:
    return {str(path.relative_to(cache)): path.read_bytes() for path in sorted(cache.rglob("*")) if path.is_file()}


def test_a_hundred_and_twenty_voices_of_a_split_have_different_names() -> None:
    for split in Split:
        assert len({voice.name for voice in voices(split, 120)}) == 120
        assert voices(split, 60)[:40] == voices(split, 40)
    with pytest.raises(UserError, match="5000 eSpeak voices for the test split"):
        voices(Split.TEST, 5000)


def test_no_variant_speaks_in_two_splits_of_whatever_corpora() -> None:
    variants = [{voice.variant for voice in voices(split, 100)} for split in Split]
    assert all(not one & other for one, other in combinations(variants, 2))


def test_each_split_has_its_speakers_each_with_its_utterances(cache: Path) -> None:
    speech = _read(cache)
    assert {split: len(utterances) for split, utterances in speech.items()} == {
        Split.TRAIN: 4 * PER_SPEAKER,
        Split.VALIDATION: 2 * PER_SPEAKER,
        Split.TEST: 2 * PER_SPEAKER,
    }
    said_by = [{utterance.speaker for utterance in utterances} for utterances in speech.values()]
    assert all(not one & other for one, other in combinations(said_by, 2))


def test_every_sentence_belongs_to_its_split_and_half_are_digit_strings(cache: Path) -> None:
    for split, utterances in _read(cache).items():
        assert all(sentence_split(utterance.transcript) is split for utterance in utterances)
        digit_strings = [u for u in utterances if set(u.transcript.split()) <= DIGITS]
        assert len(digit_strings) == len(utterances) / 2


def test_a_corpus_is_read_from_the_cache_the_second_time(cache: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    assert _read(cache) == _read(cache)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == before


def test_the_same_seed_synthesises_the_same_bytes_again(cache: Path, tmp_path: Path) -> None:
    _read(tmp_path)
    assert _content(tmp_path) == _content(cache)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("accents", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_every_voice_says_the_same_bytes_in_another_process_and_second(accents: int, tmp_path: Path) -> None:
    speakers = {Split.TRAIN: 34 * accents, Split.VALIDATION: 17 * accents, Split.TEST: 16 * accents}  # all 67 variants
    for name in ("one", "two"):
        source = _corpus(tmp_path / name, speakers, 1, 1.0, 0)
        assert {split: len(said) for split, said in source.speech.items()} == speakers
        source.synthesise()
        time.sleep(1.0 - time.time() % 1.0)  # the library seeds its noise with the time in seconds
    one, two = _content(tmp_path / "one"), _content(tmp_path / "two")
    assert [name for name in one if one[name] != two[name]] == []
    assert one.keys() == two.keys()


def test_another_seed_says_other_things(cache: Path, tmp_path: Path) -> None:
    mine = {utterance.transcript for utterances in _read(cache).values() for utterance in utterances}
    other = {utterance.transcript for utterances in _read(tmp_path, seed=6).values() for utterance in utterances}
    assert len(mine & other) < len(mine) / 10


def test_speech_sounds_and_lasts_as_long_as_its_words_take(cache: Path) -> None:
    for utterance in (u for utterances in _read(cache).values() for u in utterances):
        samples, rate = sf.read(utterance.root / utterance.paths[0])
        assert rate == SAMPLE_RATE
        assert np.abs(samples).max() > 0.05
        seconds = len(load_speech(utterance, 8000)) / 8000
        assert 1.5 < len(utterance.transcript.split()) / seconds < 6.0


def test_voices_differ_more_from_each_other_than_from_themselves(cache: Path) -> None:
    def spectrum(said: list[np.ndarray]) -> np.ndarray:
        _, power = scipy.signal.welch(np.concatenate(said), 8000, nperseg=64)
        return 10 * np.log10(power[1:-1])

    said_by: dict[str, list[np.ndarray]] = defaultdict(list)
    for utterance in (u for group in _read(cache).values() for u in group):
        said_by[utterance.speaker].append(load_speech(utterance, 8000))
    within = [np.std(spectrum(said[::2]) - spectrum(said[1::2])) for said in said_by.values()]
    between = [np.std(one - other) for one, other in combinations(map(spectrum, said_by.values()), 2)]
    assert np.median(between) > 2 * np.median(within)


def test_two_processes_that_synthesise_at_once_agree(cache: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as threads:
        results = [job.result() for job in [threads.submit(_read, tmp_path) for _ in range(2)]]
    assert results[0] == results[1]
    assert _content(tmp_path) == _content(cache)


def test_a_damaged_cache_is_named(tmp_path: Path) -> None:
    utterance = _read(tmp_path)[Split.TRAIN][0]
    (utterance.root / utterance.paths[0]).unlink()
    with pytest.raises(UserError, match=r"is gone; delete the folder"):
        _read(tmp_path)
