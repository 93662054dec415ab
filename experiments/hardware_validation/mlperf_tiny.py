"""Cortex-M targets against published measurements: MLPerf Tiny v1.0, the MCUNet networks, and a MobileNet layer by layer.

There is no tool to run. `measured` gives what the sources named in the cases report:

- MLPerf Tiny v1.0, github.com/mlcommons/tiny_results_v1.0 at c7761cf: median throughput (performance mode) and median energy of
  ST's X-CUBE-AI 7.3.0 and of OctoML's microTVM with CMSIS-NN. Later rounds are left out: from v1.1 on several runtimes take about
  half the time for visual wake words and little less for the others.
- MCUNet networks on STM32H743, github.com/mit-han-lab/tinyengine at 47bb283, README: CMSIS-NN 011bf32 and X-CUBE-AI 7.3.0. The
  clock of 480 MHz is its authors' (issue 23 there).
- 0.25-MobileNet-160 on STM32H743 at 400 MHz, layer by layer in cycles, github.com/EEESlab/mobilenet_v1_stm32_cmsis_nn at 401f0bb,
  profiling_160_0_25.png: 8-bit kernels of the authors of CMix-NN, which grew out of them.

What a target was fitted on has the metrics `fitted_...`; the others are held out. The networks are 2-D: a kernel's area counts
as taps along one axis. Pooling and softmax are neglected.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from hw_models.compile import compile_target
from hw_models.cost import evaluate
from hw_models.target import load_target
from hw_models.workload import Layer, LayerKind, Workload

SETTING: Final = "Boards, as published: int8, batch 1, the runtime and clock of each result."
REQUIREMENTS: tuple[str, ...] = ()  # published figures: no tool to run


@dataclass(frozen=True)
class System:
    """A submission to MLPerf Tiny: inferences per second, and microjoules per inference, of each network."""

    target: str
    results: str
    published: dict[str, tuple[float, float]]
    fitted: tuple[str, ...]


_SYSTEMS: Final = (
    System(
        "cortex-m4-x-cube-ai",
        "STMicroelectronics/results/NUCLEO_L4R5ZI",
        {"kws": (13.323, 3371.738), "ic": (4.407, 10681.623), "ad": (131.950, 322.977), "vww": (4.339, 10066.628)},
        ("kws", "ic", "ad"),
    ),
    System(
        "cortex-m7-x-cube-ai",
        "STMicroelectronics/results/NUCLEO-H7A3ZI-Q",
        {"kws": (59.667, 2721.781), "ic": (18.401, 8707.284), "ad": (547.705, 266.486), "vww": (19.722, 7978.465)},
        ("ad",),
    ),
    System(
        "cortex-m33-x-cube-ai",
        "STMicroelectronics/results/NUCLEO-U575ZI-Q",
        {"kws": (22.608, 1138.534), "ic": (7.158, 3641.998), "ad": (206.211, 119.113), "vww": (7.496, 3364.456)},
        ("kws", "ic", "ad"),
    ),
    System(
        "cortex-m4-cmsis-nn",
        "OctoML/results/microtvm_cmsis_nn/NUCLEO_L4R5ZI",
        {"kws": (10.019, 5230.273), "ic": (2.567, 20236.298), "ad": (116.212, 443.184), "vww": (3.320, 15531.354)},
        ("kws", "ad"),
    ),
)
_POWER_FITTED: Final = ("kws", "ic", "ad")
"""The networks whose mean power is a target's."""

