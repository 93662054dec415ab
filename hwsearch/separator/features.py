"""Spectral and spatial features of a multi-channel mixture.

The front end of the reference system (arXiv 2011.07755, section 2) has the log-power spectrum (LPS) of the reference microphone,
the inter-channel phase differences (IPD) of some microphone pairs, and the angle feature (AF): the mean over pairs of the cosine
between the observed phase difference and that of a plane wave from the target.

The beam features say how much of the reference microphone a superdirective beam towards the target keeps. Below 1 kHz, where
most of the energy of speech is, it distinguishes directions that phase differences over a small array hardly distinguish.
"""

import torch
from torch import Tensor

from hwsearch.data.arrays import SPEED_OF_SOUND, MicrophoneArray
from hwsearch.separator.form import (
    LPS_FLOOR,
    SMALLEST_LEVEL,
    SMALLEST_MAGNITUDE,
    SMALLEST_POWER,
    WIENER_RANGE,
    Ipd,
    inverse_coherence,
)

_LEVEL_FRAMES = 512
"""Frames whose running level is computed at a time."""


def steering_phase(array: MicrophoneArray, doa_deg: Tensor, bins: int, sample_rate: int) -> Tensor:
    """Compute the phase of plane waves at each microphone relative to the centre of the array, [batch, mics, bins] in radians.

    The waves come from directions [batch] and have frequencies from 0 to half the sampling rate, in Hz.
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
    """Compute the features of mixtures for the speakers at `doa_deg`; they do not depend on the gain of the recording.

    Args:
        spectrum: complex [batch, mics, bins, frames].
        doa_deg: [batch] direction of the target.
        array: the geometry.
        sample_rate: Hz.
        ipd: form of the phase differences.
        beam: whether to add the two beam features.
        level: root mean square of the spectrum of microphone 0, [batch, 1, 1] or of each frame, [batch, 1, frames]. None: over
            all frames.

    Returns:
        [batch, features, frames]: LPS, AF, beam features, cosines of the phase differences of all pairs, then their sines.
    """
    bins = spectrum.shape[-2]
    magnitude = spectrum[:, 0].abs()
    if level is None:
        level = magnitude.square().mean(dim=(-2, -1), keepdim=True).sqrt()
    lps = torch.log(magnitude / level.clamp_min(SMALLEST_LEVEL) + LPS_FLOOR)
    # Unit phasors, steered so that the target's plane wave has the same phase everywhere.
    phasor = spectrum / (spectrum.abs() + SMALLEST_MAGNITUDE)
    phase = steering_phase(array, doa_deg, bins, sample_rate)
    steered = phasor * _phasor(-phase)[..., None]
    parts = [lps, angle_feature(steered)]
    if beam:
        parts += beam_features(spectrum, superdirective_weights(array, phase, sample_rate), phase)
    if ipd == "none":
        return torch.cat(parts, dim=1)
    first, second = torch.tensor(array.pairs, device=spectrum.device).T
    source = steered if ipd == "steered" else phasor
    difference = source[:, first] * source[:, second].conj()
    if ipd == "angle":
        parts.append(difference.angle().flatten(1, 2))
    else:
        parts += [difference.real.flatten(1, 2), difference.imag.flatten(1, 2)]
    return torch.cat(parts, dim=1)


def running_level(spectrum: Tensor, decay: float) -> Tensor:
    """Compute the level that `features` takes from the frames until each frame.

    It is the root of the mean power, weighted by decay^k for the k-th frame before:
    L_t^2 = sum_k decay^k P_(t-k) / sum_k decay^k, with k from 0 to t.

    Args:
        spectrum: complex spectrum of microphone 0, [batch, bins, frames].
        decay: 0 to 1, both excluded.

    Returns:
        [batch, 1, frames].
    """
    power = _power(spectrum).mean(dim=1).double()
    total = power.new_zeros(len(power), 1)
    weight = power.new_zeros(1)
    levels = []
    for part in torch.split(power, _LEVEL_FRAMES, dim=1):
        ages = torch.arange(part.shape[1] + 1, dtype=torch.float64, device=part.device)
        past = decay ** ages[1:]
        recent = torch.tril(decay ** (ages[:-1, None] - ages[:-1]).clamp_min(0.0))
        totals = part @ recent.T + total * past
        weights = recent.sum(dim=1) + weight * past
        total, weight = totals[:, -1:], weights[-1:]
        levels.append((totals / weights).sqrt())
    return torch.cat(levels, dim=1)[:, None].float()


def angle_feature(steered: Tensor) -> Tensor:
    """Compute the mean over all microphone pairs of the cosine between steered phases.

    The sum over pairs of cos(a_m - a_n) is (|sum of phasors|^2 - mics) / 2. From unit phasors [batch, mics, bins, frames],
    steered to the target, the result is [batch, bins, frames], and 1 where every pair agrees with the direction of the target.
    """
    microphones = steered.shape[1]
    pairs = microphones * (microphones - 1) / 2
    total = steered.sum(dim=1)
    return ((total.real.square() + total.imag.square() - microphones) / 2) / pairs


def starting_mask(raw: Tensor, bins: int, *, beam: bool) -> Tensor:
    """Return the mask that the network's mask is added to, from the result of `features`.

    It is the share of the beam in each bin, [batch, bins, frames], or a scalar zero without a beam.
    """
    return raw[:, 2 * bins : 3 * bins] if beam else raw.new_zeros(())


def apply_mask(spectrum: Tensor, mask: Tensor, start: Tensor) -> Tensor:
    """Compute the complex spectrum [batch, bins, frames] of the target.

    Args:
        spectrum: complex spectrum of the reference microphone [batch, bins, frames].
        mask: the network's output [batch, 2 * bins, frames], real parts first.
        start: the result of `starting_mask`.
    """
    real, imaginary = mask.chunk(2, dim=1)
    return spectrum * torch.complex(real + start, imaginary)


def superdirective_weights(array: MicrophoneArray, phase: Tensor, sample_rate: int) -> Tensor:
    """Design the beam that passes the plane wave of the target and minimises diffuse noise.

    w = G^-1 d / (d^H G^-1 d), where G is the coherence of a diffuse field, sinc(2 f r / c) between microphones r apart, with
    diagonal loading (Bitzer and Simmer, "Superdirective microphone arrays", in Microphone Arrays, 2001, equations 2.22 and 2.26).

    Args:
        array: the geometry.
        phase: steering phase [batch, mics, bins].
        sample_rate: Hz.

    Returns:
        Complex weights [batch, bins, mics]; the beam is the sum over microphones of conj(w) * spectrum.
    """
    inverse = torch.from_numpy(inverse_coherence(array, phase.shape[-1], sample_rate)).to(phase.device, torch.complex128)
    steering = _phasor(phase.double()).transpose(1, 2)
    filtered = torch.einsum("fmn,bfn->bfm", inverse, steering)
    gain = torch.einsum("bfm,bfm->bf", steering.conj(), filtered)
    return (filtered / gain[..., None]).to(torch.complex64)


def beam_features(spectrum: Tensor, weights: Tensor, phase: Tensor) -> list[Tensor]:
    """Compute the features of a beam towards the target, with its phase at the reference microphone.

    Args:
        spectrum: complex [batch, mics, bins, frames].
        weights: complex [batch, bins, mics].
        phase: steering phase [batch, mics, bins].

    Returns:
        Two features [batch, bins, frames]: the power of the beam divided by the sum of its power and that of the difference
        between beam and reference, 0 to 1; and the real part of beam over reference, limited to `WIENER_RANGE`.
    """
    beam = torch.einsum("bfm,bmft->bft", weights.conj(), spectrum) * _phasor(phase[:, 0])[..., None]
    reference = spectrum[:, 0]
    power, rest = _power(beam), _power(reference - beam)
    share = power / (power + rest + SMALLEST_POWER)
    wiener = (beam * reference.conj()).real / (_power(reference) + SMALLEST_POWER)
    return [share, wiener.clamp(*WIENER_RANGE)]


def _phasor(phase: Tensor) -> Tensor:
    return torch.polar(torch.ones_like(phase), phase)


def _power(spectrum: Tensor) -> Tensor:
    return spectrum.real.square() + spectrum.imag.square()
