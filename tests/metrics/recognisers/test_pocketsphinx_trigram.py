import sys

import numpy as np
import pytest

from hwsearch.data.espeak import read_corpus
from hwsearch.data.utterance import load_speech
from hwsearch.errors import UserError
from hwsearch.experiment import CorpusConfig, Split
from hwsearch.metrics.recognisers.augmentation import add_at
from hwsearch.metrics.recognisers.pocketsphinx_trigram import PocketsphinxTrigram
from hwsearch.metrics.wer import corpus_wer, word_errors


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[np.ndarray, str]]:
    corpus = CorpusConfig(kind="espeak", splits={Split.TRAIN: 0.25}, speakers=4, utterances_per_speaker=4)
    source = read_corpus(corpus, 0, tmp_path_factory.mktemp("espeak"))
    source.synthesise()
    return [(load_speech(utterance, 16000), utterance.transcript or "") for utterance in source.speech[Split.TRAIN]]


@pytest.fixture(scope="module")
def recogniser(sentences: list[tuple[np.ndarray, str]]) -> PocketsphinxTrigram:
    return PocketsphinxTrigram(transcript for _, transcript in sentences)


def test_it_recognises_its_sentences_in_any_order_and_suffers_from_a_second_voice(
    recogniser: PocketsphinxTrigram, sentences: list[tuple[np.ndarray, str]]
) -> None:
    audios, transcripts = zip(*sentences, strict=True)
    mixed = [recogniser.transcribe(add_at(audio, audios[number - 1], 0.0)) for number, audio in enumerate(audios)]
    clean = [recogniser.transcribe(audio) for audio in audios]
    assert recogniser.transcribe(audios[0]) == clean[0]
    mixed_wer, clean_wer = (corpus_wer(list(map(word_errors, transcripts, heard))) for heard in (mixed, clean))
    assert clean_wer < 0.45
    assert mixed_wer > clean_wer + 0.2


def test_words_without_a_pronunciation_do_no_harm() -> None:
    assert PocketsphinxTrigram(["the merneptah and the zzyzxian cat"]).can_write("merneptah")


def test_silence_has_no_words(recogniser: PocketsphinxTrigram) -> None:
    assert recogniser.transcribe(np.zeros(16000, np.float32)) == ""
    assert recogniser.transcribe(np.zeros(0, np.float32)) == ""


def test_no_transcripts_and_no_package_are_errors_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="transcripts hold no words"):
        PocketsphinxTrigram(["", "?"])
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    with pytest.raises(UserError, match=r"pip install 'hwsearch\[asr\]'"):
        PocketsphinxTrigram(["one"])
