"""Train the digit recogniser that ships with hwsearch, and measure it.

    python experiments/train_digit_recogniser.py --fsdd PATH [--output FILE] [--result FILE]

Data: digit strings joined from the Free Spoken Digit Dataset (its recordings are not part of this project)
and digit strings said by eSpeak NG, half of each, augmented on the fly with speed, rooms, weak voices and
noise. It is measured on recordings and strings that training has not seen, from FSDD's six speakers, and on
eSpeak voices that training has not heard: clean, in drawn rooms, mixed at 0 dB with another voice, and
separated from that mixture by an ideal ratio mask. One thread, a few minutes.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np
import scipy.signal
import torch
from numpy.typing import NDArray

from hwsearch.data import espeak, fsdd
from hwsearch.data.utterance import Utterance, load_speech
from hwsearch.experiment import CorpusConfig, Split
from hwsearch.files.reading import file_digest
from hwsearch.files.writing import atomic_write_json
from hwsearch.metrics.recognisers.augmentation import add_at, augment, reverberate
from hwsearch.metrics.recognisers.ctc import DEFAULT_FILE, CtcDigitRecogniser, Example, save, train_ctc
from hwsearch.metrics.statistics import Estimate, wer_interval
from hwsearch.metrics.wer import word_errors

SAMPLE_RATE = CtcDigitRecogniser.sample_rate
SEED = 1
STEPS = 2200
BATCH = 32
FSDD_STRINGS_PER_SPEAKER = 400
FSDD_SHARES = {Split.TRAIN: 0.9, Split.TEST: 0.1}
"""Too small a test share for speakers of its own: all six speak in both splits, which differ by takes and
strings."""
ESPEAK_VOICES = 75
ESPEAK_STRINGS_PER_VOICE = 40
ESPEAK_SHARES = {Split.TRAIN: 0.8, Split.TEST: 0.2}
TEST_STRINGS = 300

Audio = NDArray[np.float32]
Condition = Callable[[Audio, Audio, np.random.Generator], Audio]
"""What becomes of a test utterance, given another voice."""


def training_stream(corpora: Sequence[Sequence[Example]], seed: int) -> Iterator[Example]:
    """Augmented examples without end, each corpus equally often; the interferer is the one before."""
    rng = np.random.default_rng(seed)
    other = corpora[0][0][0]
    while True:
        corpus = corpora[int(rng.integers(len(corpora)))]
        audio, transcript = corpus[int(rng.integers(len(corpus)))]
        yield augment(audio, other, SAMPLE_RATE, rng), transcript
        other = audio


def clean(audio: Audio, _other: Audio, _rng: np.random.Generator) -> Audio:
    """The utterance itself."""
    return audio


def room(audio: Audio, _other: Audio, rng: np.random.Generator) -> Audio:
    """The utterance in a drawn room, T60 0.05 to 0.5 s."""
    return reverberate(audio, SAMPLE_RATE, rng)


def mixture(audio: Audio, other: Audio, _rng: np.random.Generator) -> Audio:
    """The utterance and another voice at 0 dB."""
    return add_at(audio, other, 0.0)


def ideal_mask(audio: Audio, other: Audio, rng: np.random.Generator) -> Audio:
    """The utterance separated from the 0 dB mixture by the ideal ratio mask, 32 ms frames."""
    mixed = mixture(audio, other, rng)
    voices = [scipy.signal.stft(x, SAMPLE_RATE, nperseg=256)[2] for x in (audio, mixed - audio)]
    power = [np.square(np.abs(spectrum)) for spectrum in voices]
    mask = np.sqrt(power[0] / (power[0] + power[1] + 1e-12))
    separated = scipy.signal.istft(mask * (voices[0] + voices[1]), SAMPLE_RATE, nperseg=256)[1]
    return np.asarray(separated[: audio.size], dtype=np.float32)


CONDITIONS: dict[str, Condition] = {
    "clean": clean,
    "room": room,
    "mixture_0_db": mixture,
    "ideal_ratio_mask_of_mixture": ideal_mask,
}


def measure(recogniser: CtcDigitRecogniser, examples: Sequence[Example], condition: Condition) -> tuple[Estimate, int]:
    """WER over `examples`, and its words; the other voice is that of an example far off in the list."""
    rng = np.random.default_rng(SEED)
    errors = []
    for index, (audio, transcript) in enumerate(examples):
        other = examples[(index + len(examples) // 2) % len(examples)][0]
        errors.append(word_errors(transcript, recogniser.transcribe(condition(audio, other, rng))))
    return wer_interval(errors, SEED), sum(utterance.words for utterance in errors)


def load_examples(recordings: Path) -> tuple[dict[str, list[Example]], dict[str, list[Example]]]:
    """Training and test strings by corpus."""
    strings = CorpusConfig(kind="fsdd", root=recordings, splits=FSDD_SHARES, utterances_per_speaker=FSDD_STRINGS_PER_SPEAKER)
    voices = CorpusConfig(
        kind="espeak",
        splits=ESPEAK_SHARES,
        speakers=ESPEAK_VOICES,
        utterances_per_speaker=ESPEAK_STRINGS_PER_VOICE,
        digit_strings=1.0,
    )
    with tempfile.TemporaryDirectory() as cache:
        spoken = espeak.read_corpus(voices, SEED, Path(cache))
        spoken.synthesise()
        corpora = {"fsdd": fsdd.read_corpus(strings, SEED, Path(cache)).speech, "espeak": spoken.speech}
        training = {name: examples_of(corpus[Split.TRAIN]) for name, corpus in corpora.items()}
        testing = {name: examples_of(spread(corpus[Split.TEST])) for name, corpus in corpora.items()}
    return training, testing


def examples_of(utterances: Sequence[Utterance]) -> list[Example]:
    """Audio and transcript of each utterance."""
    return [(load_speech(utterance, SAMPLE_RATE), utterance.transcript or "") for utterance in utterances]


def spread(utterances: Sequence[Utterance]) -> list[Utterance]:
    """At most `TEST_STRINGS` of `utterances`, evenly spaced, so that every speaker stays in."""
    step = max(1.0, len(utterances) / TEST_STRINGS)
    return [utterances[int(index * step)] for index in range(min(TEST_STRINGS, len(utterances)))]


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description="Train and measure the digit recogniser.")
    results = Path(__file__).parent / "results"
    parser.add_argument("--fsdd", type=Path, required=True, help="folder of {digit}_{speaker}_{take}.wav")
    parser.add_argument("--output", type=Path, default=DEFAULT_FILE)
    parser.add_argument("--result", type=Path, default=results / "digit_recogniser.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    training, testing = load_examples(arguments.fsdd)
    print(f"{sum(map(len, training.values()))} training strings", flush=True)

    start = time.monotonic()

    def report(step: int, loss: float) -> None:
        if step % 100 == 0:
            print(f"step {step} of {STEPS}: loss {loss:.3f}, {time.monotonic() - start:.0f} s", flush=True)

    recogniser = train_ctc(training_stream(list(training.values()), SEED), STEPS, SEED, BATCH, report)
    seconds = time.monotonic() - start
    data = f"FSDD takes 10 to 49, {ESPEAK_VOICES * ESPEAK_SHARES[Split.TRAIN]:.0f} eSpeak NG voices"
    save(recogniser, arguments.output, {"seed": str(SEED), "steps": str(STEPS), "data": data})

    measured: dict[str, dict[str, object]] = {}
    for name, examples in testing.items():
        measured[name] = {}
        for label, condition in CONDITIONS.items():
            wer, words = measure(recogniser, examples, condition)
            measured[name][label] = asdict(wer) | {"words": words}
            print(f"{name} {label}: WER {wer.value:.2%} [{wer.low:.2%}, {wer.high:.2%}], n = {wer.n}")
    result = {
        "recogniser": "digit CTC (closed vocabulary: zero to nine)",
        "sha256": file_digest(arguments.output),
        "parameters": sum(parameter.numel() for parameter in recogniser.network.parameters()),
        "training": {
            "data": data,
            "strings": {name: len(examples) for name, examples in training.items()},
            "steps": STEPS,
            "batch": BATCH,
            "seed": SEED,
            "seconds": round(seconds),
        },
        "test_wer": measured,
        "versions": {name: version(name) for name in ("torch", "numpy", "soxr", "espeakng-loader")},
    }
    atomic_write_json(arguments.result, result)


if __name__ == "__main__":
    main()