# Side of the input, channels of the stem, blocks "expanded:kernel:out:stride", + where a block has a skip connection,
# channels after the last block, classes: the authors' configurations, of which github.com/Eaglewzw/GD_Net holds copies.
_MCUNET: Final = {
    "mcunet-vww0": (
        64,
        16,
        (
            "16:3:8:1 48:5:16:2 64:3:16:1+ 80:3:24:2 96:3:24:1+ 96:3:24:1+ 120:3:40:2 160:3:40:1+ 120:7:40:1+ 120:3:48:1 "
            "192:3:48:1+ 240:7:96:2 480:5:96:1+ 384:7:160:1"
        ),
        None,
        2,
    ),
    "mcunet-vww1": (
        80,
        16,
        (
            "16:3:8:1 48:3:16:2 48:3:16:1+ 48:3:16:1+ 48:7:24:2 144:3:24:1+ 120:5:24:1+ 144:7:40:2 240:7:40:1+ 240:3:48:1 "
            "192:3:48:1+ 240:5:96:2 480:3:96:1+ 384:3:96:1+ 288:7:160:1"
        ),
        None,
        2,
    ),
    "mcunet-vww2": (
        144,
        16,
        (
            "16:3:8:1 24:3:16:2 80:3:16:1+ 96:5:16:1+ 48:3:16:1+ 80:7:24:2 96:5:24:1+ 96:3:24:1+ 144:7:24:1+ 144:3:40:2 "
            "240:7:40:1+ 160:5:40:1+ 200:3:40:1+ 200:5:48:1 144:5:48:1+ 192:3:48:1+ 144:5:48:1+ 192:3:96:2 480:5:96:1+ "
            "384:5:96:1+ 384:3:96:1+ 480:3:160:1"
        ),
        None,
        2,
    ),
    "mcunet-in2": (
        160,
        16,
        (
            "16:3:8:1 24:5:16:2 96:7:16:1+ 80:3:16:1+ 80:5:16:1+ 80:3:24:2 144:7:24:1+ 144:5:24:1+ 96:7:40:2 200:5:40:1+ "
            "200:3:48:1 240:5:48:1+ 192:3:48:1+ 288:5:96:2 384:5:96:1+ 288:5:96:1+ 384:3:96:1+ 480:5:160:1"
        ),
        None,
        1000,
    ),
    "mcunet-in3": (
        176,
        16,
        (
            "16:3:8:1 24:7:16:2 80:3:16:1+ 80:7:16:1+ 64:5:16:1+ 80:5:24:2 120:5:24:1+ 120:5:24:1+ 120:3:40:2 240:7:40:1+ "
            "160:5:40:1+ 200:5:48:1 240:7:48:1+ 240:3:48:1+ 288:3:96:2 480:7:96:1+ 384:3:96:1+ 480:7:160:1"
        ),
        None,
        1000,
    ),
    "mcunet-in4": (
        160,
        32,
        (
            "32:3:16:1 48:7:24:2 120:3:24:1+ 96:5:24:1+ 120:7:40:2 160:3:40:1+ 160:7:40:1+ 120:7:80:2 240:3:80:1+ 240:7:80:1+ "
            "320:3:96:1 288:5:96:1+ 288:5:96:1+ 384:7:192:2 576:7:192:1+ 576:5:192:1+ 768:5:320:1"
        ),
        None,
        1000,
    ),
    "proxyless-w0.3-r176": (
        176,
        16,
        (
            "16:3:8:1 24:5:16:2 48:3:16:1+ 48:7:16:2 48:3:16:1+ 48:5:16:1+ 48:5:16:1+ 96:7:24:2 72:5:24:1+ 72:5:24:1+ "
            "72:5:24:1+ 144:5:32:1 96:5:32:1+ 96:5:32:1+ 96:5:32:1+ 192:7:64:2 384:7:64:1+ 192:7:64:1+ 192:7:64:1+ "
            "384:7:96:1"
        ),
        384,
        1000,
    ),
}

# Milliseconds on STM32H743 at 480 MHz by CMSIS-NN and by X-CUBE-AI; the largest network does not fit with CMSIS-NN.
_MCUNET_MS: Final = {
    "mcunet-vww0": (53.0, 32.0),
    "mcunet-vww1": (97.0, 57.0),
    "mcunet-vww2": (478.0, 269.0),
    "mcunet-in2": (642.0, 351.0),
    "mcunet-in3": (770.0, 414.0),
    "mcunet-in4": (None, 516.0),
    "proxyless-w0.3-r176": (380.0, 205.0),
}
_MCUNET_FITTED: Final = {
    "cortex-m7-cmsis-nn": ("mcunet-vww0", "mcunet-vww1", "mcunet-vww2"),
    "cortex-m7-x-cube-ai": tuple(name for name in _MCUNET if name.startswith("mcunet")),
}
_MCUNET_HZ: Final = 480e6

