"""Spectral and spatial features of a multi-channel mixture.

The reference system's front end (arXiv 2011.07755, section 2): log-power spectrum (LPS) of the reference microphone,
inter-channel phase differences (IPD) of chosen microphone pairs, and the angle feature (AF), the mean over pairs of the cosine
between the observed phase difference and the one a plane wave from the target's direction would have.

Beside it, the beam features: what a superdirective beam towards the target keeps of the reference microphone. Below 1 kHz, where
most of speech is, phase differences over a small array hardly tell two directions apart; a superdirective beam still does.
"""

from typing import Literal

import torch
from torch import Tensor

from hwsearch.data.arrays import SPEED_OF_SOUND, MicrophoneArray

Ipd = Literal["none", "angle", "cos_sin", "steered"]

LPS_FLOOR = 1e-3
"""Added to magnitudes before the logarithm: 60 dB below the recording's level, where speech has nothing left to say."""


LEVEL_FLOOR = 1e-8
"""Least level of a recording: keeps digital silence from being divided by zero."""

DIAGONAL_LOADING = 1e-2
"""White noise, relative to diffuse noise, that the beam is designed for: bounds its gain for sensor noise and for microphones
that do not match."""

WIENER_RANGE = (-1.0, 2.0)
"""Limits of the beam's gain at the reference microphone, which is unbounded where microphones cancel."""


def feature_count(array: MicrophoneArray, bins: int, ipd: Ipd, *, beam: bool) -> int:
    """Number of features per frame."""
    per_pair = {"none": 0, "angle": 1, "cos_sin": 2, "steered": 2}[ipd]
    return bins * (2 + (2 if beam else 0) + len(array.pairs) * per_pair)


def steering_phase(array: MicrophoneArray, doa_deg: Tensor, bins: int, sample_rate: int) -> Tensor:
    """Phase of a plane wave at each microphone, against the array's centre.

    Args:
        array: the geometry.
        doa_deg: [batch] degrees.
        bins: number of frequency bins from 0 to half the sampling rate.
        sample_rate: Hz.

    Returns:
        Radians, [batch, mics, bins].
    """
    positions = torch.as_tensor(array.positions, dtype=doa_deg.dtype, device=doa_deg.device)
    angle = torch.deg2rad(doa_deg)
    direction = torch.stack([angle.cos(), angle.sin()], dim=-1)
    advance = direction @ positions.T / SPEED_OF_SOUND
    frequency = torch.linspace(0.0, sample_rate / 2, bins, dtype=doa_deg.dtype, device=doa_deg.device)
    return 2 * torch.pi * advance[:, :, None] * frequency


def features(
    spectrum: Tensor,
    doa_deg: Tensor,
    array: MicrophoneArray,
    sample_rate: int,
    ipd: Ipd,
    *,
    beam: bool,
    level: Tensor | None = None,
) -> Tensor:
    """Features of a mixture for the speaker at `doa_deg`.

    The spectrum is divided by the recording's level before the logarithm, so that recordings of any gain look alike.

    Args:
        spectrum: complex [batch, mics, bins, frames].
        doa_deg: [batch] direction of the target.
        array: the geometry; mics must match.
        sample_rate: Hz.
        ipd: form of the phase differences.
        beam: whether the two beam features are wanted.
        level: root mean square of microphone 1's spectrum over the whole recording [batch, 1, 1], where `spectrum` is a part
            of it; absent: that of `spectrum`.

    Returns:
        [batch, features, frames]: LPS, AF, the beam features, then the phase differences: all pairs' cosines, then sines.
    """
    bins = spectrum.shape[-2]
    magnitude = spectrum[:, 0].abs()
    if level is None:
        level = magnitude.square().mean(dim=(-2, -1), keepdim=True).sqrt()
    lps = torch.log(magnitude / level.clamp_min(LEVEL_FLOOR) + LPS_FLOOR)
    # Unit phasors, steered so that the target's plane wave has the same phase everywhere.
    phasor = spectrum / (spectrum.abs() + 1e-12)
    phase = steering_phase(array, doa_deg, bins, sample_rate)
    steered = phasor * _phasor(-phase)[..., None]
    parts = [lps, angle_feature(steered)]
    if beam:
        parts += beam_features(spectrum, superdirective_weights(array, phase, sample_rate), phase)
    if ipd == "none":
        return torch.cat(parts, dim=1)
    first = torch.tensor([pair[0] for pair in array.pairs], device=spectrum.device)
    second = torch.tensor([pair[1] for pair in array.pairs], device=spectrum.device)
    source = steered if ipd == "steered" else phasor
    difference = source[:, first] * source[:, second].conj()
    if ipd == "angle":
        parts.append(difference.angle().flatten(1, 2))
    else:
        parts += [difference.real.flatten(1, 2), difference.imag.flatten(1, 2)]
    return torch.cat(parts, dim=1)


