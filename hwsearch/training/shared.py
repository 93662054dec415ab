"""Training of the shared network: all bit allocations of a search space at once, one of them at each step.

The steps take turns: the narrowest allocation, a random one, the widest, a random one (the sandwich rule of arXiv 1903.05134, in
turn). The full-precision base is the teacher of all.

Trained are the weights, the scales of each width, and the output of each layer for its mean input (`TrainableNetwork`). The bias
at a width follows. So the rounding errors of the weights, which differ from width to width, move no means, and what one width
learns serves all others. The scales of activations with more than 8 bits stay, since they lose nothing, unless they are tied to
scales of 8 bits.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hwsearch.data.seeding import generator
from hwsearch.errors import UserError
from hwsearch.experiment import QatConfig, SharedConfig
from hwsearch.process.interrupts import checkpoint
from hwsearch.separator.allocation import BitAllocation, is_weight
from hwsearch.separator.prepare import PreparedBase
from hwsearch.separator.quantizers import stored_scale
from hwsearch.separator.shared import SharedState, Widths, biases, initial_shared, mean_outputs, tied_names
from hwsearch.training.distillation import Teacher, distilled_loss
from hwsearch.training.loss import StepReport
from hwsearch.training.pool import TrainingPool
from hwsearch.training.qat import batches
from hwsearch.training.rates import rate_factors, rate_share
from hwsearch.training.trainable import TrainableNetwork
from hwsearch.training.trainee import Trainee
from hwsearch.training.trainee_checkpoint import Progress, TraineeCheckpoint

CHECKPOINT_STEPS = 100
"""Steps from one checkpoint to the next."""

TURNS = 4
"""Steps until the turns begin again."""

_MEAN_BITS = 4.5
"""Widest mean of the weights of a random allocation. Above, little is lost, and the widest allocation is trained anyway."""

_WIDE = re.compile(r"(?<!\.weight)\.scale@(9|\d\d+)$")
"""Names of the scales of activations with more than 8 bits."""

_WEIGHT_SCALE = re.compile(r"\.weight\.scale@\d+$")
"""Names of the scales of weights."""

Quality = Mapping[str, float]
"""Validation quality in dB by allocation."""


@dataclass(frozen=True)
class SharedTraining:
    """What a shared network is trained for, and how.

    Attributes:
        widths: the search space: the widths of each site, in rising order.
        groups: sites that share a width.
        config: numbers of steps and rates.
        qat: the share of distillation and the largest gradient.
        seed: seed of the order of examples and of the random allocations.
        key: hash of all that the result depends on.
    """

    widths: Widths
    groups: Sequence[Sequence[str]]
    config: SharedConfig
    qat: QatConfig
    seed: int
    key: str

    @cached_property
    def variables(self) -> tuple[tuple[tuple[str, ...], tuple[int, ...]], ...]:
        """The sites that share a width, and their widths."""
        grouped = {site: tuple(group) for group in self.groups for site in group}
        together = dict.fromkeys(grouped.get(site, (site,)) for site in self.widths)
        return tuple((sites, self.widths[sites[0]]) for sites in together)

    def allocation(self, step: int) -> BitAllocation:
        """Return the allocation of a training step, counted from 0."""
        match step % TURNS:
            case 0:
                return BitAllocation.of({site: widths[0] for site, widths in self.widths.items()})
            case 2:
                return BitAllocation.of({site: widths[-1] for site, widths in self.widths.items()})
            case _:
                return self._random(step)

    def _random(self, step: int) -> BitAllocation:
        """Draw an allocation. The mean widths of weights and of activations are drawn first, then the width of each variable."""
        random = generator("shared", self.seed, step)
        shares = {True: random.uniform(), False: random.uniform()}
        found: dict[str, int] = {}
        for sites, widths in self.variables:
            weights = is_weight(sites[0])
            most = _MEAN_BITS if weights and widths[0] < _MEAN_BITS < widths[-1] else widths[-1]
            mean = widths[0] + shares[weights] * (most - widths[0])
            found |= dict.fromkeys(sites, int(random.choice(widths, p=_spread(widths, mean))))
        return BitAllocation.of({site: found[site] for site in self.widths})


def train_shared(
    base: PreparedBase,
    training: SharedTraining,
    pool: TrainingPool,
    path: Path,
    quality: Callable[[SharedState], Quality],
    on_step: StepReport = lambda step, steps, loss: None,
    on_report: Callable[[int, Quality], None] = lambda step, quality: None,
) -> SharedState:
    """Train a shared network from its last checkpoint, if there is one, on the base's device.

    On one processor thread, equal arguments give equal bits, whether or not training was interrupted or killed.

    Args:
        base: the network to quantize, and the teacher. Training starts from its `to_train`.
        training: the allocations, and how they are trained.
        pool: training mixtures for this base.
        path: the checkpoint's file. The caller deletes it once the result is written.
        quality: measures the network before the first step, after every `report_steps` steps and at the end.
        on_step: called after each step.
        on_report: called with the number of steps and each quality.

    Raises:
        UserError: a loss that is not finite, a damaged checkpoint, or one of another training.
        ValueError: `pool` belongs to another base.
    """
    if pool.base_sha256 != base.base_sha256:
        raise ValueError(f"training mixtures for base {pool.base_sha256[:12]}; wanted base {base.base_sha256[:12]}")
    begun = _Training(base.to_train, training, pool, path)

    def look(step: int) -> None:
        """End the training if a signal asks for it, else report if it is time to. Both leave the parameters alone."""
        try:
            checkpoint()
            if (step % training.config.report_steps == 0 or step == training.config.steps) and not begun.has_reported(step):
                on_report(step, begun.report(step, quality))
        except KeyboardInterrupt:
            begun.save(step)
            raise

    for step in range(begun.first, training.config.steps):
        look(step)
        if begun.first < step and step % CHECKPOINT_STEPS == 0:
            begun.save(step)
        on_step(step + 1, training.config.steps, begun.step(step))
    look(training.config.steps)
    return begun.result()


class _Training:
    """A training from its first step, or from its checkpoint, to its last."""

    def __init__(self, base: PreparedBase, training: SharedTraining, pool: TrainingPool, path: Path) -> None:
        self._base = base
        self._teacher = Teacher(base)
        self._training = training
        self._pool = pool
        self._state = initial_shared(base, training.widths)
        outputs, parameters = mean_outputs(base), self._state.parameters
        self._biases = frozenset(outputs)
        same = tied_names(base, training.widths)
        self._still = {
            name: tensor.to(base.device) for name, tensor in parameters.items() if _WIDE.search(name) and name not in same
        }
        trained = {
            name: tensor
            for name, tensor in parameters.items()
            if name not in self._still and name.partition("@")[0] not in outputs
        }
        self._trainee = Trainee(trained | outputs, base.device, rate_factors(base.graph), same)
        self._kept = TraineeCheckpoint(path, training.key, "a shared network")
        before = self._kept.take(self._trainee)
        self.first, self._reports = before.step, list(before.found.get("reports", []))
        steps = training.config.steps
        self._examples = islice(batches(len(pool), training.config.batch_size, training.seed), self.first, steps)

    def step(self, step: int) -> float:
        """Train the allocation of a step, counted from 0; return the loss before it.

        Raises:
            UserError: the loss is not finite.
        """
        config, qat = self._training.config, self._training.qat
        allocation = self._training.allocation(step)
        names = self._state.names_at(allocation)
        names |= {name: name for name in self._biases}
        found = self._still | self._trainee.parameters(set(names.values()) - self._still.keys())
        parameters = {name: found[shared] for name, shared in names.items()}
        network = TrainableNetwork(self._base.graph, self._base.sites, allocation, self._base.means)
        loss = distilled_loss(self._teacher, network, parameters, self._pool, next(self._examples), qat)
        value = float(loss.detach())
        if not math.isfinite(value):
            self._diverged(value, step + 1)
        share = rate_share(step, config.steps)
        self._trainee.step(loss, share * config.learning_rate, share * config.scale_learning_rate, qat.gradient_clip)
        return value

    def has_reported(self, step: int) -> bool:
        """Whether the quality after a number of steps is known."""
        return any(report["step"] == step for report in self._reports)

    def report(self, step: int, quality: Callable[[SharedState], Quality]) -> Quality:
        """Measure the quality after a number of steps."""
        found = quality(replace(self._state, parameters=self._values(), steps=step))
        self._reports.append({"step": step, "quality_db": {name: round(value, 4) for name, value in found.items()}})
        return found

    def save(self, step: int) -> None:
        """Write a checkpoint after a number of steps."""
        self._kept.save(self._trainee, Progress(step, {"reports": self._reports}))

    def result(self) -> SharedState:
        """Return the network at the end.

        Raises:
            UserError: its parameters are not finite.
        """
        values, steps = self._values(), self._training.config.steps
        if not all(bool(tensor.isfinite().all()) for tensor in values.values()):
            self._diverged(math.nan, steps)
        made_by = {"training": self._training.key, "reports": self._reports}
        return replace(self._state, parameters=values, steps=steps, made_by=made_by)

    def _values(self) -> dict[str, Tensor]:
        """Return the parameters of the shared network."""
        values, widths = self._trainee.values(), self._training.widths
        own = {name: values.get(name, tensor) for name, tensor in self._state.parameters.items()}
        own |= {name: stored_scale(tensor) for name, tensor in own.items() if _WEIGHT_SCALE.search(name)}
        outputs = {name: values[name] for name in self._biases}
        return own | biases(self._base, own, outputs, widths)

    def _diverged(self, loss: float, step: int) -> NoReturn:
        """Refuse the training, and remove its checkpoint, from which it would diverge again."""
        self._kept.remove()
        config = self._training.config
        raise UserError(
            f"the loss became {loss} at step {step} of {config.steps} of the shared network; wanted a lower "
            f"shared.learning_rate than {config.learning_rate} or shared.scale_learning_rate than {config.scale_learning_rate}"
        )


@lru_cache(maxsize=16)
def _spread(widths: tuple[int, ...], mean: float) -> NDArray[np.float64]:
    """Return the probability of each width in the distribution of largest entropy with a mean: exponential in the width."""
    bits = np.array(widths, float)

    def at(slope: float) -> NDArray[np.float64]:
        exponents = slope * (bits - bits[0])
        weights = np.exp(exponents - exponents.max())
        return np.asarray(weights / weights.sum())

    low, high = -50.0, 50.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if float(at(middle) @ bits) < mean else (low, middle)
    return at((low + high) / 2)
