"""Quantization-aware training of one candidate, with distillation from the full-precision base.

The forward pass rounds the weights. Straight-through gradients train their floating-point master copies, and the scales beside
them (learned step size quantization, arXiv 1902.08153). The loss weighs negative SI-SNR to the target and to the base's estimate.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from hwsearch.data.seeding import generator
from hwsearch.experiment import QatConfig
from hwsearch.process.interrupts import checkpoint
from hwsearch.separator.allocation import BitAllocation
from hwsearch.separator.prepare import PreparedBase
from hwsearch.separator.trained import TrainedState, initial_state
from hwsearch.training.loss import StepReport, half_cosine, si_snr
from hwsearch.training.pool import TrainingPool
from hwsearch.training.trainable import TrainableNetwork

FINAL_RATE = 0.05
"""Learning rate at the end, as a share of the first one."""


class TrainingDivergedError(ValueError):
    """The loss is not finite; the message is one line."""


def train_quantized(
    base: PreparedBase,
    allocation: BitAllocation,
    pool: TrainingPool,
    config: QatConfig,
    steps: int,
    seed: int,
    *,
    start: TrainedState | None = None,
    on_step: StepReport | None = None,
) -> TrainedState:
    """Train an allocation of the base on the base's device. On one processor thread, equal arguments give equal bits.

    Args:
        base: the network to quantize, and the teacher.
        allocation: bit-width of every site.
        pool: training mixtures for this base.
        config: sizes and rates; its numbers of steps are ignored.
        steps: number of steps, at least 1.
        seed: seed of the order of examples.
        start: state of another allocation to start from (`separator.trained.initial_state`).
        on_step: called after each step.

    Raises:
        TrainingDivergedError: the loss became NaN or infinite.
        ValueError: `pool` or `start` belongs to another base, or `steps` is below 1.
    """
    if steps < 1:
        raise ValueError(f"{steps} training steps; wanted at least 1")
    if pool.base_sha256 != base.base_sha256:
        raise ValueError(f"training mixtures for base {pool.base_sha256[:12]}; wanted base {base.base_sha256[:12]}")
    state = initial_state(base, allocation, start)
    # Zero points stay on the processor: each step reads them one by one.
    fixed = {name: tensor for name, tensor in state.parameters.items() if not tensor.is_floating_point()}
    moved = {name: tensor.to(base.device, copy=True) for name, tensor in state.parameters.items() if name not in fixed}
    # The logarithm of a scale is trained: the scale stays positive, and a step changes it by a share of its size.
    logarithms = {name: tensor.log().requires_grad_() for name, tensor in moved.items() if name.endswith(".scale")}
    others = {name: tensor.requires_grad_() for name, tensor in moved.items() if name not in logarithms}
    trained = [*others.values(), *logarithms.values()]
    optimizer = torch.optim.Adam([{"params": list(others.values())}, {"params": list(logarithms.values())}], fused=True)
    rates = config.learning_rate, config.scale_learning_rate
    network = TrainableNetwork(base.graph, base.sites, allocation)
    for step, examples in zip(range(steps), batches(len(pool), config.batch_size, seed), strict=False):
        checkpoint()
        parameters = {**fixed, **others, **{name: logarithm.exp() for name, logarithm in logarithms.items()}}
        loss = distilled_loss(base, network, parameters, pool, examples, config.distillation)
        value = float(loss.detach())
        _check_finite(value, step + 1, steps, config)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, config.gradient_clip)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * half_cosine(step / steps, 1.0, FINAL_RATE)
        optimizer.step()
        if on_step is not None:
            on_step(step + 1, steps, value)
    scales = {name: logarithm.detach().exp().cpu() for name, logarithm in logarithms.items()}
    weights = {name: tensor.detach().cpu() for name, tensor in others.items()}
    return TrainedState({**fixed, **weights, **scales}, allocation, base.base_sha256, state.steps + steps)


def _check_finite(loss: float, step: int, steps: int, config: QatConfig) -> None:
    if not math.isfinite(loss):
        raise TrainingDivergedError(
            f"the loss became {loss} at training step {step} of {steps}; wanted a lower qat.learning_rate than "
            f"{config.learning_rate} or qat.scale_learning_rate than {config.scale_learning_rate}"
        )


def distilled_loss(
    base: PreparedBase,
    network: TrainableNetwork,
    parameters: Mapping[str, Tensor],
    pool: TrainingPool,
    examples: Sequence[int],
    distillation: float,
) -> Tensor:
    """Mean loss over examples of the pool in dB, a scalar: negative SI-SNR to the target and to the base's estimate.

    Args:
        base: the teacher, whose front end synthesises the estimate.
        network: the network of the base at an allocation.
        parameters: parameters as in `TrainedState`.
        pool: training mixtures.
        examples: numbers of examples in the pool.
        distillation: weight of the base's estimate, 0 to 1; the target has the rest.
    """
    batch = pool.batch(examples, base.separator.front_end)
    output = network(parameters, batch.analysis.normalised.transpose(0, 1)).transpose(0, 1)
    estimate = base.separator.synthesise(batch.analysis, output, batch.target.shape[-1])
    to_target = -si_snr(estimate, batch.target).mean()
    to_base = -si_snr(estimate, batch.estimate).mean()
    return (1 - distillation) * to_target + distillation * to_base


def batches(examples: int, batch_size: int, seed: int) -> Iterator[tuple[int, ...]]:
    """Endless batches of example numbers. Each pass visits all examples in a new order."""
    waiting: list[int] = []
    sweep = 0
    while True:
        while len(waiting) < batch_size:
            waiting += generator("qat", seed, sweep).permutation(examples).tolist()
            sweep += 1
        yield tuple(waiting[:batch_size])
        del waiting[:batch_size]
