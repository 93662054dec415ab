"""Quantization-aware training of one candidate, with distillation from the full-precision base.

The forward pass rounds the weights. Straight-through gradients train their floating-point master copies, and the scales beside
them (learned step size quantization, arXiv 1902.08153). The loss weighs negative SI-SNR to the target and to the base's estimate.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from torch import Tensor

from hwsearch.data.seeding import generator
from hwsearch.experiment import QatConfig
from hwsearch.files.reading import digest
from hwsearch.files.tensors import tensors_digest
from hwsearch.process.interrupts import checkpoint
from hwsearch.separator.allocation import BitAllocation
from hwsearch.separator.prepare import PreparedBase
from hwsearch.separator.tied_scales import follower_names
from hwsearch.separator.trained import TrainedState, initial_state
from hwsearch.training.distillation import Teacher, distilled_loss
from hwsearch.training.loss import StepReport
from hwsearch.training.pool import TrainingPool
from hwsearch.training.rates import rate_factors, rate_share
from hwsearch.training.trainable import TrainableNetwork
from hwsearch.training.trainee import Trainee
from hwsearch.training.trainee_checkpoint import Progress, TraineeCheckpoint

CHECKPOINT_STEPS = 50
"""Steps between two checkpoints."""

JUDGED = (0.8, 0.9, 1.0)
"""Shares of all steps after which a state is judged. Earlier states, with higher learning rates, are no better."""

_MOST_DIGESTED = 4
"""Number of examples whose sound is hashed. A pool may fill the memory, and the directions of all others are hashed."""


class TrainingDivergedError(ValueError):
    """The loss is not finite; the message is one line."""


@dataclass(frozen=True)
class TrainingOptions:
    """What a training may be given besides what its result follows from."""

    on_step: StepReport | None = None
    """Called after each step."""
    checkpoint: Path | None = None
    """File that an interrupted training goes on from. The caller deletes it once the result is written."""
    judge: Callable[[TrainedState], float] | None = None
    """Gives the score of a state on validation data. The state with the highest score is returned; of equal ones, the last."""


NO_OPTIONS = TrainingOptions()


@dataclass(frozen=True, eq=False)
class _Best:
    """The best parameters so far, with their score."""

    score: float
    parameters: Mapping[str, Tensor]


def train_quantized(
    base: PreparedBase,
    allocation: BitAllocation,
    pool: TrainingPool,
    config: QatConfig,
    steps: int,
    seed: int,
    *,
    start: TrainedState | None = None,
    options: TrainingOptions = NO_OPTIONS,
) -> TrainedState:
    """Train an allocation of the base on the base's device. On one processor thread, equal arguments give equal bits.

    The bits are the same if a call is interrupted, or its process is killed, and another call goes on from its checkpoint.

    Args:
        base: the network to quantize. Training starts from its `to_train`. The teacher is the whole network.
        allocation: bit-width of every site.
        pool: training mixtures for this base.
        config: sizes and rates; its numbers of steps are ignored.
        steps: number of steps, at least 1.
        seed: seed of the order of examples.
        start: state of another allocation to start from (`separator.trained.initial_state`).
        options: progress, checkpoints and the choice of the best state.

    Raises:
        TrainingDivergedError: the loss became NaN or infinite. The checkpoint is gone.
        UserError: the checkpoint is damaged, or belongs to another training.
        ValueError: `pool` or `start` belongs to another base, or `steps` is below 1.
    """
    if steps < 1:
        raise ValueError(f"{steps} training steps; wanted at least 1")
    if pool.base_sha256 != base.base_sha256:
        raise ValueError(f"training mixtures for base {pool.base_sha256[:12]}; wanted base {base.base_sha256[:12]}")
    state = initial_state(base.to_train, allocation, start)
    found = _Training(base.to_train, state, pool, config, steps, seed, options).run()
    return TrainedState(found, allocation, base.base_sha256, state.steps + steps)


class _Training:
    """A training from its first step, or from its checkpoint, to its last."""

    def __init__(
        self,
        base: PreparedBase,
        state: TrainedState,
        pool: TrainingPool,
        config: QatConfig,
        steps: int,
        seed: int,
        options: TrainingOptions,
    ) -> None:
        self._base = base
        self._start = state
        self._pool = pool
        self._config = config
        self._steps = steps
        self._options = options
        self._teacher = Teacher(base.whole or base)
        self._network = TrainableNetwork(base.graph, base.sites, state.allocation)
        same = follower_names(base.sites.ties, state.allocation.by_site)
        self._trainee = Trainee(state.parameters, base.device, rate_factors(base.graph, state.allocation), same)
        self._first = 0
        self._best: _Best | None = None
        self._kept: TraineeCheckpoint | None = None
        if options.checkpoint is not None:
            self._kept = TraineeCheckpoint(options.checkpoint, _digest(state, pool, config, steps, seed), "a candidate")
            before = self._kept.take(self._trainee)
            self._first = before.step
            if before.tensors:
                self._best = _Best(before.found["score"], before.tensors)
        self._examples = islice(batches(len(pool), config.batch_size, seed), self._first, steps)

    def run(self) -> Mapping[str, Tensor]:
        """Return the parameters at the end, or the best ones."""
        for step in range(self._first, self._steps):
            self._look(step)
            if self._first < step and step % CHECKPOINT_STEPS == 0:
                self._save(step)
            loss = self._step(step, next(self._examples))
            if self._options.on_step is not None:
                self._options.on_step(step + 1, self._steps, loss)
        self._look(self._steps)
        return self._network.left(self._trainee.values()) if self._best is None else self._best.parameters

    def _look(self, step: int) -> None:
        """End the training if a signal asks for it, else judge the state if it is time to. Both leave the parameters alone."""
        try:
            checkpoint()
            # A training that goes on may judge its first state again, which changes nothing.
            if self._options.judge is not None and step in {math.ceil(share * self._steps) for share in JUDGED}:
                self._judge(self._options.judge)
        except KeyboardInterrupt:
            self._save(step)
            raise

    def _judge(self, judge: Callable[[TrainedState], float]) -> None:
        """Keep the present parameters if they are at least as good as the best ones."""
        parameters = self._network.left(self._trainee.values())
        score = judge(replace(self._start, parameters=parameters))
        if math.isfinite(score) and (self._best is None or score >= self._best.score):
            self._best = _Best(score, parameters)

    def _save(self, step: int) -> None:
        if self._kept is None:
            return
        best = self._best
        progress = Progress(step) if best is None else Progress(step, {"score": best.score}, best.parameters)
        self._kept.save(self._trainee, progress)

    def _step(self, step: int, examples: Sequence[int]) -> float:
        """Take a step; return the loss before it.

        Raises:
            TrainingDivergedError: the loss is not finite.
        """
        config, parameters = self._config, self._trainee.parameters()
        loss = distilled_loss(self._teacher, self._network, parameters, self._pool, examples, config)
        value = float(loss.detach())
        if not math.isfinite(value):
            if self._kept is not None:
                self._kept.remove()
            raise TrainingDivergedError(
                f"the loss became {value} at training step {step + 1} of {self._steps}; wanted a lower qat.learning_rate than "
                f"{config.learning_rate} or qat.scale_learning_rate than {config.scale_learning_rate}"
            )
        share = rate_share(step, self._steps)
        self._trainee.step(loss, share * config.learning_rate, share * config.scale_learning_rate, config.gradient_clip)
        return value


def _digest(state: TrainedState, pool: TrainingPool, config: QatConfig, steps: int, seed: int) -> str:
    """Hash what a training depends on."""
    few = {"mixtures": pool.mixtures[:_MOST_DIGESTED], "estimate": pool.estimate[:_MOST_DIGESTED], "doa_deg": pool.doa_deg}
    used = ("batch_size", "learning_rate", "scale_learning_rate", "distillation", "block_distillation", "gradient_clip")
    return digest(
        {
            "base": state.base_sha256,
            "allocation": state.allocation.to_json(),
            "start": tensors_digest(state.parameters),
            "pool": tensors_digest(few),
            "config": {name: getattr(config, name) for name in used},
            "steps": steps,
            "seed": seed,
        }
    )


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
