"""A small recogniser of spoken digit strings: log-mel, a dilated convolutional network, greedy CTC.

Connectionist temporal classification and its best-path decoding: Graves et al., ICML 2006, section 3.2. The recogniser knows ten
words, so its word error rate serves only to compare separators.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hwsearch.data.sentences import DIGITS
from hwsearch.errors import UserError
from hwsearch.files.reading import file_digest
from hwsearch.files.tensors import check_tensors, load_tensors, refused
from hwsearch.files.writing import atomic_write_bytes
from hwsearch.metrics.recognisers.log_mel import MEL_BANDS, SAMPLE_RATE, log_mel, mel_filters
from hwsearch.metrics.recognisers.recogniser import listenable
from hwsearch.metrics.wer import normalise

BLANK = 0
CHANNELS = 64
KERNEL = 5
DILATIONS = (1, 2, 4, 8, 1, 2, 4)
DROPOUT = 0.1
MASKED_BANDS = 6
"""Widest run of mel bands hidden in training (SpecAugment, Park et al., Interspeech 2019)."""

FORMAT = "hwsearch digit recogniser 1"
"""Names the architecture above; a file of another format is refused."""

_WHAT = "a digit recogniser"

DEFAULT_FILE = Path(__file__).with_name("digits_ctc.safetensors")
DEFAULT_SHA256 = "0f0a6113b2b61953908429142893f5d3db8cd1b404d9e8ce0a6c426dcbe4db22"
"""SHA-256 of the file that ships. Training again changes it."""

GRADIENT_NORM = 5.0
PEAK_LEARNING_RATE = 4e-3

Example = tuple[NDArray[np.float32], str]
"""Audio [samples] at 8 kHz and its transcript."""


class ResidualBlock(nn.Module):
    """Dilated convolution over time, [batch, CHANNELS, frames] in and out."""

    def __init__(self, dilation: int) -> None:
        super().__init__()
        padding = dilation * (KERNEL // 2)
        self.convolution = nn.Conv1d(CHANNELS, CHANNELS, KERNEL, padding=padding, dilation=dilation, bias=False)
        self.normalisation = nn.BatchNorm1d(CHANNELS)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.dropout(torch.relu(self.normalisation(self.convolution(x))))
        return out


class CtcNetwork(nn.Module):
    """Log-mel [batch, MEL_BANDS, frames] to label scores [batch, 11, ceil(frames / 2)]; 0.16 M parameters.

    Label 0 is the blank, 1 to 10 are zero to nine. The receptive field of each 20 ms frame is 1.8 s.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(MEL_BANDS, CHANNELS, KERNEL, stride=2, padding=KERNEL // 2, bias=False)
        self.normalisation = nn.BatchNorm1d(CHANNELS)
        self.blocks = nn.Sequential(*(ResidualBlock(dilation) for dilation in DILATIONS))
        self.head = nn.Conv1d(CHANNELS, len(DIGITS) + 1, 1)

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.head(self.blocks(torch.relu(self.normalisation(self.stem(features)))))
        return out


class CtcDigitRecogniser:
    """A `Recogniser` of English digit strings at 8 kHz."""

    sample_rate = SAMPLE_RATE

    def __init__(self, network: CtcNetwork) -> None:
        self.network = network.eval()
        self._filters = torch.from_numpy(mel_filters())

    def can_write(self, transcript: str) -> bool:
        """Whether every word is a digit."""
        words = normalise(transcript).split()
        return bool(words) and set(words) <= set(DIGITS)

    @torch.no_grad()
    def transcribe(self, audio: NDArray[np.float32]) -> str:
        """Digits heard in `audio` [samples] at 8 kHz; `ValueError` unless it is one finite channel."""
        if not listenable(audio):
            return ""
        scores = self.network(log_mel(torch.from_numpy(np.ascontiguousarray(audio)), self._filters)[None])[0]
        return " ".join(DIGITS[label - 1] for label in collapse(scores.argmax(dim=0).tolist()))


def collapse(path: Sequence[int]) -> list[int]:
    """Labelling of a CTC path: merge repeats, then remove blanks (Graves et al. 2006, the map B)."""
    return [label for label, _ in itertools.groupby(path) if label != BLANK]


def labels_of(transcript: str) -> list[int]:
    """CTC labels of a digit string, written in words or figures. `ValueError` on any other word."""
    words = normalise(transcript).split()
    unknown = sorted(set(words) - set(DIGITS))
    if unknown:
        raise ValueError(f"not a digit: {', '.join(unknown)}")
    return [DIGITS.index(word) + 1 for word in words]


def train_ctc(
    examples: Iterable[Example],
    steps: int,
    seed: int,
    batch_size: int = 32,
    on_step: Callable[[int, float], None] | None = None,
) -> CtcDigitRecogniser:
    """Train on `steps` batches of `batch_size` examples each, which the caller has augmented.

    AdamW with a one-cycle learning rate, CTC loss. The same examples, seed and thread count give the same weights. `on_step` gets
    the number of each step and its loss.

    Raises:
        ValueError: the examples run out first, or a transcript holds something else than digits.
    """
    stream = iter(examples)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = CtcNetwork().train()
        filters = torch.from_numpy(mel_filters())
        optimizer = torch.optim.AdamW(network.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=1e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=steps)
        for step in range(steps):
            batch = list(itertools.islice(stream, batch_size))
            if len(batch) < batch_size:
                raise ValueError(f"the examples ran out at step {step} of {steps} (batches of {batch_size})")
            loss = _batch_loss(network, filters, batch)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_NORM)
            optimizer.step()
            schedule.step()
            if on_step is not None:
                on_step(step, loss.item())
    return CtcDigitRecogniser(network)


