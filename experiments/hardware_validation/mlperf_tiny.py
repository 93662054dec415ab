"""Cortex-M targets against published measurements: MLPerf Tiny v1.0, the MCUNet networks, and a MobileNet layer by layer.

There is no tool to run. `measured` gives what the sources named in the cases report:

- MLPerf Tiny v1.0, github.com/mlcommons/tiny_results_v1.0 at c7761cf: median throughput (performance mode) and median energy of
  ST's X-CUBE-AI 7.3.0 and of OctoML's microTVM with CMSIS-NN. Later rounds are left out: from v1.1 on several runtimes take about
  half the time for visual wake words and little less for the others.
- MCUNet networks on STM32H743, github.com/mit-han-lab/tinyengine at 47bb283, README: CMSIS-NN 011bf32 and X-CUBE-AI 7.3.0. The
  clock of 480 MHz is its authors' (issue 23 there).
- 0.25-MobileNet-160 on STM32H743 at 400 MHz, layer by layer in cycles, github.com/EEESlab/mobilenet_v1_stm32_cmsis_nn at 401f0bb,
  profiling_160_0_25.png: 8-bit kernels of the authors of CMix-NN, which grew out of them.

What a target was fitted on has the metrics `fitted_...`; the others are held out. The networks are 2-D: a layer counts its
output positions as frames and its kernel's area as taps, which makes strides plain. Pooling and softmax are neglected.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from hw_models.layer_cost import execute, layer_energy_pj, layer_time, stored_weight_bytes
from hw_models.placement import Placement
from hw_models.shape import executed_shape
from hw_models.target import Target, load_target
from hw_models.workload import Layer, LayerKind

REQUIREMENTS: tuple[str, ...] = ()  # published figures: no tool to run

Kernel = tuple[str, int, int, int, int]
"""Kind, channels in and out, taps, output positions."""


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


Published = tuple[tuple[str, str, str, float | None, list[Kernel]], dict[str, float]]
"""Name, target, source, clock where it is not the target's, and layers of a case; its published figures."""


def _published() -> list[Published]:
    found: list[Published] = []
    networks = {"kws": _ds_cnn(), "ic": _resnet8(), "ad": _autoencoder(), "vww": _mobilenet_025()}
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
                found.append(((network, target, source, _MCUNET_HZ, _mcunet(*_MCUNET[network])), figures))
    source = "github.com/EEESlab/mobilenet_v1_stm32_cmsis_nn 401f0bb, profiling_160_0_25.png"
    for position, (kind, inputs, outputs, taps, pixels, cycles) in enumerate(_MOBILENET, start=1):
        name = f"MobileNet {kind} {inputs} to {outputs}, {pixels} pixels"
        figures = {_latency(fitted=position in _MOBILENET_FITTED): cycles / _MOBILENET_HZ * 1e3}
        found.append(((name, "cortex-m7-cmix-nn", source, _MOBILENET_HZ, [(kind, inputs, outputs, taps, pixels)]), figures))
    return found


def _latency(*, fitted: bool) -> str:
    return "fitted_latency_ms" if fitted else "latency_ms"


def _case(name: str, target: str, source: str, clock_hz: float | None, layers: list[Kernel]) -> dict[str, Any]:
    return {"name": name, "target": target, "source": source, "clock_hz": clock_hz, "layers": layers}


def _prediction(case: dict[str, Any]) -> dict[str, float]:
    target = load_target(case["target"])
    totals = [_layer(target, *kernel) for kernel in case["layers"]]
    cycles = sum(cycles for cycles, _ in totals) + target.overheads.inference_cycles
    milliseconds = cycles / (case["clock_hz"] or target.clock.clock_hz) * 1e3
    microjoules = sum(picojoules for _, picojoules in totals) / 1e6
    return {
        "latency_ms": milliseconds,
        "fitted_latency_ms": milliseconds,
        "energy_uj": microjoules,
        "fitted_energy_uj": microjoules,
    }


