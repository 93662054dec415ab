"""Log-mel features at 8 kHz, independent of the level and the spectral colour of the recording."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SAMPLE_RATE = 8000
WINDOW = 200
HOP = 80
FFT = 256
MEL_BANDS = 40
LOWEST_HZ = 80.0
FLOOR = 1e-6
"""Power floor relative to the loudest frame (-60 dB). It makes digital silence look like a quiet room."""


def mel_filters() -> NDArray[np.float32]:
    """Triangular filters [MEL_BANDS, FFT // 2 + 1], evenly spaced on mel = 2595 log10(1 + f / 700).

    O'Shaughnessy, "Speech Communication", 1987.
    """

    def mel(hertz: float) -> float:
        return 2595 * math.log10(1 + hertz / 700)

    edges = 700 * (10 ** (np.linspace(mel(LOWEST_HZ), mel(SAMPLE_RATE / 2), MEL_BANDS + 2) / 2595) - 1)
    bins = np.arange(FFT // 2 + 1) * SAMPLE_RATE / FFT
    # Half a bin of extra width on either side: a narrower band could fall between two bins.
    margin = SAMPLE_RATE / FFT / 2
    rising = (bins - edges[:-2, None] + margin) / (edges[1:-1] - edges[:-2] + margin)[:, None]
    falling = (edges[2:, None] + margin - bins) / (edges[2:] - edges[1:-1] + margin)[:, None]
    return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)


def log_mel(audio: Tensor, filters: Tensor) -> Tensor:
    """Features [MEL_BANDS, frames] of `audio` [samples] at 8 kHz, zero-mean per band, about unit variance.

    One frame every 10 ms: frames = samples // 80 + 1. A floor relative to the loudest frame removes the influence of gain; a zero
    mean over time removes that of a fixed microphone response.
    """
    spectrum = torch.stft(
        audio,
        FFT,
        hop_length=HOP,
        win_length=WINDOW,
        window=torch.hann_window(WINDOW),
        center=True,
        pad_mode="constant",
        return_complex=True,
    )
    mel = filters @ (spectrum.real.square() + spectrum.imag.square())
    loudest = mel.mean(dim=0).max()
    logarithm = torch.log(mel / loudest.clamp(min=torch.finfo(mel.dtype).tiny) + FLOOR)
    centred = logarithm - logarithm.mean(dim=1, keepdim=True)
    return centred / centred.std().clamp(min=1e-3)
