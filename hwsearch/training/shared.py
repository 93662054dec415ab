"""Training of the shared network: all bit allocations and structures of a search space at once, one of them at each step.

The steps take turns: the narrowest allocation, a random one, the widest, a random one (the sandwich rule of arXiv 1903.05134, in
turn). The full-precision base is the teacher of all. Where parts of the network may be left out, the first two turns train random
structures, the third trains the whole network, and the last trains either.

A structure keeps the most important channels. Their order is that of the base at first, and is computed anew from the trained
weights after a part of the steps (`ORDER_SHARE`): then the weights have settled, and most steps are still to come.

Trained are the weights, the scales of each width, and the output of each layer for its mean input (`TrainableNetwork`). The bias
at a width follows. So the rounding errors of the weights, which differ from width to width, move no means, and what one width
learns serves all others. The scales of activations with more than 8 bits stay, since they lose nothing, unless they are tied to
scales of 8 bits.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hwsearch.data.seeding import generator
from hwsearch.errors import UserError
from hwsearch.experiment import QatConfig, SharedConfig
from hwsearch.network.graph import Graph
from hwsearch.network.importance import channel_orders
from hwsearch.network.options import Order, Structure
from hwsearch.network.sites import WEIGHT, find_sites
from hwsearch.process.interrupts import checkpoint
from hwsearch.separator.allocation import BitAllocation, is_weight
from hwsearch.separator.configuration import Configuration
from hwsearch.separator.prepare import PreparedBase
from hwsearch.separator.quantizers import stored_scale
from hwsearch.separator.shared import (
    MEAN,
    ORDER,
    OUTPUT,
    KeptValues,
    SharedState,
    Widths,
    initial_shared,
    mean_outputs,
    narrowed_tensors,
    order_tensors,
    tied_names,
)
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

ORDER_SHARE = 0.25
"""Share of the steps after which the order of channels is computed anew."""

_LEAST_BLOCKS = 0.4
"""Least mean share of the blocks that a random structure keeps. With fewer, a network is of no use."""

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
        structure: what may be kept of each option of the network; empty if it is always whole.
    """

    widths: Widths
    groups: Sequence[Sequence[str]]
    config: SharedConfig
    qat: QatConfig
    seed: int
    key: str
    structure: KeptValues = field(default_factory=dict)

    @property
    def order_step(self) -> int:
        """The step, counted from 0, before which the order of channels is computed anew."""
        return int(ORDER_SHARE * self.config.steps)

    @cached_property
    def variables(self) -> tuple[tuple[tuple[str, ...], tuple[int, ...]], ...]:
        """The sites that share a width, and their widths."""
        grouped = {site: tuple(group) for group in self.groups for site in group}
        together = dict.fromkeys(grouped.get(site, (site,)) for site in self.widths)
        return tuple((sites, self.widths[sites[0]]) for sites in together)

    def configuration(self, step: int) -> Configuration:
        """Return what is trained at a step, counted from 0. It has the widths of all sites, also of what is left out."""
        return Configuration(self.allocation(step), tuple(self._structure(step).items()))

    def allocation(self, step: int) -> BitAllocation:
        """Return the allocation of a training step, counted from 0."""
        match step % TURNS:
            case 0:
                return BitAllocation.of({site: widths[0] for site, widths in self.widths.items()})
            case 2:
                return BitAllocation.of({site: widths[-1] for site, widths in self.widths.items()})
            case _:
                return self._random(step)

    def _structure(self, step: int) -> dict[str, int]:
        """Draw what the structure of a step keeps of each option that is not whole.

        The mean share of the blocks and that of the channels are drawn first, each evenly from the least to the whole, so that
        all sizes are trained. Then each option is drawn so that the mean is met.
        """
        turn, random = step % TURNS, generator("structure", self.seed, step)
        if not self.structure or turn == 2 or (turn == 3 and random.uniform() < 0.5):
            return {}
        blocks, channels = random.uniform(_LEAST_BLOCKS, 1.0), random.uniform()
        found: dict[str, int] = {}
        for name, values in self.structure.items():
            share = channels if values[0] else blocks  # only a block may be left out as a whole
            kept = int(random.choice(values, p=_spread(values, values[0] + share * (values[-1] - values[0]))))
            found |= {name: kept} if kept != values[-1] else {}
        return found

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
        self._state = initial_shared(base, training.widths, training.structure)
        outputs, parameters = mean_outputs(base), self._state.parameters
        self._outputs = {name.removesuffix(".bias") + OUTPUT: name for name in outputs}
        """What is kept as the output of a layer is trained under the name of its bias."""
        same = tied_names(base, training.widths)
        self._still = {
            name: tensor.to(base.device) for name, tensor in parameters.items() if _WIDE.search(name) and name not in same
        }
        trained = {
            name: tensor
            for name, tensor in parameters.items()
            if name not in self._still and name not in self._outputs and not name.endswith((MEAN, ORDER))
        }
        self._trainee = Trainee(trained | outputs, base.device, rate_factors(base.graph), same)
        self._kept = TraineeCheckpoint(path, training.key, "a shared network")
        before = self._kept.take(self._trainee)
        self.first, self._reports = before.step, list(before.found.get("reports", []))
        self._orders: Mapping[str, Order] = {name: order.tolist() for name, order in before.tensors.items()} or self._state.orders
        steps = training.config.steps
        self._examples = islice(batches(len(pool), training.config.batch_size, training.seed), self.first, steps)

    def step(self, step: int) -> float:
        """Train the allocation of a step, counted from 0; return the loss before it.

        Raises:
            UserError: the loss is not finite.
        """
        config, qat = self._training.config, self._training.qat
        if self._training.structure and step == self._training.order_step:
            self._orders = self._order()
        configuration = self._training.configuration(step)
        allocation = configuration.allocation
        names = {name: self._outputs.get(shared, shared) for name, shared in self._state.names_at(allocation).items()}
        found = self._still | self._trainee.parameters(set(names.values()) - self._still.keys())
        graph, means, found = self._narrowed(configuration.kept, found)
        parameters = {name: found[shared] for name, shared in names.items() if shared in found}
        sites = self._base.sites if graph is self._base.graph else find_sites(graph)
        network = TrainableNetwork(graph, sites, allocation, means)
        loss = distilled_loss(self._teacher, network, parameters, self._pool, next(self._examples), qat)
        value = float(loss.detach())
        if not math.isfinite(value):
            self._diverged(value, step + 1)
        share = rate_share(step, config.steps)
        self._trainee.step(loss, share * config.learning_rate, share * config.scale_learning_rate, qat.gradient_clip)
        return value

    def _narrowed(self, structure: Structure, found: dict[str, Tensor]) -> tuple[Graph, Mapping[str, Tensor], dict[str, Tensor]]:
        """Return graph, mean inputs and parameters of what a structure keeps, from the parameters of the whole network."""
        base = self._base
        if not structure:
            return base.graph, base.means, found
        means = {layer + MEAN: mean for layer, mean in base.means.items()}
        graph, left = narrowed_tensors(base, found | means, structure, self._orders)
        layers = [site.removesuffix(WEIGHT) for site in base.sites.weights]
        return graph, {layer: left[layer + MEAN] for layer in layers if layer + MEAN in left}, left

    def _order(self) -> dict[str, Order]:
        """Return the order of the channels of the network as it is trained now."""
        base, values = self._base, self._trainee.values()
        graph = replace(base.graph, parameters={name: values[name] for name in base.graph.parameters})
        return channel_orders(graph, base.options, base.squares)

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
        orders = {name: torch.tensor(list(order), dtype=torch.int32) for name, order in self._orders.items()}
        self._kept.save(self._trainee, Progress(step, {"reports": self._reports}, orders))

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
        values = self._trainee.values()
        own = {name: values.get(self._outputs.get(name, name), tensor) for name, tensor in self._state.parameters.items()}
        own |= {name: stored_scale(tensor) for name, tensor in own.items() if _WEIGHT_SCALE.search(name)}
        return own | order_tensors(self._base, self._training.structure, self._orders)

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
