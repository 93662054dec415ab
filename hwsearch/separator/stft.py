"""The short-time Fourier transform and its inverse, with a Hann window."""

import torch
from torch import Tensor
from torch.nn import functional


def frame_count(samples: int, hop_length: int) -> int:
    """Frames of `stft`: one on each multiple of the hop from 0 to the first that is not before the last sample."""
    return -(-samples // hop_length) + 1


def stft(waveform: Tensor, n_fft: int, hop_length: int) -> Tensor:
    """Short-time spectrum.

    The signal is padded by half a window on both sides, so that frame t is centred on sample t * hop_length, and at its end to
    a whole number of hops: else the last samples would lie under the fading half of one window alone, and masking would blow
    them up.

    Args:
        waveform: [..., samples], real.
        n_fft: window length in samples.
        hop_length: samples from one frame to the next.

    Returns:
        Complex [..., n_fft / 2 + 1, frame_count(samples, hop_length)].
    """
    flat = waveform.reshape(-1, waveform.shape[-1])
    flat = functional.pad(flat, (0, -waveform.shape[-1] % hop_length))
    window = torch.hann_window(n_fft, dtype=waveform.dtype, device=waveform.device)
    spectrum = torch.stft(flat, n_fft, hop_length, window=window, pad_mode="constant", return_complex=True)
    return spectrum.reshape(*waveform.shape[:-1], *spectrum.shape[-2:])


def istft(spectrum: Tensor, n_fft: int, hop_length: int, samples: int) -> Tensor:
    """Inverse of `stft`: complex [..., bins, frames] to real [..., samples]."""
    flat = spectrum.reshape(-1, *spectrum.shape[-2:])
    window = torch.hann_window(n_fft, dtype=flat.real.dtype, device=spectrum.device)
    waveform = torch.istft(flat, n_fft, hop_length, window=window, length=samples)
    return waveform.reshape(*spectrum.shape[:-2], samples)
