import sys

import numpy as np
import pytest

from hwsearch.data.espeak import write_script
from hwsearch.data.utterance import load_speech
from hwsearch.errors import UserError
from hwsearch.experiment import Split
from hwsearch.metrics.recognisers.augmentation import add_at
from hwsearch.metrics.recognisers.pocketsphinx_trigram import PocketsphinxTrigram
from hwsearch.metrics.recognisers.recogniser import Recogniser
from hwsearch.metrics.wer import corpus_wer, word_errors


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[np.ndarray, str]]:
    script = write_script({Split.TRAIN: 1.0}, 1, 5, 0.0, 0, tmp_path_factory.mktemp("espeak"))
    script.synthesise()
    spoken = script.utterances(Split.TRAIN)
    return [(load_speech(utterance, 16000), utterance.transcript or "") for utterance in spoken]


@pytest.fixture(scope="module")
def recogniser(sentences: list[tuple[np.ndarray, str]]) -> PocketsphinxTrigram:
    return PocketsphinxTrigram(transcript for _, transcript in sentences)


def wer_of(recogniser: PocketsphinxTrigram, examples: list[tuple[np.ndarray, str]]) -> float:
    return corpus_wer(word_errors(transcript, recogniser.transcribe(audio)) for audio, transcript in examples)


def test_it_recognises_the_sentences_it_was_told_of_and_suffers_from_a_second_voice(
    recogniser: PocketsphinxTrigram, sentences: list[tuple[np.ndarray, str]]
) -> None:
    others = sentences[1:] + sentences[:1]
    mixed = [(add_at(audio, other, 0.0), transcript) for (audio, transcript), (other, _) in zip(sentences, others, strict=True)]
    clean_wer = wer_of(recogniser, sentences)
    assert clean_wer < 0.45
    assert wer_of(recogniser, mixed) > clean_wer + 0.2


def test_the_order_of_utterances_changes_nothing(
    recogniser: PocketsphinxTrigram, sentences: list[tuple[np.ndarray, str]]
) -> None:
    forwards = [recogniser.transcribe(audio) for audio, _ in sentences]
    backwards = [recogniser.transcribe(audio) for audio, _ in reversed(sentences)]
    assert forwards == backwards[::-1]


def test_it_says_that_its_vocabulary_is_closed(recogniser: PocketsphinxTrigram) -> None:
    general: Recogniser = recogniser
    assert general.closed_vocabulary
    assert "closed vocabulary" in general.name
    assert general.sample_rate == 16000


def test_words_without_a_pronunciation_are_reported() -> None:
    assert PocketsphinxTrigram(["the merneptah and the zzyzxian cat", "Merneptah"]).missing_words == (
        "merneptah",
        "zzyzxian",
    )


def test_silence_has_no_words(recogniser: PocketsphinxTrigram) -> None:
    assert recogniser.transcribe(np.zeros(16000, np.float32)) == ""
    assert recogniser.transcribe(np.zeros(0, np.float32)) == ""


def test_no_transcripts_and_no_package_are_errors_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="transcripts hold no words"):
        PocketsphinxTrigram(["", "?"])
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    with pytest.raises(UserError, match=r"pip install 'hwsearch\[asr\]'"):
        PocketsphinxTrigram(["one"])
