"""Weights that are rounded so that the output of their layer changes least.

GPTQ (arXiv 2210.17323) rounds the weights of an output channel one after the other. The weights that are still to be rounded make
up for the error, as far as the values that they are multiplied with go together. The bias takes the mean of the error. Both need
the mean and the covariance of these values in full precision, so they depend on the layer and the width alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from hwsearch.network.graph import Graph
from hwsearch.network.operations import Convolution, Linear, Operation
from hwsearch.network.run import compute, run
from hwsearch.process.interrupts import checkpoint
from hwsearch.separator.quantizers import stored_scale

_DAMPING = 0.01
"""Part of the mean variance that is added to every variance, as in the paper."""

_SMALLEST_VARIANCE = 1e-12
_FACTORS = [factor / 20 for factor in (20, *range(10, 20), *range(21, 31))]
"""Scales that are tried, against the scale of the least error of the weights; of equals, the first is taken."""

_BLOCK = 128
"""Columns after which the error is passed on to all others, as in the paper."""


@dataclass(frozen=True, eq=False)
class InputStatistics:
    """What a layer's weights are multiplied with. A convolution has in / groups * kernel values per output and group.

    Attributes:
        mean: [groups, values], float64.
        covariance: [groups, values, values], float64.
    """

    mean: Tensor
    covariance: Tensor

    @property
    def mean_square(self) -> Tensor:
        """The mean square of each value, [groups, values]."""
        return self.covariance.diagonal(dim1=1, dim2=2) + self.mean.square()


def input_statistics(graph: Graph, features: Sequence[Tensor]) -> Mapping[str, InputStatistics]:
    """Measure the inputs of all convolutions and linear layers.

    Args:
        graph: in full precision, of one input.
        features: inputs [batch, channels, frames], at least one.
    """
    count: dict[str, int] = {}
    total: dict[str, Tensor] = {}
    products: dict[str, Tensor] = {}

    def observe(operation: Operation, graph: Graph, inputs: tuple[Tensor, ...]) -> Tensor:
        if isinstance(operation, Convolution | Linear):
            name, values = operation.name, _values(operation, graph.parameter(operation, "weight"), inputs[0]).double()
            count[name] = count.get(name, 0) + values.shape[2]
            total[name] = total.get(name, 0) + values.sum(2)
            products[name] = products.get(name, 0) + values @ values.transpose(1, 2)
        return compute(operation, graph, inputs)

    with torch.no_grad():
        for each in features:
            checkpoint()
            run(graph, {graph.inputs[0]: each}, None, observe)
    means = {name: total[name] / count[name] for name in count}
    return {
        name: InputStatistics(mean, products[name] / count[name] - mean[:, :, None] * mean[:, None, :])
        for name, mean in means.items()
    }


def second_order_integers(weight: Tensor, scale: Tensor, limit: int, statistics: InputStatistics) -> Tensor:
    """Round weights to integers within +-limit.

    Args:
        weight: [out, ...].
        scale: [out, ...] or one for all, broadcasting over the weights.
        limit: largest integer.
        statistics: of the layer's inputs.

    Returns:
        Integers in the shape of the weights, int32.
    """
    groups, values = statistics.mean.shape
    rows = weight.double().reshape(groups, -1, values)
    steps = scale.double().flatten().expand(len(weight)).reshape(groups, -1)
    covariance, order = _damped(statistics.covariance)
    rows = rows.gather(2, order[:, None].expand_as(rows))
    passed_on = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(covariance)), upper=True)
    integers = torch.empty_like(rows)
    for start in range(0, values, _BLOCK):
        checkpoint()
        block = slice(start, min(start + _BLOCK, values))
        factors = passed_on[:, block, block]
        here, errors = rows[:, :, block], torch.empty_like(rows[:, :, block])
        for column in range(here.shape[2]):
            integer = (here[:, :, column] / steps).round_().clamp_(-limit, limit)
            integers[:, :, start + column] = integer
            errors[:, :, column] = (here[:, :, column] - integer * steps) / factors[:, column, column, None]
            here[:, :, column:] -= errors[:, :, column, None] * factors[:, None, column, column:]
        rows[:, :, block.stop :] -= errors @ passed_on[:, block, block.stop :]
    found = torch.empty_like(integers).scatter_(2, order[:, None].expand_as(integers), integers)
    return found.reshape(weight.shape).to(torch.int32)


def least_error_scale(weight: Tensor, scale: Tensor, limit: int, statistics: InputStatistics) -> Tensor:
    """Search the scale whose nearest rounding changes the output of a layer least.

    Args:
        weight: [out, ...].
        scale: [out, ...] where each channel has its own, or one for all, broadcasting over the weights; the search is around it.
        limit: largest integer.
        statistics: of the layer's inputs.

    Returns:
        Scales in the shape of `scale`, bfloat16 values.
    """
    groups, values = statistics.mean.shape
    rows, covariance = weight.reshape(groups, -1, values), statistics.covariance.float()
    found = stored_scale(torch.stack([scale * factor for factor in _FACTORS]))
    errors = []
    for steps in found:
        checkpoint()
        integers = (weight / steps).round_().clamp_(-limit, limit)
        error = rows - (integers * steps).reshape(rows.shape)
        errors.append(((error @ covariance) * error).sum(2).flatten())
    by_channel = torch.stack(errors)
    best = (by_channel if scale.numel() > 1 else by_channel.sum(1, keepdim=True)).argmin(dim=0)
    return found.flatten(1).gather(0, best[None]).reshape(scale.shape)


def mean_error(error: Tensor, statistics: InputStatistics) -> Tensor:
    """Return the mean [out] of what an error of the weights [out, ...] changes in a layer's output."""
    return mean_output(error.double(), statistics.mean)


def mean_output(weight: Tensor, mean: Tensor) -> Tensor:
    """Return what weights [out, ...] make of the mean [groups, values] of a layer's inputs: [out]."""
    groups, values = mean.shape
    return (weight.reshape(groups, -1, values) @ mean[:, :, None]).flatten()


def _values(operation: Convolution | Linear, weight: Tensor, x: Tensor) -> Tensor:
    """Return what the weights are multiplied with: [groups, values, outputs]."""
    if isinstance(operation, Linear):
        return x.reshape(1, -1, x.shape[-1]).transpose(1, 2)
    padded = functional.pad(x, operation.padding)
    reach = (weight.shape[2] - 1) * operation.dilation + 1
    taps = padded.unfold(2, reach, operation.stride)[..., :: operation.dilation]  # [batch, in, frames, kernel]
    batch, channels, frames, kernel = taps.shape
    by_group = taps.reshape(batch, operation.groups, channels // operation.groups, frames, kernel).permute(1, 2, 4, 0, 3)
    return by_group.reshape(operation.groups, channels // operation.groups * kernel, batch * frames)


def _damped(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Return damped covariances, the highest variance first, and that order [groups, values]."""
    variance = covariance.diagonal(dim1=1, dim2=2)
    damped = covariance + torch.diag_embed(_DAMPING * variance.mean(1, keepdim=True).expand_as(variance) + _SMALLEST_VARIANCE)
    order = variance.argsort(dim=1, descending=True, stable=True)
    rows = damped.gather(1, order[:, :, None].expand_as(damped))
    return rows.gather(2, order[:, None].expand_as(damped)), order
