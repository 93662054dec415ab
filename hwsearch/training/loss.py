"""What full-precision and quantization-aware training share: the loss and the learning rate."""

import math
from collections.abc import Callable
from itertools import permutations

import torch
from torch import Tensor

RELATIVE_FLOOR = 1e-8
"""Share of the target's energy added to both sides of the ratio. It bounds SI-SNR near 80 dB, and with it the gradient."""

ABSOLUTE_FLOOR = 1e-10
"""Energy that keeps the ratio and its gradient finite for a silent target."""

StepReport = Callable[[int, int, float], None]
"""Called after each training step with (steps done, all steps, loss in dB)."""


def half_cosine(share: float, first: float, last: float) -> float:
    """The learning rate after a share of all steps: half a cosine (arXiv 1608.03983, equation 5, one period)."""
    return last + 0.5 * (first - last) * (1 + math.cos(math.pi * share))


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
    """Reorder the references of each example to give the highest mean SI-SNR (permutation-invariant training, arXiv 1703.06284).

    Args:
        references: [batch, samples], which stay as they are, or [batch, speakers, samples].
        estimates: the same shape.
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