def save(recogniser: CtcDigitRecogniser, path: Path, provenance: dict[str, str]) -> None:
    """Write the network as safetensors, with `provenance` (seed, data, ...) in its metadata."""
    metadata = {"format": FORMAT, "provenance": json.dumps(provenance, sort_keys=True)}
    atomic_write_bytes(path, safetensors.torch.save(recogniser.network.state_dict(), metadata))


def load(path: Path) -> CtcDigitRecogniser:
    """Read a recogniser that `save` wrote.

    Raises:
        UserError: the file is missing, damaged, or does not hold this network.
    """
    metadata, state = load_tensors(path, _WHAT)
    if metadata.get("format") != FORMAT:
        raise refused(path, _WHAT, f"its format is {metadata.get('format')!r}; wanted {FORMAT!r}")
    network = CtcNetwork()
    check_tensors(path, state, {name: (tensor.dtype, tensor.shape) for name, tensor in network.state_dict().items()})
    network.load_state_dict(state)
    return CtcDigitRecogniser(network)


def load_default() -> CtcDigitRecogniser:
    """Read the recogniser that ships with the package; `experiments/train_digit_recogniser.py` trained it.

    Raises:
        UserError: its file is missing, or is not the one that ships.
    """
    if DEFAULT_FILE.is_file() and file_digest(DEFAULT_FILE) != DEFAULT_SHA256:
        raise UserError(f"{DEFAULT_FILE}: changed since it was written (its SHA-256 differs); install hwsearch again")
    return load(DEFAULT_FILE)


def _batch_loss(network: CtcNetwork, filters: Tensor, batch: Sequence[Example]) -> Tensor:
    features = [_mask_bands(log_mel(torch.from_numpy(audio), filters)) for audio, _ in batch]
    labels = [labels_of(transcript) for _, transcript in batch]
    frames = torch.tensor([(feature.shape[1] + 1) // 2 for feature in features])
    padded = nn.utils.rnn.pad_sequence([feature.T for feature in features], batch_first=True).transpose(1, 2)
    scores = network(padded).log_softmax(dim=1).permute(2, 0, 1)
    return nn.functional.ctc_loss(
        scores,
        torch.tensor([label for sequence in labels for label in sequence]),
        frames,
        torch.tensor([len(sequence) for sequence in labels]),
        blank=BLANK,
        zero_infinity=True,
    )


def _mask_bands(features: Tensor) -> Tensor:
    width, start = (int(torch.randint(limit, ())) for limit in (MASKED_BANDS + 1, MEL_BANDS))
    features[start : start + width] = 0
    return features
