"""One differentiable search: logits trained by Adam under one weight of the cost."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hwsearch.errors import UserError
from hwsearch.experiment import NasConfig
from hwsearch.process.interrupts import checkpoint
from hwsearch.search.exact.problem import AllocationProblem, Cost
from hwsearch.search.nas.expected_cost import expected_cost
from hwsearch.search.nas.network import RelaxedNetwork, SiteOptions
from hwsearch.search.nas.relaxation import relaxed_choice, start_logits, temperature_at
from hwsearch.search.nas.result import NasResult
from hwsearch.separator.allocation import BitAllocation
from hwsearch.separator.prepare import PreparedBase
from hwsearch.training.loss import si_snr
from hwsearch.training.pool import TrainingPool
from hwsearch.training.qat import batches

_WEIGHT_LEARNING_RATE = 1e-4
"""Learning rate of the shared weights: a third of the rate that quantization-aware training starts from."""


def nas_job(options: SiteOptions, cost: Cost, config: NasConfig, pool: TrainingPool, cost_weight: float, seed: int) -> NasResult:
    """Train the choices to lower -SI-SNR (dB) + cost_weight * expected cost, and take the likeliest option of each.

    On one thread, the result depends on the arguments alone. The network runs on the base's device; logits, noise and cost are
    few numbers and stay on the CPU. Weights that are trained with the choices are thrown away: the result is widths only.

    Args:
        options: the base at every option of the problem.
        cost: an additive cost for the problem's widths.
        config: steps, relaxation, temperatures and rates. Its cost and cost weights are not read.
        pool: training examples, made for the same base.
        cost_weight: dB that the widest allocation is charged.
        seed: of the order of the examples and of the Gumbel noise.

    Raises:
        UserError: the loss is not finite; names step and cost weight.
        ValueError: `pool` belongs to another base.
    """
    base, problem = options.base, options.problem
    if pool.base_sha256 != base.base_sha256:
        raise ValueError(f"training mixtures for base {pool.base_sha256[:12]}; wanted base {base.base_sha256[:12]}")
    generator = torch.Generator().manual_seed(seed)
    network = RelaxedNetwork(options, train_weights=config.train_weights)
    charge = expected_cost(problem, cost)
    logits = start_logits(problem).requires_grad_()
    optimizer = torch.optim.Adam([{"params": [logits], "lr": config.learning_rate}])
    if config.train_weights:
        masters = [tensor for pair in network.masters.values() for tensor in pair]
        optimizer.add_param_group({"params": masters, "lr": _WEIGHT_LEARNING_RATE})
    losses = []
    halfway = logits.detach().clone()
    for step, examples in zip(range(config.steps), batches(len(pool), config.batch_size, seed), strict=False):
        checkpoint()
        temperature = temperature_at(step, config.steps, config.temperature)
        shares, probabilities = relaxed_choice(logits, temperature, config.relaxation, generator)
        loss = _negative_si_snr(base, network, pool, examples, shares)
        value = float(loss.detach())
        if not math.isfinite(value):
            where = f"at step {step + 1} of {config.steps} with cost weight {cost_weight:g}"
            raise UserError(f"nas: the loss is {value} {where}; wanted a finite number (train the base or build the data again)")
        optimizer.zero_grad()
        (loss + cost_weight * charge(probabilities)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(value)
        if 2 * (step + 1) <= config.steps:
            halfway = logits.detach().clone()
    with torch.no_grad():
        _, probabilities = relaxed_choice(logits, config.temperature[1], config.relaxation, generator)
    counts = problem.option_valid.sum(axis=1).tolist()
    return NasResult(
        cost_weight=cost_weight,
        allocation=_likeliest(problem, logits.detach()),
        halfway=_likeliest(problem, halfway),
        probabilities=tuple(tuple(row[:count]) for row, count in zip(probabilities.tolist(), counts, strict=True)),
        loss_db=float(np.mean(losses[-math.ceil(config.steps / 10) :])),
        cost=float(charge(probabilities)),
    )


def _negative_si_snr(
    base: PreparedBase, network: RelaxedNetwork, pool: TrainingPool, examples: Sequence[int], shares: Tensor
) -> Tensor:
    """Return the mean over the examples in dB, []."""
    batch = pool.batch(examples, base.separator)
    output = network.mask(batch.analysis.normalised.transpose(0, 1), shares.to(base.device)).transpose(0, 1)
    estimate = base.separator.synthesise(batch.analysis, output, batch.target.shape[-1])
    return -si_snr(estimate, batch.target).mean().cpu()


def _likeliest(problem: AllocationProblem, logits: Tensor) -> BitAllocation:
    """Take the option of each choice with the largest logit; of equals, the narrowest."""
    options = logits.argmax(dim=1).numpy().astype(np.int8)
    return problem.allocation(problem.expand(options[None])[0])
