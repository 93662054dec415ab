"""An operation with fewer channels."""

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


def _per_channel(operation: ops.Operation, parts: Parts, _: KeptChannels, made: KeptChannels) -> tuple[ops.Operation, Parts]:
    """Narrow an operation that may have a number for each channel."""
    return operation, {name: tensor[made.kept] if len(tensor) == made.count else tensor for name, tensor in parts.items()}


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
    return operation, {"weight": parts["weight"][read.kept][:, made.kept], "bias": parts["bias"][made.kept]}


def _linear(operation: ops.Linear, parts: Parts, _: KeptChannels, __: KeptChannels) -> tuple[ops.Operation, Parts]:
    """Narrow a product over frames, which has no channels of its own; around one over channels, all channels stay."""
    return operation, parts


def _slice(operation: ops.Slice, parts: Parts, read: KeptChannels, _: KeptChannels) -> tuple[ops.Operation, Parts]:
    if operation.axis != _CHANNEL_AXIS or len(operation.inputs) > 1:
        return operation, parts
    start, stop, _step = slice(operation.start, operation.stop).indices(read.count)
    return replace(operation, start=read.before(start), stop=read.before(stop)), parts


def _dense(parts: Parts, read: KeptChannels, made: KeptChannels) -> Parts:
    return {"weight": parts["weight"][made.kept][:, read.kept], "bias": parts["bias"][made.kept]}


_NARROWED: Mapping[type[ops.Operation], Callable[..., tuple[ops.Operation, Parts]]] = {
    ops.Convolution: _convolution,
    ops.TransposedConvolution: _transposed,
    ops.Linear: _linear,
    ops.Slice: _slice,
}
