"""Training of the shared network: all bit allocations of a search space at once, one of them at each step.

The steps take turns: the narrowest allocation, a random one, the widest, a random one (the sandwich rule of arXiv 1903.05134, in
turn). The full-precision base is the teacher of all.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hwsearch.data.seeding import generator
from hwsearch.errors import UserError
from hwsearch.experiment import QatConfig, SharedConfig
from hwsearch.files.tensors import read_tensors, refused, write_tensors
from hwsearch.process.interrupts import checkpoint
from hwsearch.separator.allocation import BitAllocation, is_weight
from hwsearch.separator.prepare import PreparedBase
from hwsearch.separator.shared import SharedState, Widths, initial_shared
from hwsearch.training.loss import StepReport
from hwsearch.training.pool import TrainingPool
from hwsearch.training.qat import batches, distilled_loss
from hwsearch.training.trainable import TrainableNetwork
from hwsearch.training.trainee import Trainee, rate_share

CHECKPOINT_STEPS = 100
"""Steps from one checkpoint to the next."""

TURNS = 4
"""Steps until the turns begin again."""

_MEAN_BITS = 4.5
"""Widest mean of the weights of a random allocation. Above, little is lost, and the widest allocation is trained anyway."""

_KEY = "hwsearch_shared_training"
_WHAT = "a checkpoint of the training of a shared network"
_MEND = "delete it to train from the start"

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

    On one processor thread, equal arguments give equal bits, whether or not training was interrupted.

    Args:
        base: the network to quantize, and the teacher.
        training: the allocations, and how they are trained.
        pool: training mixtures for this base.
        path: the checkpoint's file.
        quality: measures the network before the first step, after every `report_steps` steps and at the end.
        on_step: called after each step.
        on_report: called with the number of steps and each quality.

    Raises:
        UserError: a loss that is not finite, a damaged checkpoint, or one of another training.
        ValueError: `pool` belongs to another base.
    """
    if pool.base_sha256 != base.base_sha256:
        raise ValueError(f"training mixtures for base {pool.base_sha256[:12]}; wanted base {base.base_sha256[:12]}")
    config = training.config
    state = initial_shared(base, training.widths)
    trainee = Trainee(state.parameters, base.device)
    done, reports = _resume(path, training.key, trainee)

    def report(step: int) -> None:
        found = dict(quality(replace(state, parameters=trainee.values(), steps=step)))
        reports.append({"step": step, "quality_db": {name: round(value, 4) for name, value in found.items()}})
        on_report(step, found)

    if done == 0:
        report(0)
    order = islice(batches(len(pool), config.batch_size, training.seed), done, config.steps)
    for step, examples in enumerate(order, start=done):
        checkpoint()
        loss = _loss(base, training, state, trainee, pool, step, examples)
        value = float(loss.detach())
        _check_finite(value, step + 1, config, path)
        share = rate_share(step, config.steps)
        trainee.step(loss, share * config.learning_rate, share * config.scale_learning_rate, training.qat.gradient_clip)
        on_step(step + 1, config.steps, value)
        if (step + 1) % config.report_steps == 0 or step + 1 == config.steps:
            report(step + 1)
        if (step + 1) % CHECKPOINT_STEPS == 0:
            write_tensors(path, trainee.tensors(), _KEY, {"training": training.key, "steps": step + 1, "reports": reports})
    values = trainee.values()
    if not all(bool(tensor.isfinite().all()) for tensor in values.values()):
        _check_finite(math.nan, config.steps, config, path)
    made_by = {"training": training.key, "reports": reports}
    return replace(state, parameters=values, steps=config.steps, made_by=made_by)


def _loss(
    base: PreparedBase,
    training: SharedTraining,
    state: SharedState,
    trainee: Trainee,
    pool: TrainingPool,
    step: int,
    examples: Sequence[int],
) -> Tensor:
    """Compute the loss of a step's allocation."""
    allocation = training.allocation(step)
    names = state.names_at(allocation)
    found = trainee.parameters(names.values())
    parameters = {name: found[shared] for name, shared in names.items()}
    network = TrainableNetwork(base.graph, base.sites, allocation)
    return distilled_loss(base, network, parameters, pool, examples, training.qat.distillation)


def _resume(path: Path, key: str, trainee: Trainee) -> tuple[int, list[dict[str, Any]]]:
    """Go on from a checkpoint; return the number of steps behind it, and the reports so far.

    Raises:
        UserError: the file is damaged, or belongs to another training.
    """
    if not path.is_file():
        return 0, []
    content, tensors = read_tensors(path, _KEY, _WHAT, _MEND)
    if content.get("training") != key:
        raise UserError(
            f"{path}: checkpoint of another training of a shared network; wanted the experiment, base and data that it was made "
            f"with, another name, or another --runs-dir ({_MEND})"
        )
    steps, reports = content.get("steps"), content.get("reports")
    if type(steps) is not int or steps < 1 or not isinstance(reports, list):
        raise refused(path, _WHAT, f"trained for {steps!r} steps", _MEND)
    try:
        trainee.take(tensors)
    except ValueError as error:
        raise refused(path, _WHAT, error, _MEND) from None
    return steps, reports


def _check_finite(loss: float, step: int, config: SharedConfig, path: Path) -> None:
    """Refuse a diverging training, and remove its checkpoint, from which it would diverge again."""
    if not math.isfinite(loss):
        path.unlink(missing_ok=True)
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
