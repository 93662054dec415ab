"""Continuous choices: a logit for every option, a softmax or Gumbel-softmax over them, and a falling temperature.

Softmax: DARTS (arXiv 1806.09055, equation 2). Gumbel-softmax: arXiv 1611.01144, equation 2.
"""

from typing import Literal

import torch
from torch import Tensor

from hwsearch.search.exact.problem import AllocationProblem

WIDE_START = 2.0
"""Difference of the widest and the narrowest option's logit at the start.

From equal logits, even the smallest cost weights ended near 5 bits, where the even mixture stands. From a difference of 3, the
largest cost weights were still on their way down after 60 steps. From 2, both ends are reached, as measured on the real-speech
base.
"""

_SMALLEST_UNIFORM = 1e-20
"""Keeps the noise finite if the uniform draw is 0 or rounds to 1."""


def start_logits(problem: AllocationProblem) -> Tensor:
    """Return the logits before the first step, [choices, options]; minus infinity where a choice has no such option.

    They rise along a line from the narrowest option to the widest.
    """
    exists = torch.from_numpy(problem.option_valid)
    last = (exists.sum(dim=1, keepdim=True) - 1).clamp_min(1)
    ramp = torch.arange(exists.shape[1], dtype=torch.float32) / last
    return (WIDE_START * (ramp - 1)).masked_fill(~exists, -torch.inf)


def temperature_at(step: int, steps: int, ends: tuple[float, float]) -> float:
    """Return the temperature of a step from 0 to steps - 1. It falls by the same factor at every step."""
    first, last = ends
    return float(first * (last / first) ** (step / max(steps - 1, 1)))


def relaxed_choice(
    logits: Tensor, temperature: float, kind: Literal["softmax", "gumbel"], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return the share of each option in the network, and its probability; both [choices, options], with rows that sum to 1.

    With `softmax`, both are softmax(logits / temperature). With `gumbel`, the probabilities are softmax(logits), and the shares
    are a random sample that tends to a single option, drawn with these probabilities, as the temperature falls.

    Args:
        logits: [choices, options], minus infinity where there is no option.
        temperature: above 0.
        kind: of relaxation.
        generator: of the Gumbel noise.
    """
    if kind == "softmax":
        shares = torch.softmax(logits / temperature, dim=1)
        return shares, shares
    uniform = torch.rand(logits.shape, generator=generator, dtype=logits.dtype).clamp_min(_SMALLEST_UNIFORM)
    noise = -torch.log((-torch.log(uniform)).clamp_min(_SMALLEST_UNIFORM))
    return torch.softmax((logits + noise) / temperature, dim=1), torch.softmax(logits, dim=1)
