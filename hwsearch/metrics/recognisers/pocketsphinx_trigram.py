"""pocketsphinx with a language model made from the evaluation transcripts.

Its own language model is of no use on read speech. The vocabulary is closed: word error rates compare separators on one set of
transcripts and say nothing about open speech.
"""

import re
import tempfile
from collections.abc import Iterable, Set
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwsearch.errors import UserError
from hwsearch.metrics.recognisers.recogniser import listenable
from hwsearch.metrics.recognisers.trigram import to_arpa, train_trigram
from hwsearch.metrics.wer import normalise

SAMPLE_RATE = 16000
"""Sample rate in Hz of the package's acoustic model. Speech sampled at 8 kHz lacks half of the band."""

PEAK = 0.7
"""Peak of the audio in 16 bits; the gain of a separator's output is arbitrary."""

_ALTERNATIVE = re.compile(r"\(\d+\)")


class PocketsphinxTrigram:
    """A `Recogniser` of the words of `transcripts`. It cannot be pickled.

    Raises:
        UserError: pocketsphinx is not installed, or the transcripts hold no word.
    """

    sample_rate = SAMPLE_RATE

    def __init__(self, transcripts: Iterable[str]) -> None:
        try:
            import pocketsphinx
        except ImportError:
            raise UserError("pocketsphinx is not installed; wanted: pip install 'hwsearch[asr]'") from None
        sentences = [normalise(transcript) for transcript in transcripts]
        if not any(sentences):
            raise UserError("the transcripts hold no words; wanted those of the evaluation set, to make its vocabulary")
        words = {word for sentence in sentences for word in sentence.split()}
        pronunciations = _pronunciations(Path(pocketsphinx.get_model_path("en-us/cmudict-en-us.dict")), words)
        with tempfile.TemporaryDirectory() as folder:
            model, dictionary = Path(folder) / "transcripts.arpa", Path(folder) / "transcripts.dict"
            model.write_text(to_arpa(train_trigram(sentences)), encoding="utf-8")
            lines = (line for word in sorted(pronunciations) for line in pronunciations[word])
            dictionary.write_text("\n".join([*lines, ""]), encoding="utf-8")
            self._decoder = pocketsphinx.Decoder(lm=str(model), dict=str(dictionary), samprate=SAMPLE_RATE, loglevel="FATAL")

    def can_write(self, transcript: str) -> bool:
        """Any transcript; words without a pronunciation count as errors."""
        del transcript
        return True

    def transcribe(self, audio: NDArray[np.float32]) -> str:
        """Words heard in `audio` [samples] at 16 kHz; `ValueError` unless it is one finite channel."""
        if not listenable(audio):
            return ""
        levelled = np.round(audio * (PEAK * 32767 / np.abs(audio).max())).astype("<i2")
        self._decoder.reinit_feat()  # resets the noise tracker
        self._decoder.start_utt()
        self._decoder.process_raw(levelled.tobytes(), full_utt=True)
        self._decoder.end_utt()
        hypothesis = self._decoder.hyp()
        return _ALTERNATIVE.sub("", hypothesis.hypstr) if hypothesis else ""


def _pronunciations(dictionary: Path, words: Set[str]) -> dict[str, list[str]]:
    """Lines of the dictionary for `words`, by word. Loading only these saves seconds."""
    found: dict[str, list[str]] = {}
    with dictionary.open(encoding="utf-8") as lines:
        for line in lines:
            word = _ALTERNATIVE.sub("", line.split(maxsplit=1)[0])
            if word in words:
                found.setdefault(word, []).append(line.strip())
    return found
