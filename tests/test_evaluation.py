"""Figures of a separator: against numpy means, jiwer, and the scores of other libraries, bin by bin."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import fast_bss_eval
import jiwer
import numpy as np
import pesq
import pystoi
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from hwsearch.data.dataset import Mixture, open_dataset
from hwsearch.errors import UserError
from hwsearch.experiment import EvaluationConfig, Split
from hwsearch.metrics.evaluation import (
    UtteranceScores,
    compare,
    evaluate,
    make_recogniser,
    read_figures,
    score_utterance,
    summarise,
    to_json,
)
from hwsearch.metrics.recognisers.ctc import CtcDigitRecogniser, load_default
from hwsearch.metrics.wer import word_errors
from tests.tiny import Tiny

BINS = (0.0, 15.0, 45.0, 90.0, 180.0)
TRANSCRIPTS = ("one two three four", "five six", "seven eight nine zero one", "two", "the cat sat")


@dataclass
class Reader:
    """A recogniser that reads its answers from a list, whatever it hears."""

    answers: Iterator[str]
    heard: list[NDArray[np.float32]] = field(default_factory=list)
    sample_rate: int = 16000

    def can_write(self, transcript: str) -> bool:
        return bool(transcript)

    def transcribe(self, audio: NDArray[np.float32]) -> str:
        self.heard.append(audio)
        return next(self.answers)


def utterance(number: int, angle: float, scores: dict[str, float], said: str = "", heard: str = "") -> UtteranceScores:
    words = {"estimate": word_errors(said, heard), "mixture": word_errors(said, "")} if said else {}
    return UtteranceScores(f"test-{number}", f"utterance-{number}", angle, 0.1, scores, words, {})


def random_utterances(count: int, seed: int) -> list[UtteranceScores]:
    random = np.random.default_rng(seed)
    return [
        utterance(number, float(random.uniform(0, 180)), {"si_snr_db": random.normal(), "mixture_pesq": random.uniform(1, 4)})
        for number in range(count)
    ]


# Single utterances


def test_each_score_is_what_other_libraries_give(tiny: Tiny) -> None:
    random = np.random.default_rng(0)
    for mixture, sound, target in tiny.mixtures(Split.TEST):
        estimate = (target + 0.01 * random.standard_normal(len(target))).astype(np.float32)
        found = score_utterance(mixture, sound[0], estimate, target, None)
        for prefix, signal in (("mixture_", sound[0]), ("", estimate)):
            si_sdr = fast_bss_eval.si_sdr(target[None].astype(float), signal[None].astype(float), zero_mean=True)
            assert found.scores[f"{prefix}si_snr_db"] == pytest.approx(float(si_sdr[0]), abs=1e-4)
            assert found.scores[f"{prefix}pesq"] == pytest.approx(pesq.pesq(8000, target, signal, "nb"))
            assert found.scores[f"{prefix}stoi"] == pytest.approx(pystoi.stoi(target, signal, 8000), abs=1e-6)
        improvement = found.scores["si_snr_db"] - found.scores["mixture_si_snr_db"]
        assert found.scores["si_snr_improvement_db"] == pytest.approx(improvement)
        assert (found.id, found.utterance, found.angle_deg) == (mixture.id, mixture.target.utterance, mixture.angle_deg)
        assert not found.words
        assert not found.unavailable


def test_a_system_hears_every_mixture_with_the_targets_direction(tiny: Tiny) -> None:
    mixtures = open_dataset(tiny.workspace.data_folder, Split.TEST)
    told: list[tuple[int, int]] = []
    directions: list[float] = []

    def first_microphone(sound: NDArray[np.float32], doa: float) -> NDArray[np.float32]:
        directions.append(doa)
        return sound[0]

    results = evaluate(first_microphone, tiny.workspace.data_folder, mixtures, None, lambda *done: told.append(done))
    assert directions == [mixture.target.doa_deg for mixture in mixtures]
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert [result.scores["si_snr_improvement_db"] for result in results] == [0.0, 0.0, 0.0]


def test_an_utterance_without_a_score_is_left_out_and_named(tiny: Tiny) -> None:
    mixtures = tiny.mixtures(Split.TEST)
    results = [
        score_utterance(mixture, sound[0], 0 * target if number == 1 else target, target, None)
        for number, (mixture, sound, target) in enumerate(mixtures)
    ]
    missing = results[1]
    assert missing.unavailable.keys() == {"si_snr_db", "pesq", "stoi"}
    assert all("silent" in reason for reason in missing.unavailable.values())
    assert missing.scores.keys() == {"mixture_si_snr_db", "mixture_pesq", "mixture_stoi"}
    figures = summarise(results, BINS, seed=0)[-1].figures
    assert {figures[name].n for name in ("pesq", "si_snr_db", "stoi", "si_snr_improvement_db")} == {2}
    assert figures["mixture_pesq"].n == 3
    assert figures["pesq"].value == pytest.approx(np.mean([results[0].scores["pesq"], results[2].scores["pesq"]]))


def test_a_mixture_too_short_for_pesq_still_has_its_other_scores(tiny: Tiny) -> None:
    mixture, sound, target = tiny.mixtures(Split.TEST)[0]
    loud = int(np.abs(target).argmax())
    piece = slice(max(0, loud - 700), max(0, loud - 700) + 1400)  # 0.175 s
    found = score_utterance(mixture, sound[0][piece], sound[1][piece], target[piece], None)
    assert "0.17 s long; PESQ takes" in found.unavailable["pesq"]
    assert {"si_snr_db", "si_snr_improvement_db"} <= found.scores.keys()


# Summaries


@given(st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_a_summary_holds_numpys_means_of_its_utterances(count: int, seed: int) -> None:
    results = random_utterances(count, seed)
    summaries = summarise(results, BINS, seed=0)
    for summary in summaries:
        low, high = summary.angles_deg
        inside = [result for result in results if low <= result.angle_deg < high]
        assert summary.utterances == len(inside) > 0
        for name in ("si_snr_db", "mixture_pesq"):
            values = [result.scores[name] for result in inside]
            figure = summary.figures[name]
            assert figure.value == pytest.approx(np.mean(values))
            assert figure.n == len(values)
            if len(values) > 1:
                interval = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
                assert (figure.low, figure.high) == pytest.approx(interval)
        assert "pesq" not in summary.figures
    assert sum(summary.utterances for summary in summaries[:-1]) == summaries[-1].utterances == count
    assert summaries[-1].angles_deg == (0.0, 180.0)


def test_an_angle_at_the_end_of_two_bins_belongs_to_the_upper_one_and_the_last_end_to_the_last_bin() -> None:
    results = [utterance(number, angle, {"si_snr_db": angle}) for number, angle in enumerate((0.0, 15.0, 14.999, 90.0, 180.0))]
    members = {summary.angles_deg: summary.figures["si_snr_db"].value for summary in summarise(results, BINS, seed=0)[:-1]}
    assert members == {
        (0.0, 15.0): pytest.approx(np.mean([0.0, 14.999])),
        (15.0, 45.0): 15.0,
        (90.0, 180.0): pytest.approx(np.mean([90.0, 180.0])),
    }


def test_an_angle_outside_every_bin_counts_in_all() -> None:
    results = [utterance(number, angle, {"si_snr_db": angle}) for number, angle in enumerate((5.0, 20.0, 120.0))]
    inner, everything = summarise(results, (10.0, 90.0), seed=0)
    assert (inner.angles_deg, inner.utterances) == ((10.0, 90.0), 1)
    assert (everything.angles_deg, everything.utterances) == ((0.0, 180.0), 3)


def test_mixtures_of_one_utterance_are_resampled_together() -> None:
    random = np.random.default_rng(1)
    values = [float(value) for value in np.repeat(random.normal(size=6), 8) + 0.01 * random.normal(size=48)]
    alone = [utterance(number, 10.0, {"si_snr_db": value}) for number, value in enumerate(values)]
    shared = [replace(result, utterance=f"utterance-{number // 8}") for number, result in enumerate(alone)]
    wide, narrow = (summarise(results, BINS, seed=0)[-1].figures["si_snr_db"] for results in (shared, alone))
    assert wide.value == pytest.approx(narrow.value)
    assert (wide.n, wide.groups, narrow.groups) == (48, 6, None)
    assert (wide.high or 0) - (wide.low or 0) > 1.5 * ((narrow.high or 0) - (narrow.low or 0))


# Words


@given(st.lists(st.tuples(st.sampled_from(TRANSCRIPTS), st.sampled_from((*TRANSCRIPTS, "")))), st.data())
def test_word_error_rates_are_jiwers_on_all_transcripts(pairs: Sequence[tuple[str, str]], data: st.DataObject) -> None:
    angles = [data.draw(st.sampled_from((10.0, 100.0))) for _ in pairs]
    results = [utterance(number, angles[number], {}, said, heard) for number, (said, heard) in enumerate(pairs)]
    if not results:
        return
    for summary in summarise(results, BINS, seed=0):
        low, high = summary.angles_deg
        inside = [pair for pair, angle in zip(pairs, angles, strict=True) if low <= angle < high]
        said, heard = ([pair[side] for pair in inside] for side in (0, 1))
        assert summary.figures["wer"].value == pytest.approx(jiwer.wer(said, heard))
        assert summary.figures["mixture_wer"].value == 1.0
        assert "target_wer" not in summary.figures


def test_mixture_estimate_and_target_are_each_transcribed_at_the_recognisers_rate(tiny: Tiny) -> None:
    mixture, sound, target = tiny.mixtures(Split.TEST)[0]
    spoken = replace(mixture, target=replace(mixture.target, transcript="one two three"))
    reader = Reader(iter(("one", "one two four", "one two three")))
    found = score_utterance(spoken, sound[0], sound[1], target, reader)
    assert {name: words.errors for name, words in found.words.items()} == {"mixture": 2, "estimate": 1, "target": 0}
    assert {words.words for words in found.words.values()} == {3}
    assert [len(heard) for heard in reader.heard] == [2 * len(target)] * 3


def test_words_are_counted_only_where_they_are_known_and_could_be_written(tiny: Tiny) -> None:
    mixture, sound, target = tiny.mixtures(Split.TEST)[0]

    def words(transcript: str | None) -> bool:
        spoken = replace(mixture, target=replace(mixture.target, transcript=transcript))
        return bool(score_utterance(spoken, sound[0], sound[0], target, load_default()).words)

    assert words("one two")
    assert not words("the two of us")
    assert not words(None)


def silent(mixtures: Sequence[Mixture]) -> list[Mixture]:
    return [replace(mixture, target=replace(mixture.target, transcript=None)) for mixture in mixtures]


def test_the_recogniser_is_the_one_that_the_experiment_names(tiny: Tiny) -> None:
    mixtures = open_dataset(tiny.workspace.data_folder, Split.TEST)
    assert make_recogniser(EvaluationConfig(recogniser="none"), mixtures) is None
    assert isinstance(make_recogniser(EvaluationConfig(recogniser="ctc-digits"), silent(mixtures)), CtcDigitRecogniser)
    with pytest.raises(UserError, match="no test mixture has a transcript"):
        make_recogniser(EvaluationConfig(recogniser="pocketsphinx-closed"), silent(mixtures))


# Files and comparisons


def test_figures_written_are_read_again(tmp_path: Path) -> None:
    results = [utterance(1, 3.0, {"pesq": 2.5}, "one two", "one"), utterance(2, 90.0, {"stoi": 0.5})]
    content = to_json(results, summarise(results, BINS, seed=0))
    (tmp_path / "figures.json").write_text(json.dumps(content))
    assert read_figures(tmp_path / "figures.json") == results
    assert content["summaries"][-1]["figures"]["wer"]["value"] == 0.5


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"utterances": [{"id": 3}]}', '{"utterances": {}}'])
def test_a_file_without_figures_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "figures.json").write_text(content)
    with pytest.raises(UserError) as refused:
        read_figures(tmp_path / "figures.json")
    assert str(refused.value).startswith(f"{tmp_path / 'figures.json'}: ")
    assert "; wanted the f" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_two_systems_are_compared_on_the_mixtures_they_share() -> None:
    first = [utterance(number, 10.0, {"si_snr_db": 2.0 + number}, "one two", "one two") for number in range(6)]
    second = [utterance(number, 10.0, {"si_snr_db": 1.0 + number}, "one two", "one") for number in range(1, 8)]
    tests = compare(first, second, seed=0)
    assert tests.keys() == {"si_snr_db", "wer"}
    assert (tests["si_snr_db"].difference, tests["si_snr_db"].n) == (pytest.approx(1.0), 5)
    assert tests["si_snr_db"].p_value == pytest.approx(2 / 2**5)
    assert tests["wer"].difference == pytest.approx(-0.5)
    with pytest.raises(UserError, match="no mixture in common"):
        compare(first[:1], second, seed=0)


def test_figures_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    """JSON has neither NaN nor infinity, but Python reads both, and text for a number is none."""
    content = to_json([utterance(1, 3.0, {"pesq": 2.5})], [])
    path = tmp_path / "figures.json"
    for value, reason in (
        ("NaN", "of 'test-1' one is not finite"),
        ("1e999", "of 'test-1' one is not finite"),
        ('"2.5"', "utterances.0.scores.pesq: found '2.5', wanted a number"),
        ("true", "utterances.0.scores.pesq: found true, wanted a number"),
    ):
        path.write_text(json.dumps(content).replace('"pesq": 2.5', f'"pesq": {value}'))
        with pytest.raises(UserError) as refused:
            read_figures(path)
        assert str(refused.value) == f"{path}: holds no figures ({reason}); wanted the file of 'hwsearch evaluate --output'"
