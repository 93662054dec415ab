import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hwsearch.data.corpus import Speech, load_corpora, speakers_also_recorded
from hwsearch.data.recorded import RecordedMixture
from hwsearch.data.sentences import draw_digits, draw_sentence, sentence_split
from hwsearch.data.source import deal_speakers
from hwsearch.data.utterance import Utterance
from hwsearch.errors import UserError
from hwsearch.experiment import CorpusConfig, DataConfig, Split
from hwsearch.extensions import CORPORA

from .conftest import RATE, babble

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
WORDS = {word: digit for digit, word in enumerate(NAMES)}


def data(*corpora: dict[str, object], wanted: tuple[str, ...] = ("train", "validation", "test")) -> DataConfig:
    return DataConfig(
        corpora=tuple(CorpusConfig.model_validate(corpus) for corpus in corpora),
        rooms={"count": dict.fromkeys(wanted, 1)},
        mixtures={"count": {}},
    )


def read(kind: str, root: Path, **splits: float) -> Speech:
    corpus = CorpusConfig(kind=kind, root=root, splits=splits, utterances_per_speaker=10)
    return dict(CORPORA.load(kind)(corpus, 3, Path()).speech)


def listed(kind: str, root: Path) -> tuple[Utterance, ...]:
    return read(kind, root, train=1.0)[Split.TRAIN]


def speakers(speech: Speech, split: Split) -> set[str]:
    return {utterance.speaker for utterance in speech[split]}


def transcripts(speech: Speech, split: Split) -> set[str]:
    return {utterance.transcript for utterance in speech[split] if utterance.transcript is not None}


def files(speech: Speech, split: Split) -> set[Path]:
    return {utterance.root / path for utterance in speech[split] for path in utterance.paths}


def librispeech(root: Path, *utterances: tuple[str, str | None]) -> Path:
    for name, _ in utterances:
        folder = root / name.split("-")[0]
        folder.mkdir(parents=True, exist_ok=True)
        sf.write(folder / f"{name}.flac", babble(0.2, len(name)), RATE)
    lines = [f"{name} {words}" for name, words in utterances if words is not None]
    if lines:
        (root / "1-2.trans.txt").write_text("\n".join(lines) + "\n")
    return root


shares = st.lists(st.floats(0, 1), min_size=3, max_size=3).map(
    lambda raw: dict(zip(Split, (value / max(1.0, sum(raw)) for value in raw), strict=True))
)


@given(count=st.integers(0, 300), shares=shares, seed=st.integers(0, 2**31 - 1))
def test_each_split_takes_its_share_of_speakers_and_nobody_is_in_two(count: int, shares: dict[Split, float], seed: int) -> None:
    names = [f"speaker {number}" for number in range(count)]
    dealt = deal_speakers(names, shares, seed)
    assert dealt == deal_speakers(reversed(names), shares, seed), "the order of files must not matter"
    assert set(dealt) <= set(names)
    for split, share in shares.items():
        assert abs(sum(1 for home in dealt.values() if home is split) - share * count) <= 1


def test_another_seed_deals_otherwise() -> None:
    names = [f"speaker {number}" for number in range(40)]
    halves = {Split.TRAIN: 0.5, Split.TEST: 0.5}
    assert deal_speakers(names, halves, 0) != deal_speakers(names, halves, 1)


@pytest.mark.parametrize("draw", [draw_sentence, lambda random: " ".join(map(str, draw_digits(random)))])
def test_generated_sentences_are_many_and_every_split_has_some(draw: Callable[..., str]) -> None:
    random = np.random.default_rng(0)
    drawn = [draw(random) for _ in range(4000)]
    assert len(set(drawn)) > 3000
    owned = [sentence_split(sentence) for sentence in set(drawn)]
    for split, share in ((Split.TRAIN, 0.5), (Split.VALIDATION, 0.25), (Split.TEST, 0.25)):
        assert owned.count(split) / len(owned) == pytest.approx(share, abs=0.04)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(shares=shares, seed=st.integers(0, 1000), fsdd_shares=shares)
