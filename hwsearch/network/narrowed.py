"""An operation with fewer channels, and what belongs to a layer beside its parameters."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from hwsearch.network import operations as ops
from hwsearch.network.channels import Channels

Parts = Mapping[str, Tensor]
"""The parameters of an operation, by the last part of their names."""

_CHANNEL_AXIS = 1


class KeptChannels:
    """The channels of a tensor that are kept.

    Attributes:
        classes: the class of each of all channels.
        kept: positions of those that are kept.

    Args:
        classes: the class of each channel.
        left: classes that are left out.
    """

    def __init__(self, classes: Channels, left: Sequence[int]) -> None:
        self.classes = classes
        self.kept = torch.from_numpy(np.flatnonzero(~np.isin(classes, left)))

    @property
    def count(self) -> int:
        """Number of all channels."""
        return len(self.classes)

    def of(self, tensor: Tensor, axis: int = 0) -> Tensor:
        """Return the kept channels of a tensor that has the channels along an axis; the tensor itself if all are kept."""
        return tensor if len(self.kept) == self.count else tensor.index_select(axis, self.kept.to(tensor.device))

    def before(self, position: int) -> int:
        """Count the kept channels before a position."""
        return int((self.kept < position).sum())


def narrowed(operation: ops.Operation, parts: Parts, read: KeptChannels, made: KeptChannels) -> tuple[ops.Operation, Parts]:
    """Leave channels out of an operation and its parameters.

    Args:
        operation: the whole operation.
        parts: its parameters.
        read: the channels of its first input.
        made: the channels of its result.
    """
    return _NARROWED.get(type(operation), _per_channel)(operation, parts, read, made)


def narrowed_scale(operation: ops.Operation, scale: Tensor, made: KeptChannels) -> Tensor:
    """Leave channels out of the scale of a layer's weights, to which it broadcasts.

    Args:
        operation: the whole layer.
        scale: one for each output channel, or one for all.
        made: the channels of its result.
    """
    axis = 1 if isinstance(operation, ops.TransposedConvolution) else 0
    if isinstance(operation, ops.Linear) or scale.shape[axis] != made.count:
        return scale
    return made.of(scale, axis)


def narrowed_mean(operation: ops.Operation, mean: Tensor, read: KeptChannels) -> Tensor:
    """Leave channels out of the mean [groups, values] of what the weights of a layer are multiplied with.

    Args:
        operation: the whole layer.
        mean: a mean for each weight of an output.
        read: the channels of its input.
    """
    if not isinstance(operation, ops.Convolution):
        return mean  # over frames
    if operation.groups == 1:
        return read.of(mean.reshape(read.count, -1)).reshape(1, -1)
    return read.of(mean) if len(mean) == read.count else mean


def _per_channel(operation: ops.Operation, parts: Parts, _: KeptChannels, made: KeptChannels) -> tuple[ops.Operation, Parts]:
    """Narrow an operation that may have a number for each channel."""
    return operation, {name: made.of(tensor) if len(tensor) == made.count else tensor for name, tensor in parts.items()}


def _convolution(operation: ops.Convolution, parts: Parts, read: KeptChannels, made: KeptChannels) -> tuple[ops.Operation, Parts]:
    if operation.groups == 1:
        return operation, _dense(parts, read, made)
    if operation.groups == read.count == made.count:
        return replace(operation, groups=len(made.kept)), _per_channel(operation, parts, read, made)[1]
    return operation, parts


def _transposed(
    operation: ops.TransposedConvolution, parts: Parts, read: KeptChannels, made: KeptChannels
) -> tuple[ops.Operation, Parts]:
    if operation.groups > 1:
        return operation, parts
    return operation, {"weight": made.of(read.of(parts["weight"]), 1), "bias": made.of(parts["bias"])}


def _linear(operation: ops.Linear, parts: Parts, _: KeptChannels, __: KeptChannels) -> tuple[ops.Operation, Parts]:
    """Narrow a product over frames, which has no channels of its own; around one over channels, all channels stay."""
    return operation, parts


def _slice(operation: ops.Slice, parts: Parts, read: KeptChannels, _: KeptChannels) -> tuple[ops.Operation, Parts]:
    if operation.axis != _CHANNEL_AXIS or len(operation.inputs) > 1:
        return operation, parts
    start, stop, _step = slice(operation.start, operation.stop).indices(read.count)
    return replace(operation, start=read.before(start), stop=read.before(stop)), parts


def _dense(parts: Parts, read: KeptChannels, made: KeptChannels) -> Parts:
    return {"weight": read.of(made.of(parts["weight"]), 1), "bias": made.of(parts["bias"])}


_NARROWED: Mapping[type[ops.Operation], Callable[..., tuple[ops.Operation, Parts]]] = {
    ops.Convolution: _convolution,
    ops.TransposedConvolution: _transposed,
    ops.Linear: _linear,
    ops.Slice: _slice,
}
