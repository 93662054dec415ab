"""What an exported file computes."""

from typing import Protocol

from torch import Tensor, nn

from hwsearch.separator.quantized import QuantizedNetwork

INPUT, OUTPUT = "features", "mask"
"""An exported graph's input (raw features [1, features, frames]) and output (mask [1, 2 * bins, frames])."""


class Statistics(Protocol):
    """What knows the statistics of the features: a network's base."""

    feature_mean: Tensor
    feature_scale: Tensor


class ExportedNetwork(nn.Module):
    """Raw features to mask: the base's normalisation of features, then the quantized network.

    Args:
        network: the quantized network.
        base: the network it was made from, for the statistics of its features.

    Shape:
        features [batch, features, frames] -> mask [batch, 2 * bins, frames]
    """

    def __init__(self, network: QuantizedNetwork, base: Statistics) -> None:
        super().__init__()
        self.network = network
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", base.feature_mean.detach().clone()[:, None])
        self.register_buffer("scale", base.feature_scale.detach().clone()[:, None])

    @property
    def features(self) -> int:
        """Number of features per frame."""
        return len(self.mean)

    def normalise(self, features: Tensor) -> Tensor:
        """Zero mean and unit variance per feature, in the operations of the base."""
        return (features - self.mean) * self.scale

    def forward(self, features: Tensor) -> Tensor:
        mask: Tensor = self.network(self.normalise(features))
        return mask