def test_no_speaker_no_sentence_and_no_file_is_in_two_splits(
    csv_corpus: Path,
    fsdd_corpus: Path,
    tmp_path: Path,
    shares: dict[Split, float],
    seed: int,
    fsdd_shares: dict[Split, float],
) -> None:
    if not sum(shares.values()) or not sum(fsdd_shares.values()):
        return
    config = data(
        {"kind": "csv", "root": csv_corpus, "splits": shares},
        {"kind": "fsdd", "root": fsdd_corpus, "splits": fsdd_shares, "utterances_per_speaker": 20},
        wanted=("train",),
    )
    try:
        speech = load_corpora(config, seed, tmp_path)
    except UserError as error:
        assert "a mixture needs two" in str(error)  # noqa: PT017
        return
    for one, other in (
        (Split.TRAIN, Split.TEST),
        (Split.TRAIN, Split.VALIDATION),
        (Split.VALIDATION, Split.TEST),
    ):
        shared = speakers(speech, one) & speakers(speech, other)
        assert all(speaker.startswith("fsdd:") for speaker in shared)
        assert not transcripts(speech, one) & transcripts(speech, other)
        assert not files(speech, one) & files(speech, other)


@pytest.fixture(scope="module")
def spoken(fsdd_corpus: Path) -> Speech:
    return read("fsdd", fsdd_corpus, train=0.7, validation=0.1, test=0.2)


def test_digit_strings_say_what_their_files_say(spoken: Speech) -> None:
    for utterance in (utterance for utterances in spoken.values() for utterance in utterances):
        digits = [int(path.split("_")[0]) for path in utterance.paths]
        assert [WORDS[word] for word in (utterance.transcript or "").split()] == digits
        assert 3 <= len(digits) <= 6
        assert {path.split("_")[1] for path in utterance.paths} == {utterance.speaker.removeprefix("fsdd:")}


def test_digit_strings_of_the_test_split_use_the_official_test_takes_and_the_others_do_not(spoken: Speech) -> None:
    takes = {split: {int(path.stem.split("_")[2]) for path in files(spoken, split)} for split in Split}
    assert takes == {Split.TEST: {0, 1}, Split.VALIDATION: {5, 6}, Split.TRAIN: {10, 11}}


def test_six_digit_speakers_are_dealt_where_they_go_round_and_shared_where_not(fsdd_corpus: Path) -> None:
    dealt = read("fsdd", fsdd_corpus, train=0.6, test=0.4)
    assert not speakers(dealt, Split.TRAIN) & speakers(dealt, Split.TEST)
    assert len(speakers(dealt, Split.TRAIN)) == 4
    shared = read("fsdd", fsdd_corpus, train=0.9, test=0.1)
    assert speakers(shared, Split.TRAIN) == speakers(shared, Split.TEST)
    assert len(speakers(shared, Split.TEST)) == 6


def test_a_digit_without_takes_for_a_split_is_named(fsdd_corpus: Path, tmp_path: Path) -> None:
    for path in fsdd_corpus.iterdir():
        if not path.name.startswith(("7_speaker2_0", "7_speaker2_1.")):
            (tmp_path / path.name).symlink_to(path)
    with pytest.raises(UserError, match=r"speaker2 has no take 0 to 4 of digit 7, which the test split needs"):
        read("fsdd", tmp_path, test=1.0)


def test_librispeech_tree_is_read_at_any_depth_with_lower_case_words(tmp_path: Path) -> None:
    librispeech(tmp_path, ("1-2-0001", "HELLO  THERE"), ("1-2-0000", None), ("7-3-0000", "It's ME"))
    (tmp_path / "README.txt").write_text("not speech")
    assert [(u.id, u.speaker, u.paths, u.transcript) for u in listed("librispeech", tmp_path)] == [
        ("librispeech:1-2-0000", "librispeech:1", ("1/1-2-0000.flac",), None),
        ("librispeech:1-2-0001", "librispeech:1", ("1/1-2-0001.flac",), "hello there"),
        ("librispeech:7-3-0000", "librispeech:7", ("7/7-3-0000.flac",), "it's me"),
    ]