# Kind, channels in and out, taps, output positions, cycles.
_MOBILENET: Final = (
    ("conv", 3, 8, 9, 6400, 5_336_698),
    ("depthwise", 8, 8, 9, 6400, 6_852_997),
    ("conv", 8, 16, 1, 6400, 3_234_362),
    ("depthwise", 16, 16, 9, 1600, 2_811_340),
    ("conv", 16, 32, 1, 1600, 2_139_701),
    ("depthwise", 32, 32, 9, 1600, 4_961_183),
    ("conv", 32, 32, 1, 1600, 3_516_545),
    ("depthwise", 32, 32, 9, 400, 1_250_344),
    ("conv", 32, 64, 1, 400, 1_703_826),
    ("depthwise", 64, 64, 9, 400, 2_330_715),
    ("conv", 64, 64, 1, 400, 3_061_483),
    ("depthwise", 64, 64, 9, 100, 587_519),
    ("conv", 64, 128, 1, 100, 1_516_726),
    ("depthwise", 128, 128, 9, 100, 1_132_775),
    ("conv", 128, 128, 1, 100, 2_911_048),
    ("depthwise", 128, 128, 9, 25, 286_593),
    ("conv", 128, 256, 1, 25, 1_582_427),
    ("depthwise", 256, 256, 9, 25, 565_662),
    ("conv", 256, 256, 1, 25, 3_116_120),
)
_MOBILENET_FITTED: Final = (11, 14, 15, 10)
"""Positions, from 1, of the layers that the cycles per instruction were fitted on."""
_MOBILENET_HZ: Final = 400e6


def cases() -> list[dict[str, Any]]:
    """Whole networks of MLPerf Tiny and MCUNet, and single layers of a MobileNet."""
    return [_case(*published) for published, _ in _published()]


