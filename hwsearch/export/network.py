"""The network that an exported file computes."""

from contextlib import suppress
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hwsearch.network.shapes import tensor_shapes
from hwsearch.separator.front_end import FrontEnd
from hwsearch.separator.quantized import QuantizedNetwork

if TYPE_CHECKING:
    from hwsearch.data.example import Example

_EXAMPLE_FRAMES = (16, 64, 256, 1024, 4096)


class ExportedNetwork(nn.Module):
    """The front end's normalisation followed by the quantized network, [batch, channels, frames] to the same.

    Args:
        network: the quantized network.
        front_end: the front end of its base.
    """

    def __init__(self, network: QuantizedNetwork, front_end: FrontEnd) -> None:
        super().__init__()
        self.network = network
        self.front_end = front_end
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", front_end.feature_mean.detach().clone()[:, None])
        self.register_buffer("scale", front_end.feature_scale.detach().clone()[:, None])

    @property
    def features(self) -> int:
        """Number of features in a frame."""
        return len(self.mean)

    def example_frames(self, least: int = 0) -> int:
        """A number of frames to trace the network with: at least `least`, and enough for its strides and kernels."""
        graph = self.network.graph
        for frames in _EXAMPLE_FRAMES[:-1]:
            with suppress(ValueError):
                if frames >= least and tensor_shapes(graph, {graph.inputs[0]: (self.features, frames)}):
                    return frames
        return _EXAMPLE_FRAMES[-1]

    def raw(self, example: "Example") -> Tensor:
        """Return the input of an exported file for an example, [1, channels, frames]."""
        with torch.no_grad():
            return self.front_end.raw(torch.from_numpy(example.mixture)[None], torch.tensor([example.doa_deg]))

    def normalise(self, features: Tensor) -> Tensor:
        """The normalised features, by the operations of the front end."""
        return (features - self.mean) * self.scale

    def forward(self, features: Tensor) -> Tensor:
        mask: Tensor = self.network(self.normalise(features))
        return mask