def test_librispeech_faults_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        listed("librispeech", tmp_path / "nowhere")
    with pytest.raises(UserError, match="no <speaker>-<chapter>-<utterance>"):
        listed("librispeech", tmp_path)
    librispeech(tmp_path, ("1-2-0000", "HELLO"))
    (tmp_path / "copy").mkdir()
    sf.write(tmp_path / "copy" / "1-2-0000.flac", babble(0.2, 1), RATE)
    with pytest.raises(UserError, match="already at"):
        listed("librispeech", tmp_path)
    (tmp_path / "copy" / "1-2-0000.flac").unlink()
    (tmp_path / "transcripts.txt").write_text("1-2-0000 hello\n\n1-2-0001\n")
    with pytest.raises(UserError, match=r"transcripts\.txt:3: no words"):
        listed("librispeech", tmp_path)
    (tmp_path / "transcripts.txt").unlink()
    os.mkfifo(tmp_path / "transcripts.txt")
    with pytest.raises(UserError, match=r"transcripts\.txt: is a pipe; wanted transcripts"):
        listed("librispeech", tmp_path)


def test_csv_manifest_is_read(write_csv: Callable[..., Path]) -> None:
    (utterance,) = listed("csv", write_csv("transcript,path,speaker", '"Hello, World",a.wav,Ann'))
    assert (utterance.id, utterance.speaker, utterance.transcript) == ("csv:a.wav", "csv:Ann", "hello, world")
    (utterance,) = listed("csv", write_csv("\ufeffpath,speaker", "a.wav,Ann"))
    assert utterance.transcript is None


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["path,transcript", "a.wav,x"], r":1: no column 'speaker'"),
        ([""], r":1: no column 'path'"),
        (["path,speaker,age", "a.wav,Ann,7"], r":1: unknown column 'age'"),
        (["path,speaker,path", "a.wav,Ann,a.wav"], r":1: column 'path' stands twice"),
        (["path,speaker"], "no utterance"),
        (["path,speaker", "a.wav,Ann", ",Ann"], r":3: no path"),
        (["path,speaker", "a.wav,"], r":2: no speaker"),
        (["path,speaker", "a.wav"], r":2: no speaker"),
        (["path,speaker", "a.wav,Ann,x"], r":2: more values than columns"),
        (["path,speaker", "b.wav,Ann"], r":2: .*b\.wav: no such file"),
        (["path,speaker", "/nowhere/a.wav,Ann"], r":2: /nowhere/a\.wav: no such file"),
        (["path,speaker", f"{'a' * 5000},Ann"], r":2: .*a: cannot be read \(File name too long\)"),
        (["path,speaker", "./a.wav,Ann", "a.wav,Bob"], r":3: path 'a\.wav' is listed twice"),
        (["path,speaker", "a.wav,Ann", "a.wav,Bob"], r":3: path 'a\.wav' is listed twice"),
        (['path,speaker\n"a.wav,Ann'], "not readable as CSV"),
    ],
)
def test_a_fault_in_a_csv_manifest_is_one_line_with_its_place(
    write_csv: Callable[..., Path], lines: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        listed("csv", write_csv(*lines))
    assert "\n" not in str(error.value)
    assert "manifest.csv" in str(error.value)


def test_absolute_paths_are_taken_and_named_from_the_manifest_where_they_lie_below_it(
    write_csv: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "b.wav"
    sf.write(elsewhere, babble(1.0, 2), RATE)
    manifest = write_csv("path,speaker")
    manifest.write_text(f"path,speaker\n{manifest.parent / 'a.wav'},Ann\n{elsewhere},Bob\n")
    near, far = listed("csv", manifest)
    assert (near.id, near.paths) == ("csv:a.wav", ("a.wav",))
    assert (far.id, far.root / far.paths[0]) == (f"csv:{elsewhere}", elsewhere)
    manifest.write_text(f"path,speaker\na.wav,Ann\n{manifest.parent / 'a.wav'},Ann\n")
    with pytest.raises(UserError, match=r":3: path .* is listed twice"):
        listed("csv", manifest)


def test_csv_manifest_that_is_missing_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        listed("csv", tmp_path / "x.csv")
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(UserError, match="not UTF-8 text"):
        listed("csv", tmp_path / "x.csv")
    for path, found in ((Path("/dev/zero"), "is a device"), (tmp_path, "is a folder"), (Path("\0"), "no name of a file")):
        with pytest.raises(UserError, match=f"{found}.*; wanted a CSV manifest"):
            listed("csv", path)


def test_a_split_with_fewer_than_two_speakers_is_refused_only_where_it_is_needed(csv_corpus: Path, tmp_path: Path) -> None:
    corpus = {"kind": "csv", "root": csv_corpus, "splits": {"train": 0.9, "test": 0.1}}
    with pytest.raises(UserError, match="speakers in the test split: 1; a mixture needs two"):
        load_corpora(data(corpus, wanted=("train", "test")), 0, tmp_path)
    assert len(speakers(load_corpora(data(corpus, wanted=("train",)), 0, tmp_path), Split.TRAIN)) == 8


def test_one_speaker_in_two_corpora_of_different_splits_is_refused(tmp_path: Path) -> None:
    one = librispeech(tmp_path / "one", ("1-1-0", "A"), ("2-1-0", "B"))
    two = librispeech(tmp_path / "two", ("2-1-1", "C"), ("3-1-0", "D"))
    config = data(
        {"kind": "librispeech", "root": one, "splits": {"train": 1.0}},
        {"kind": "librispeech", "root": two, "splits": {"test": 1.0}},
        wanted=("train", "test"),
    )
    with pytest.raises(UserError, match=r"speaker librispeech:2 is in the train split and, from .*two, in the test split"):
        load_corpora(config, 0, tmp_path)


def test_one_corpus_given_twice_is_refused(csv_corpus: Path, tmp_path: Path) -> None:
    corpus = {"kind": "csv", "root": csv_corpus, "splits": {"train": 1.0}}
    with pytest.raises(UserError, match="wanted different names"):
        load_corpora(data(corpus, corpus, wanted=("train",)), 0, tmp_path)


def test_a_sentence_that_two_splits_say_stays_in_the_test_split(tmp_path: Path) -> None:
    one = librispeech(tmp_path / "one", ("1-1-0", "CHAPTER ONE"), ("1-1-1", "X"), ("2-1-0", "B"))
    two = librispeech(tmp_path / "two", ("3-1-0", "CHAPTER ONE"), ("4-1-0", "CHAPTER ONE"))
    config = data(
        {"kind": "librispeech", "root": one, "splits": {"train": 1.0}},
        {"kind": "librispeech", "root": two, "splits": {"test": 1.0}},
        wanted=("train", "test"),
    )
    speech = load_corpora(config, 0, tmp_path)
    assert transcripts(speech, Split.TRAIN) == {"x", "b"}
    assert len(speech[Split.TEST]) == 2


def test_a_recorded_speaker_with_a_name_of_another_split_is_said() -> None:
    def speaks(name: str) -> Utterance:
        return Utterance(f"folder:{name}/1.wav", f"folder:{name}", Path(), (), None)

    def heard(name: str | None, split: Split) -> RecordedMixture:
        return RecordedMixture("", split, Path(), (), None, "", name, None)

    speech = {Split.TRAIN: [speaks("Ann"), speaks("Bob")], Split.TEST: [speaks("Eve")]}
    fine = [heard("Ann", Split.TRAIN), heard("Eve", Split.TEST), heard("Gus", Split.TEST), heard(None, Split.TEST)]
    assert speakers_also_recorded(speech, fine) == ()
    (said,) = speakers_also_recorded(speech, [*fine, heard("Bob", Split.TEST), heard("Bob", Split.TEST)])
    assert said.startswith("1 speaker of recorded mixtures (Bob) may speak in another split of data.corpora")
    both = [heard("Bob", Split.TEST), heard("Ann", Split.VALIDATION)]
    assert speakers_also_recorded(speech, both)[0].startswith("2 speakers of recorded mixtures (Ann, Bob)")
