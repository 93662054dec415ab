"""The digit recogniser: decoding against brute force, training, its file, and what the shipped one hears."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import soxr
import torch

from hwsearch.data.espeak import read_corpus
from hwsearch.data.sentences import DIGITS
from hwsearch.data.utterance import load_speech
from hwsearch.errors import UserError
from hwsearch.experiment import CorpusConfig, Split
from hwsearch.metrics.recognisers import ctc
from hwsearch.metrics.recognisers.augmentation import add_at, reverberate
from hwsearch.metrics.recognisers.ctc import (
    BLANK,
    FORMAT,
    CtcDigitRecogniser,
    CtcNetwork,
    Example,
    collapse,
    labels_of,
    load,
    load_default,
    save,
    train_ctc,
)
from hwsearch.metrics.recognisers.recogniser import transcribe_at
from hwsearch.metrics.wer import corpus_wer, word_errors

SHIPPED_SEED = 1
SHIPPED_CORPUS = CorpusConfig(
    kind="espeak", splits={Split.TRAIN: 0.8, Split.TEST: 0.2}, speakers=75, utterances_per_speaker=2, digit_strings=1.0
)
"""As `experiments/train_digit_recogniser.py` dealt the voices: the test split was not heard in training."""


def tones(digits: list[int]) -> Example:
    """A language of tones: each digit 0.1 s of its own frequency, 0.05 s of silence between."""
    time = np.arange(800) / 8000
    parts = [np.concatenate([np.sin(2 * np.pi * (300 + 300 * d) * time), np.zeros(400)]) for d in digits]
    return np.concatenate(parts).astype(np.float32), " ".join(DIGITS[d] for d in digits)


def tone_stream(seed: int) -> Iterator[Example]:
    rng = np.random.default_rng(seed)
    while True:
        yield tones(list(rng.integers(0, 10, rng.integers(1, 5))))


def untrained(seed: int = 0) -> CtcDigitRecogniser:
    torch.manual_seed(seed)
    return CtcDigitRecogniser(CtcNetwork())


def test_collapse_sorts_all_paths_as_the_ctc_loss_does() -> None:
    """The probabilities of the paths that collapse to a labelling sum to what torch's CTC loss computes."""
    frames, labels = 5, 3
    log_p = torch.randn(frames, labels, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log_p = log_p.log_softmax(1)
    totals: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(labels), repeat=frames):
        probability = float(sum(log_p[t, label] for t, label in enumerate(path)).exp())
        key = tuple(collapse(path))
        totals[key] = totals.get(key, 0.0) + probability
    for labelling, total in totals.items():
        loss = torch.nn.functional.ctc_loss(
            log_p, torch.tensor([labelling], dtype=torch.long), [frames], [len(labelling)], BLANK, "sum"
        )
        assert total == pytest.approx(float((-loss).exp()))


def test_labels_are_read_from_words_and_figures() -> None:
    assert labels_of("Zero nine, 4") == [1, 10, 5]
    with pytest.raises(ValueError, match="not a digit: oh"):
        labels_of("one oh two")


def test_training_learns_a_language_of_tones() -> None:
    recogniser = train_ctc(tone_stream(0), steps=100, seed=0, batch_size=8)
    heard = [word_errors(transcript, recogniser.transcribe(audio)) for audio, transcript in itertools.islice(tone_stream(1), 30)]
    assert corpus_wer(heard) < 0.1


def test_the_seed_fixes_the_weights_and_leaves_the_callers_generator_alone() -> None:
    before = torch.random.get_rng_state()
    first, again = (train_ctc(tone_stream(0), steps=2, seed=3, batch_size=2).network for _ in range(2))
    other = train_ctc(tone_stream(0), steps=2, seed=4, batch_size=2).network
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.head.weight, other.head.weight)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_running_out_of_examples_is_said() -> None:
    with pytest.raises(ValueError, match="ran out at step 1 of 5"):
        train_ctc(itertools.islice(tone_stream(0), 3), steps=5, seed=0, batch_size=2)


def test_a_saved_recogniser_hears_the_same(tmp_path: Path) -> None:
    recogniser = untrained()
    path = tmp_path / "digits.safetensors"
    save(recogniser, path, {"seed": "0"})
    restored = load(path)
    audio = np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    assert restored.transcribe(audio) == recogniser.transcribe(audio) != ""
    for name, tensor in recogniser.network.state_dict().items():
        assert torch.equal(restored.network.state_dict()[name], tensor)