def angle_feature(steered: Tensor) -> Tensor:
    """Mean over all microphone pairs of the cosine between steered phases.

    sum over pairs of cos(a_m - a_n) = (|sum of phasors|^2 - mics) / 2, so no pair is formed.

    Args:
        steered: complex unit phasors [batch, mics, bins, frames], steered to the target.

    Returns:
        [batch, bins, frames], 1 where every pair agrees with the target's direction.
    """
    microphones = steered.shape[1]
    pairs = microphones * (microphones - 1) / 2
    total = steered.sum(dim=1)
    return ((total.real.square() + total.imag.square() - microphones) / 2) / pairs


def starting_mask(raw: Tensor, bins: int, *, beam: bool) -> Tensor:
    """What the network's mask is added to: the beam's share of each bin, or zero without a beam.

    Args:
        raw: what `features` gave, [batch, features, frames].
        bins: number of frequency bins.
        beam: whether the beam features are among them.

    Returns:
        [batch, bins, frames], or a scalar zero.
    """
    return raw[:, 2 * bins : 3 * bins] if beam else raw.new_zeros(())


def apply_mask(spectrum: Tensor, mask: Tensor, start: Tensor) -> Tensor:
    """The target's spectrum.

    Args:
        spectrum: complex spectrum of the reference microphone [batch, bins, frames].
        mask: the network's output [batch, 2 * bins, frames], real parts first.
        start: what `starting_mask` gave.

    Returns:
        Complex [batch, bins, frames].
    """
    real, imaginary = mask.chunk(2, dim=1)
    return spectrum * torch.complex(real + start, imaginary)


def superdirective_weights(array: MicrophoneArray, phase: Tensor, sample_rate: int) -> Tensor:
    """The beam that passes the target's plane wave and minimises diffuse noise.

    w = G^-1 d / (d^H G^-1 d), where G is the coherence of a diffuse field, sinc(2 f r / c) between microphones r apart, with
    diagonal loading (Bitzer and Simmer, "Superdirective microphone arrays", in Microphone Arrays, 2001, equations 2.22 and 2.26).

    Args:
        array: the geometry.
        phase: steering phase [batch, mics, bins].
        sample_rate: Hz.

    Returns:
        Complex weights [batch, bins, mics]; the beam is the sum over microphones of conj(w) * spectrum.
    """
    bins = phase.shape[-1]
    positions = torch.as_tensor(array.positions, dtype=torch.float64, device=phase.device)
    frequency = torch.linspace(0.0, sample_rate / 2, bins, dtype=torch.float64, device=phase.device)
    distance = torch.cdist(positions, positions)
    coherence = torch.sinc(2 * frequency[:, None, None] * distance / SPEED_OF_SOUND)
    loading = DIAGONAL_LOADING * torch.eye(array.microphones, dtype=torch.float64, device=phase.device)
    inverse = torch.linalg.inv((coherence + loading) / (1 + DIAGONAL_LOADING)).to(torch.complex128)
    steering = _phasor(phase.double()).transpose(1, 2)
    filtered = torch.einsum("fmn,bfn->bfm", inverse, steering)
    gain = torch.einsum("bfm,bfm->bf", steering.conj(), filtered)
    return (filtered / gain[..., None]).to(torch.complex64)


def beam_features(spectrum: Tensor, weights: Tensor, phase: Tensor) -> list[Tensor]:
    """What a beam towards the target, brought back to the reference microphone, says of each bin.

    Args:
        spectrum: complex [batch, mics, bins, frames].
        weights: complex [batch, bins, mics].
        phase: steering phase [batch, mics, bins].

    Returns:
        Two of [batch, bins, frames]: the share of the beam's power in the sum of its own and that of what it leaves of the
        reference, 0 to 1; and the real part of the beam over the reference, limited to `WIENER_RANGE`.
    """
    beam = torch.einsum("bfm,bmft->bft", weights.conj(), spectrum) * _phasor(phase[:, 0])[..., None]
    reference = spectrum[:, 0]
    power, rest = _power(beam), _power(reference - beam)
    share = power / (power + rest + 1e-20)
    wiener = (beam * reference.conj()).real / (_power(reference) + 1e-20)
    return [share, wiener.clamp(*WIENER_RANGE)]


def _phasor(phase: Tensor) -> Tensor:
    return torch.polar(torch.ones_like(phase), phase)


def _power(spectrum: Tensor) -> Tensor:
    return spectrum.real.square() + spectrum.imag.square()
