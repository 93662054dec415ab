"""The exported base in plain PyTorch: its network, and its loss on a few mixtures.

It runs in the environments of the peers, which have PyTorch and safetensors, but not hwsearch.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

ENERGY_SHARE, LEAST_ENERGY = 1e-8, 1e-10
"""What hwsearch's training loss adds to both sides of its ratio: a share of the target's energy, and a constant."""


@dataclass(frozen=True, eq=False)
class Mixture:
    """A mixture as network and loss need it.

    Attributes:
        features: input of the network [1, channels, frames].
        spectrum: complex spectrum of the first microphone [1, bins, frames].
        start: the mask that the network's mask is added to [1, bins, frames].
        target: waveform of the target [1, samples].
    """

    features: Tensor
    spectrum: Tensor
    start: Tensor
    target: Tensor


@dataclass(frozen=True, eq=False)
class Case:
    """What `exported_case.py` wrote."""

    content: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def layers(self) -> dict[str, str]:
        """The layers' names in the graph, by their names as submodules of `Network`."""
        names = [each["name"] for each in self.content["operations"] if each["kind"] == "Convolution"]
        return {f"layer_{index}": name for index, name in enumerate(names)}

    @property
    def sites(self) -> dict[str, str]:
        """Weight sites by submodule of `Network`."""
        return {module: f"{name}.weight" for module, name in self.layers.items()}

    @property
    def bytes(self) -> dict[str, dict[int, float]]:
        """Bytes of the packed file that a weight site takes at each width that it may have."""
        return {site: {int(bits): size for bits, size in sizes.items()} for site, sizes in self.content["bytes"].items()}

    @property
    def budgets(self) -> dict[float, float]:
        """Bytes of the packed file that all weights may take, by the name of the budget."""
        return {float(name): size for name, size in self.content["budgets"].items()}

    def effective_bits(self, size: float, sites: Iterable[str]) -> float:
        """Bits per weight if the weights of these sites take `size` bytes."""
        return 8 * size / sum(self.tensors[site].numel() for site in sites)

    def mixtures(self) -> list[Mixture]:
        """The mixtures that sensitivities are measured on."""
        return [
            Mixture(
                self.tensors[f"{index}/features"],
                torch.view_as_complex(self.tensors[f"{index}/spectrum"]),
                self.tensors[f"{index}/start"],
                self.tensors[f"{index}/target"],
            )
            for index in range(self.content["mixtures"])
        ]

    def estimate(self, mask: Tensor, mixture: Mixture) -> Tensor:
        """Complex spectrum of the separated speaker [1, bins, frames] from a mask [1, 2 * bins, frames], real parts first."""
        real, imaginary = mask.chunk(2, dim=1)
        return mixture.spectrum * torch.complex(real + mixture.start, imaginary)

    def loss(self, mask: Tensor, mixture: Mixture) -> Tensor:
        """Negative SI-SNR in dB, as hwsearch trains."""
        estimate, target = self._waveform(self.estimate(mask, mixture), mixture.target.shape[-1]), mixture.target
        estimate, target = (signal - signal.mean(dim=-1, keepdim=True) for signal in (estimate, target))
        energy = target.square().sum(dim=-1, keepdim=True)
        projection = (estimate * target).sum(dim=-1, keepdim=True) / (energy + LEAST_ENERGY) * target
        signal, noise = projection.square().sum(dim=-1), (estimate - projection).square().sum(dim=-1)
        floor = ENERGY_SHARE * energy[..., 0] + LEAST_ENERGY
        return -10 * torch.log10((signal + floor) / (noise + floor)).mean()

    def _waveform(self, spectrum: Tensor, samples: int) -> Tensor:
        n_fft = self.content["n_fft"]
        return torch.istft(spectrum, n_fft, self.content["hop_length"], window=torch.hann_window(n_fft), length=samples)


class Network(nn.Module):
    """The network of a case.

    Planar: the same network of 2-D convolutions with kernels (1, k) on [batch, channels, 1, frames].
    """

    def __init__(self, case: Case, *, planar: bool = False) -> None:
        super().__init__()
        self.input = case.content["input"]
        self.operations = case.content["operations"]
        self.modules_of = {layer: module for module, layer in case.layers.items()}
        for operation in self.operations:
            if operation["kind"] == "Convolution":
                self.add_module(self.modules_of[operation["name"]], _convolution(operation, case.tensors, planar=planar))

    def forward(self, x: Tensor) -> Tensor:
        tensors = {self.input: x}
        for operation in self.operations:
            name, read = operation["name"], [tensors[each] for each in operation["inputs"]]
            match operation["kind"]:
                case "Convolution":
                    tensors[name] = self.get_submodule(self.modules_of[name])(read[0])
                case "Elementwise" if operation.get("function", "relu") == "relu":
                    tensors[name] = torch.relu(read[0])
                case "Add":
                    tensors[name] = read[0] + read[1]
                case "Read":
                    tensors[name] = read[0]
                case kind:
                    raise ValueError(f"operation '{name}' is a {kind}; wanted a convolution, a ReLU, a sum or a read")
        return tensors[self.operations[-1]["name"]]


def _convolution(operation: Mapping[str, Any], tensors: Mapping[str, Tensor], *, planar: bool) -> nn.Module:
    name = operation["name"]
    weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
    before, after = operation.get("padding", (0, 0))
    if before != after:
        raise ValueError(f"layer '{name}' is padded by {before} and {after} frames; wanted as many before as after")
    outputs, inputs, kernel = weight.shape
    groups = operation.get("groups", 1)
    stride, dilation = operation.get("stride", 1), operation.get("dilation", 1)
    if planar:
        weight = weight[:, :, None]
        layer: nn.Module = nn.Conv2d(inputs * groups, outputs, (1, kernel), (1, stride), (0, before), (1, dilation), groups)
    else:
        layer = nn.Conv1d(inputs * groups, outputs, kernel, stride, before, dilation, groups)
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer


def load_case(folder: Path) -> Case:
    """Read what `exported_case.py` wrote into a folder."""
    return Case(json.loads((folder / "case.json").read_text("utf-8")), load_file(folder / "case.safetensors"))