def damaged_files(path: Path) -> Iterator[tuple[str, bytes]]:
    good = path.read_bytes()
    state = safetensors.torch.load(good)
    metadata = {"format": FORMAT}
    yield "not a digit recogniser", good[: len(good) // 2]
    yield "not a digit recogniser", b""
    yield "not a digit recogniser", b"\x80\x04\x95" + good[3:]
    yield "not a digit recogniser", (2**62).to_bytes(8, "little") + good[8:]
    yield "wanted 'hwsearch digit recogniser 1'", safetensors.torch.save(state)
    yield "format is 'other'", safetensors.torch.save(state, {"format": "other"})
    poisoned = state | {"head.bias": torch.full_like(state["head.bias"], torch.nan)}
    yield "tensor 'head.bias' holds values out of range", safetensors.torch.save(poisoned, metadata)
    yield (
        r"tensor 'head\.bias' is torch\.float32 \[3\]; wanted",
        safetensors.torch.save(state | {"head.bias": torch.zeros(3)}, metadata),
    )
    missing = {name: tensor for name, tensor in state.items() if name != "head.bias"}
    yield "tensor 'head.bias' is missing", safetensors.torch.save(missing, metadata)
    yield "tensor 'extra' is unknown", safetensors.torch.save(state | {"extra": torch.zeros(3)}, metadata)


def test_a_damaged_file_gets_one_line_that_names_it(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    save(untrained(), good, {})
    with pytest.raises(UserError, match="no such file"):
        load(bad)
    for reason, content in damaged_files(good):
        bad.write_bytes(content)
        with pytest.raises(UserError, match=reason) as caught:
            load(bad)
        assert str(caught.value).startswith(f"{bad}: ")
        assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def shipped() -> CtcDigitRecogniser:
    return load_default()


@pytest.fixture(scope="module")
def unheard_voices(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[np.ndarray, str]]:
    """Digit strings by voices that the shipped recogniser was not trained on."""
    source = read_corpus(SHIPPED_CORPUS, SHIPPED_SEED, tmp_path_factory.mktemp("espeak"))
    source.synthesise()
    return [(load_speech(utterance, 8000), utterance.transcript or "") for utterance in source.speech[Split.TEST]]


def wer_of(recogniser: CtcDigitRecogniser, examples: list[tuple[np.ndarray, str]]) -> float:
    return corpus_wer([word_errors(transcript, recogniser.transcribe(audio)) for audio, transcript in examples])


def test_the_shipped_recogniser_is_small(shipped: CtcDigitRecogniser) -> None:
    assert sum(parameter.numel() for parameter in shipped.network.parameters()) <= 200_000


def test_the_shipped_recogniser_hears_voices_it_was_not_trained_on(
    shipped: CtcDigitRecogniser, unheard_voices: list[tuple[np.ndarray, str]]
) -> None:
    assert wer_of(shipped, unheard_voices) < 0.1


def test_word_errors_tell_a_mixture_from_a_voice_in_a_room(
    shipped: CtcDigitRecogniser, unheard_voices: list[tuple[np.ndarray, str]]
) -> None:
    rng = np.random.default_rng(0)
    in_rooms = [(reverberate(audio, 8000, rng), transcript) for audio, transcript in unheard_voices]
    others = unheard_voices[7:] + unheard_voices[:7]
    mixed = [
        (add_at(audio, other, 0.0), transcript) for (audio, transcript), (other, _) in zip(unheard_voices, others, strict=True)
    ]
    assert wer_of(shipped, in_rooms) < 0.25
    assert wer_of(shipped, mixed) > 0.4


def test_gain_and_sample_rate_do_not_matter(shipped: CtcDigitRecogniser, unheard_voices: list[tuple[np.ndarray, str]]) -> None:
    for audio, _ in unheard_voices:
        # A power of two changes no digit of a float.
        assert shipped.transcribe(audio * np.float32(2**-10)) == shipped.transcribe(audio)
    wer_at_16_khz = corpus_wer(
        [
            word_errors(transcript, transcribe_at(shipped, soxr.resample(audio, 8000, 16000), 16000))
            for audio, transcript in unheard_voices
        ]
    )
    assert wer_at_16_khz == pytest.approx(wer_of(shipped, unheard_voices), abs=0.03)


def test_silence_has_no_words_and_bad_arrays_are_refused(shipped: CtcDigitRecogniser) -> None:
    assert shipped.transcribe(np.zeros(8000, np.float32)) == ""
    assert shipped.transcribe(np.zeros(0, np.float32)) == ""
    assert isinstance(shipped.transcribe(np.ones(1, np.float32)), str)
    with pytest.raises(ValueError, match="one channel"):
        shipped.transcribe(np.zeros((2, 8000), np.float32))
    with pytest.raises(ValueError, match="finite"):
        shipped.transcribe(np.full(8000, np.nan, np.float32))


def test_the_recogniser_that_ships_is_refused_with_one_bit_flipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytearray(ctc.DEFAULT_FILE.read_bytes())
    content[-1000] ^= 1
    (tmp_path / "digits.safetensors").write_bytes(content)
    monkeypatch.setattr(ctc, "DEFAULT_FILE", tmp_path / "digits.safetensors")
    with pytest.raises(UserError, match=r"digits\.safetensors: changed since it was written"):
        ctc.load_default()
