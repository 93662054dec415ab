"""Choices made continuous: a logit for every option, a softmax or Gumbel-softmax over them, and a temperature that falls.

Softmax: DARTS (arXiv 1806.09055, equation 2). Gumbel-softmax: arXiv 1611.01144, equation 2.
"""

from typing import Literal

import torch
from torch import Tensor

from hwsearch.search.exact.problem import AllocationProblem

_SMALLEST_UNIFORM = 1e-20
"""Keeps the noise finite where the uniform draw is 0, or rounds to 1."""


def start_logits(problem: AllocationProblem, wide: float = 0.0) -> Tensor:
    """Logits before the first step.

    Args:
        problem: its choices and options.
        wide: how much more the widest option of a choice has than the narrowest; those between lie on a line. At 0 all options
            are equally likely.

    Returns:
        [choices, options], minus infinity where a choice has no such option.
    """
    exists = torch.from_numpy(problem.option_valid)
    last = (exists.sum(dim=1, keepdim=True) - 1).clamp_min(1)
    ramp = torch.arange(exists.shape[1], dtype=torch.float32) / last
    return (wide * (ramp - 1)).masked_fill(~exists, -torch.inf)


def temperature_at(step: int, steps: int, ends: tuple[float, float]) -> float:
    """Temperature of a step, 0 to steps - 1: geometric from the first to the last."""
    first, last = ends
    return float(first * (last / first) ** (step / max(steps - 1, 1)))


def relaxed_choice(
    logits: Tensor, temperature: float, kind: Literal["softmax", "gumbel"], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """How much of each option is in the network, and how likely it is to be chosen.

    With `softmax` both are softmax(logits / temperature). With `gumbel` the first is a sample that tends to one option as the
    temperature falls, and that option is drawn from the second, softmax(logits), at any temperature.

    Args:
        logits: [choices, options], minus infinity where there is no option.
        temperature: above 0.
        kind: of relaxation.
        generator: of the Gumbel noise.

    Returns:
        Two tensors [choices, options], rows that sum to 1.
    """
    if kind == "softmax":
        shares = torch.softmax(logits / temperature, dim=1)
        return shares, shares
    uniform = torch.rand(logits.shape, generator=generator, dtype=logits.dtype).clamp_min(_SMALLEST_UNIFORM)
    noise = -torch.log((-torch.log(uniform)).clamp_min(_SMALLEST_UNIFORM))
    return torch.softmax((logits + noise) / temperature, dim=1), torch.softmax(logits, dim=1)
