"""What an exported file computes."""

from contextlib import suppress

from torch import Tensor, nn

from hwsearch.network.shapes import tensor_shapes
from hwsearch.separator.front_end import FrontEnd
from hwsearch.separator.quantized import QuantizedNetwork

_EXAMPLE_FRAMES = (16, 64, 256, 1024, 4096)

INPUT, OUTPUT = "features", "mask"
"""An exported graph's input (a front end's raw input [1, channels, frames]) and output [1, channels, frames]."""


class ExportedNetwork(nn.Module):
    """The front end's normalisation, then the quantized network.

    Args:
        network: the quantized network.
        front_end: of its base.

    Shape:
        the front end's raw input [batch, channels, frames] -> the network's output [batch, channels, frames]
    """

    def __init__(self, network: QuantizedNetwork, front_end: FrontEnd) -> None:
        super().__init__()
        self.network = network
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", front_end.feature_mean.detach().clone()[:, None])
        self.register_buffer("scale", front_end.feature_scale.detach().clone()[:, None])

    @property
    def features(self) -> int:
        """Number of features per frame."""
        return len(self.mean)

    def example_frames(self, least: int = 0) -> int:
        """Frames that exporters trace the network with: few, and as many as its strides and kernels want."""
        graph = self.network.graph
        for frames in _EXAMPLE_FRAMES[:-1]:
            with suppress(ValueError):
                if frames >= least and tensor_shapes(graph, {graph.inputs[0]: (self.features, frames)}):
                    return frames
        return _EXAMPLE_FRAMES[-1]

    def normalise(self, features: Tensor) -> Tensor:
        """In the operations of the front end."""
        return (features - self.mean) * self.scale

    def forward(self, features: Tensor) -> Tensor:
        mask: Tensor = self.network(self.normalise(features))
        return mask
