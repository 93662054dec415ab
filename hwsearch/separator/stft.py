"""The short-time Fourier transform and its inverse, with a Hann window."""

import torch
from torch import Tensor
from torch.nn import functional


def stft(waveform: Tensor, n_fft: int, hop_length: int) -> Tensor:
    """Compute the short-time spectrum.

    Frame t is centred on sample t * hop_length. The signal is padded to a whole number of hops: otherwise the last samples would
    only be in the fading half of one window, and `istft` would amplify them.

    From real [..., samples], the result is complex [..., n_fft / 2 + 1, frame_count(samples, hop_length)].
    """
    flat = waveform.reshape(-1, waveform.shape[-1])
    flat = functional.pad(flat, (0, -waveform.shape[-1] % hop_length))
    window = torch.hann_window(n_fft, dtype=waveform.dtype, device=waveform.device)
    spectrum = torch.stft(flat, n_fft, hop_length, window=window, pad_mode="constant", return_complex=True)
    return spectrum.reshape(*waveform.shape[:-1], *spectrum.shape[-2:])


def istft(spectrum: Tensor, n_fft: int, hop_length: int, samples: int) -> Tensor:
    """Invert `stft`: complex [..., bins, frames] to real [..., samples]."""
    flat = spectrum.reshape(-1, *spectrum.shape[-2:])
    window = torch.hann_window(n_fft, dtype=flat.real.dtype, device=spectrum.device)
    waveform = torch.istft(flat, n_fft, hop_length, window=window, length=samples)
    return waveform.reshape(*spectrum.shape[:-2], samples)
