"""The training loss."""

from itertools import permutations

import torch
from torch import Tensor

RELATIVE_FLOOR = 1e-8
"""Part of the target's energy added to both sides of the ratio: SI-SNR is bounded near 80 dB, and so is its gradient."""

ABSOLUTE_FLOOR = 1e-10
"""Keeps the ratio and its gradient finite where the target is silent."""


def si_snr(estimate: Tensor, target: Tensor) -> Tensor:
    """Scale-invariant signal-to-noise ratio (Le Roux et al., arXiv 1811.02508, equation 4, on zero-mean signals).

    Args:
        estimate: [..., samples].
        target: [..., samples].

    Returns:
        dB, [...].
    """
    estimate = estimate - estimate.mean(dim=-1, keepdim=True)
    target = target - target.mean(dim=-1, keepdim=True)
    energy = target.square().sum(dim=-1, keepdim=True)
    projection = (estimate * target).sum(dim=-1, keepdim=True) / (energy + ABSOLUTE_FLOOR) * target
    signal = projection.square().sum(dim=-1)
    noise = (estimate - projection).square().sum(dim=-1)
    floor = RELATIVE_FLOOR * energy.squeeze(-1) + ABSOLUTE_FLOOR
    return 10 * torch.log10((signal + floor) / (noise + floor))


def ordered(references: Tensor, estimates: Tensor) -> Tensor:
    """The references in the order of the estimates that fit them best (permutation-invariant training, arXiv 1703.06284).

    Args:
        references: [batch, samples], or [batch, speakers, samples].
        estimates: of the same shape.

    Returns:
        The references; of several speakers in the order of the highest mean SI-SNR.
    """
    if references.ndim == 2:
        return references
    speakers = references.shape[1]
    orders = torch.tensor(list(permutations(range(speakers))), device=references.device)
    with torch.no_grad():
        pairs = si_snr(estimates[:, :, None], references[:, None])  # [batch, estimate, reference]
        means = torch.stack([pairs[:, range(speakers), order].mean(dim=1) for order in orders.tolist()], dim=1)
    best = orders[means.argmax(dim=1)]
    return references.gather(1, best[..., None].expand_as(references))