def predictions(cases: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Time and energy of each case: the sum over its layers, all of them in int8."""
    return [_prediction(case) for case in cases]


def measured() -> list[dict[str, float]]:
    """Published time, and energy where there is one, in the order of `cases`."""
    return [figures for _, figures in _published()]


Published = tuple[tuple[str, str, str, float | None, Workload], dict[str, float]]
"""Name, target, source, clock where it is not the target's, and network of a case; its published figures."""


def _published() -> list[Published]:
    found: list[Published] = []
    networks = {"kws": ds_cnn(), "ic": resnet8(), "ad": autoencoder(), "vww": mobilenet_025()}
    for system in _SYSTEMS:
        source = f"github.com/mlcommons/tiny_results_v1.0 c7761cf, closed/{system.results}"
        for network, (rate, microjoules) in system.published.items():
            energy = "fitted_energy_uj" if network in _POWER_FITTED else "energy_uj"
            figures = {_latency(fitted=network in system.fitted): 1e3 / rate, energy: microjoules}
            found.append(((f"MLPerf Tiny {network}", system.target, source, None, networks[network]), figures))
    for column, target in enumerate(_MCUNET_FITTED):
        source = "github.com/mit-han-lab/tinyengine 47bb283, README"
        for network, milliseconds in _MCUNET_MS.items():
            if (ms := milliseconds[column]) is not None:
                figures = {_latency(fitted=network in _MCUNET_FITTED[target]): ms}
                found.append(((network, target, source, _MCUNET_HZ, _mcunet(network)), figures))
    source = "github.com/EEESlab/mobilenet_v1_stm32_cmsis_nn 401f0bb, profiling_160_0_25.png"
    for position, (kind, inputs, outputs, taps, pixels, cycles) in enumerate(_MOBILENET, start=1):
        name = f"MobileNet {kind} {inputs} to {outputs}, {pixels} pixels"
        figures = {_latency(fitted=position in _MOBILENET_FITTED): cycles / _MOBILENET_HZ * 1e3}
        found.append(((name, "cortex-m7-cmix-nn", source, _MOBILENET_HZ, _single(kind, inputs, outputs, taps, pixels)), figures))
    return found


def _latency(*, fitted: bool) -> str:
    return "fitted_latency_ms" if fitted else "latency_ms"


def _case(name: str, target: str, source: str, clock_hz: float | None, workload: Workload) -> dict[str, Any]:
    return {"name": name, "target": target, "source": source, "clock_hz": clock_hz, "workload": workload}


def _prediction(case: dict[str, Any]) -> dict[str, float]:
    target = load_target(case["target"])
    network: Workload = case["workload"]
    cost = evaluate(compile_target(target, network), np.full((1, len(network.sites)), 8))
    milliseconds = float(cost.latency_ms[0]) * target.clock.clock_hz / (case["clock_hz"] or target.clock.clock_hz)
    microjoules = float(cost.energy_uj[0])
    return {
        "latency_ms": milliseconds,
        "fitted_latency_ms": milliseconds,
        "energy_uj": microjoules,
        "fitted_energy_uj": microjoules,
    }


class _Network:
    """A network of feature maps, layer by layer."""

    def __init__(self, name: str, channels: int, positions: int) -> None:
        self._name = name
        self._layers: list[Layer] = []
        self._sites = {"input": (channels, positions)}
        self.newest = "input"

    def conv(self, outputs: int, taps: int, positions: int, source: str | None = None) -> str:
        """A convolution of a tensor, the newest where none is named, and the name of its result.

        Fewer positions than the tensor has are a stride, or the pooling that is neglected.
        """
        return self._add(LayerKind.CONV, (source or self.newest,), outputs, taps, positions)

    def depthwise(self, taps: int, positions: int) -> str:
        """A depthwise convolution of the newest tensor."""
        return self._add(LayerKind.DEPTHWISE, (self.newest,), self._sites[self.newest][0], taps, positions)

    def separable(self, outputs: int, positions: int) -> str:
        """A depthwise convolution of 3 x 3 taps and a pointwise one."""
        self.depthwise(9, positions)
        return self.conv(outputs, 1, positions)

    def add(self, first: str, second: str) -> str:
        """The sum of two tensors."""
        channels, positions = self._sites[first]
        return self._add(LayerKind.ADD, (first, second), channels, 1, positions)

    def workload(self) -> Workload:
        """The network as one inference."""
        channels = {site: count for site, (count, _) in self._sites.items()}
        return Workload(self._name, tuple(self._layers), 1, 1.0, per_channel_scales=True, site_channels=channels)

    def _add(self, kind: LayerKind, read: tuple[str, ...], outputs: int, taps: int, positions: int) -> str:
        channels, input_positions = self._sites[read[0]]
        self.newest = f"layer{len(self._layers)}"
        self._layers.append(
            Layer(
                name=self.newest,
                kind=kind,
                in_channels=channels,
                out_channels=outputs,
                kernel_size=taps,
                dilation=1,
                weight_site=None if kind is LayerKind.ADD else f"{self.newest}.weight",
                input_sites=read,
                output_site=self.newest,
                bias=True,
                positions=positions,
                input_positions=input_positions,
            )
        )
        self._sites[self.newest] = outputs, positions
        return self.newest


def ds_cnn() -> Workload:
    """Keyword spotting, 2,656,768 MACs."""
    network = _Network("DS-CNN", 1, 490)
    network.conv(64, 40, 125)
    for _ in range(4):
        network.separable(64, 125)
    network.conv(12, 1, 1)
    return network.workload()


def resnet8() -> Workload:
    """Image classification, 12,501,632 MACs."""
    network = _Network("ResNet-8", 3, 1024)
    network.conv(16, 9, 1024)
    for outputs, positions in ((16, 1024), (32, 256), (64, 64)):
        before = network.newest
        network.conv(outputs, 9, positions)
        branch = network.conv(outputs, 9, positions)
        network.add(before if outputs == 16 else network.conv(outputs, 1, positions, before), branch)
    network.conv(10, 1, 1)
    return network.workload()


def autoencoder() -> Workload:
    """Anomaly detection, 264,192 MACs: dense layers of one position."""
    network = _Network("autoencoder", 640, 1)
    for outputs in (128, 128, 128, 128, 8, 128, 128, 128, 128, 640):
        network.conv(outputs, 1, 1)
    return network.workload()


def mobilenet_025() -> Workload:
    """Visual wake words, 7,489,664 MACs."""
    network = _Network("MobileNet 0.25", 3, 9216)
    network.conv(8, 9, 2304)
    blocks = [(16, 2304), (32, 576), (32, 576), (64, 144), (64, 144), (128, 36), *5 * [(128, 36)], (256, 9), (256, 9)]
    for outputs, positions in blocks:
        network.separable(outputs, positions)
    network.conv(2, 1, 1)
    return network.workload()


def _mcunet(name: str) -> Workload:
    """An MCUNet network: inverted residual blocks, each expansion, depthwise and projection."""
    side, stem, blocks, last, classes = _MCUNET[name]
    network = _Network(name, 3, side**2)
    side = -(-side // 2)
    channels = stem
    network.conv(stem, 9, side**2)
    for block in blocks.split():
        before = network.newest
        expanded, kernel, outputs, stride = (int(number) for number in block.rstrip("+").split(":"))
        if expanded != channels:
            network.conv(expanded, 1, side**2)
        side = -(-side // stride)
        network.depthwise(kernel**2, side**2)
        projected = network.conv(outputs, 1, side**2)
        if block.endswith("+"):
            network.add(before, projected)
        channels = outputs
    if last is not None:
        network.conv(last, 1, side**2)
    network.conv(classes, 1, 1)
    return network.workload()


def _single(kind: str, inputs: int, outputs: int, taps: int, positions: int) -> Workload:
    """One layer as a network."""
    network = _Network(kind, inputs, positions)
    if kind == "depthwise":
        network.depthwise(taps, positions)
    else:
        network.conv(outputs, taps, positions)
    return network.workload()