def _layer(target: Target, kind: str, inputs: int, outputs: int, taps: int, positions: int) -> tuple[float, float]:
    """Cycles and picojoules of one layer in int8, weights in the flash."""
    sites = ("x", "z") if kind == "add" else ("x",)
    weights = None if kind == "add" else "w"
    layer = Layer(kind, LayerKind(kind), inputs, outputs, taps, 1, weights, sites, "y", bias=True)
    shape = executed_shape(layer, positions, target.dilation)
    executed = execute(target.precisions, layer.kind, 8, 8, 8)
    assert executed is not None  # noqa: S101 (int8 runs on every one of these targets)
    work = target.compute.work(shape, executed.activation_bits, executed.weight_bits)
    weight_bytes = stored_weight_bytes(target, layer, shape, 8, executed)
    placement = Placement(weights=target.levels("weights")[0], activations=target.levels("activations")[0])
    cycles = layer_time(target, shape, executed, work, weight_bytes, placement).total
    return cycles, layer_energy_pj(target, shape, executed, work, weight_bytes, placement, cycles)


def _separable(inputs: int, outputs: int, positions: int) -> list[Kernel]:
    return [("depthwise", inputs, inputs, 9, positions), ("conv", inputs, outputs, 1, positions)]


def _ds_cnn() -> list[Kernel]:
    """Keyword spotting, 2,656,768 MACs."""
    return [("conv", 1, 64, 40, 125), *(4 * _separable(64, 64, 125)), ("conv", 64, 12, 1, 1)]


def _resnet8() -> list[Kernel]:
    """Image classification, 12,501,632 MACs."""
    layers: list[Kernel] = [("conv", 3, 16, 9, 1024)]
    for inputs, outputs, positions in ((16, 16, 1024), (16, 32, 256), (32, 64, 64)):
        layers += [("conv", inputs, outputs, 9, positions), ("conv", outputs, outputs, 9, positions)]
        if inputs != outputs:
            layers.append(("conv", inputs, outputs, 1, positions))
        layers.append(("add", outputs, outputs, 1, positions))
    return [*layers, ("conv", 64, 10, 1, 1)]


def _autoencoder() -> list[Kernel]:
    """Anomaly detection, 264,192 MACs: dense layers of one frame."""
    widths = (640, 128, 128, 128, 128, 8, 128, 128, 128, 128, 640)
    return [("conv", inputs, outputs, 1, 1) for inputs, outputs in pairwise(widths)]


def _mobilenet_025() -> list[Kernel]:
    """Visual wake words, 7,489,664 MACs."""
    blocks = [(8, 16, 2304), (16, 32, 576), (32, 32, 576), (32, 64, 144), (64, 64, 144), (64, 128, 36)]
    blocks += [*5 * [(128, 128, 36)], (128, 256, 9), (256, 256, 9)]
    layers: list[Kernel] = [("conv", 3, 8, 9, 2304)]
    for block in blocks:
        layers += _separable(*block)
    return [*layers, ("conv", 256, 2, 1, 1)]


def _mcunet(side: int, stem: int, blocks: str, last: int | None, classes: int) -> list[Kernel]:
    """An MCUNet network: inverted residual blocks, each expansion, depthwise and projection."""
    side = -(-side // 2)
    layers: list[Kernel] = [("conv", 3, stem, 9, side**2)]
    channels = stem
    for block in blocks.split():
        expanded, kernel, outputs, stride = (int(number) for number in block.rstrip("+").split(":"))
        if expanded != channels:
            layers.append(("conv", channels, expanded, 1, side**2))
        side = -(-side // stride)
        layers += [("depthwise", expanded, expanded, kernel**2, side**2), ("conv", expanded, outputs, 1, side**2)]
        if block.endswith("+"):
            layers.append(("add", outputs, outputs, 1, side**2))
        channels = outputs
    if last is not None:
        layers.append(("conv", channels, last, 1, side**2))
        channels = last
    return [*layers, ("conv", channels, classes, 1, 1)]
