"""Targets of parallel microcontrollers against published figures: layers of a MobileNet on GAP8, MLPerf Tiny networks on GAP9.

There is no tool to run. `measured` gives what the sources named in the cases report:

- 1.0-MobileNet-128 on a GAP8 board, layer by layer: time and power of `images/network_power.PNG` in github.com/pulp-platform/dory
  at be3d6dd. All weights lie in L3. Left out are the stem, pooling, and depthwise layers of stride 2, none of which a TCN has.
- DORY's count of cycles for the dilated 1-D kernels of Burrello et al. (ISLPED 2021), `tiler_conv1d_to_up.py` at the same commit,
  the im2col kernel, which is the faster one here, in one tile: a model, not a measurement, in which dilation costs nothing.
- MLPerf Tiny v1.0 on GAP9 at 0.8 V, github.com/mlcommons/tiny_results_v1.0 at c7761cf: median throughput and energy; shapes and
  weight widths from the submitter's logs and Makefiles. `outside_cycles` are those of layers that are no 1-D layer: the stem of
  visual wake words, 31,744 cycles by DORY's `Ne16PerfModel.py`. Pooling and softmax are neglected.

What a target was fitted on has the metrics `fitted_...`; the others are held out.

A pixel of an image is a frame here; on NE16, images count whole tiles of 3 x 3 pixels, and 3 x 3 taps are the three taps of a TCN
which the exporter pads to as many.
"""

from itertools import pairwise
from typing import Any, Final

from hw_models.layer_cost import execute, layer_energy_pj, layer_time, stored_weight_bytes
from hw_models.placement import Placement
from hw_models.shape import executed_shape
from hw_models.target import load_target
from hw_models.workload import Layer, LayerKind

SETTING: Final = (
    "Boards, as published: a MobileNet on GAP8 with all weights in L3; MLPerf Tiny on GAP9 at 0.8 V, with 5 to 7 bits on NE16."
)
REQUIREMENTS: tuple[str, ...] = ()  # published figures: no tool to run

Kernel = dict[str, Any]

FITTED: Final = ("PwConv2", "PwConv6", "DwConv1", "FC", "anomaly detection")
"""What the times of the targets were fitted on; all other cases are held out."""

ENERGY_FITTED: Final = ("PwConv2", "PwConv3", "PwConv4", "PwConv5", "PwConv6", "PwConv7", "keyword spotting")
"""What their power was taken from."""

# Name, channels in and out, taps, pixels out; milliwatts and milliseconds.
_MOBILENET: Final = (
    ("DwConv1", 32, 32, 9, 4096, 35.4, 9.13),
    ("PwConv2", 32, 64, 1, 4096, 47.9, 10.91),
    ("PwConv3", 64, 128, 1, 1024, 48.0, 7.84),
    ("DwConv3", 128, 128, 9, 1024, 38.9, 8.72),
    ("PwConv4", 128, 128, 1, 1024, 48.4, 13.31),
    ("PwConv5", 128, 256, 1, 256, 48.5, 6.58),
    ("DwConv5", 256, 256, 9, 256, 40.4, 4.75),
    ("PwConv6", 256, 256, 1, 256, 48.4, 11.91),
    ("PwConv7", 256, 512, 1, 64, 48.5, 5.94),
    ("DwConv7-11", 512, 512, 9, 64, 38.9, 2.56),
    ("PwConv8-12", 512, 512, 1, 64, 36.5, 13.08),
    ("PwConv13", 512, 1024, 1, 16, 31.4, 9.11),
    ("DwConv13", 1024, 1024, 9, 16, 38.1, 1.78),
    ("PwConv14", 1024, 1024, 1, 16, 44.1, 27.31),
    ("FC", 1024, 1000, 1, 1, 18.3, 15.78),
)

# Channels in and out, taps, dilation, frames; cycles.
_DILATED: Final = (
    (64, 32, 3, 8, 256, 111_444),
    (128, 128, 3, 16, 128, 386_100),
    (32, 64, 5, 4, 256, 190_164),
)

# Inferences per second and microjoules per inference.
_MLPERF_TINY: Final = {
    "keyword spotting": (2103.206, 26.659),
    "visual wake words": (889.048, 58.356),
    "anomaly detection": (5691.597, 7.294),
    "image classification": (1622.799, 40.356),
}

_GAP8_HZ: Final = 100e6


def cases() -> list[dict[str, Any]]:
    """Single layers on GAP8, whole networks on GAP9."""
    mobilenet = [
        {
            "name": f"MobileNet {name}",
            "target": "gap8-pulp-nn",
            "source": "github.com/pulp-platform/dory be3d6dd, images/network_power.PNG",
            "weights_in": "l3",
            "layers": [_kernel("conv" if taps == 1 else "depthwise", inputs, outputs, taps, frames)],
        }
        for name, inputs, outputs, taps, frames, _, _ in _MOBILENET
    ]
    dilated = [
        {
            "name": f"{inputs} to {outputs} channels, {taps} taps, dilation {dilation}",
            "target": "gap8-pulp-nn",
            "source": "github.com/pulp-platform/dory be3d6dd, tiler_conv1d_to_up.py",
            "weights_in": "l2",
            "layers": [_kernel("conv", inputs, outputs, taps, frames)],
        }
        for inputs, outputs, taps, dilation, frames, _ in _DILATED
    ]
    networks = {
        "keyword spotting": _ds_cnn(),
        "visual wake words": _mobilenet_025(),
        "anomaly detection": _autoencoder(),
        "image classification": _resnet8(),
    }
    mlperf_tiny = [
        {
            "name": f"MLPerf Tiny {name}",
            "target": "gap9-ne16",
            "source": "github.com/mlcommons/tiny_results_v1.0 c7761cf, closed/greenwaves-technologies/results/gap9_800_370",
            "weights_in": "l2",
            "layers": layers,
            "outside_cycles": 31_744 if name == "visual wake words" else 0,
        }
        for name, layers in networks.items()
    ]
    return [*mobilenet, *dilated, *mlperf_tiny]


def predictions(cases: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Time and energy of each case by the rule, memory levels and overheads of its layers' targets."""
    return [_prediction(case) for case in cases]


def measured() -> list[dict[str, float]]:
    """Published time and energy, in the order of `cases`; a count of cycles has no energy."""
    mobilenet = [_figures(name, ms, milliwatts * ms) for name, *_, milliwatts, ms in _MOBILENET]
    dilated = [{"latency_ms": cycles / _GAP8_HZ * 1e3} for *_, cycles in _DILATED]
    mlperf_tiny = [_figures(name, 1e3 / rate, microjoules) for name, (rate, microjoules) in _MLPERF_TINY.items()]
    return [*mobilenet, *dilated, *mlperf_tiny]


def _figures(name: str, milliseconds: float, microjoules: float) -> dict[str, float]:
    """Figures under the names of what they are: fitted on, or held out."""
    time, energy = ("fitted_" if name in fitted else "" for fitted in (FITTED, ENERGY_FITTED))
    return {f"{time}latency_ms": milliseconds, f"{energy}energy_uj": microjoules}


def _prediction(case: dict[str, Any]) -> dict[str, float]:
    milliseconds = case.get("outside_cycles", 0) / load_target(case["target"]).clock.clock_hz * 1e3
    microjoules = 0.0
    for kernel in case["layers"]:
        target = load_target(kernel.get("target", case["target"]))
        site = None if kernel["kind"] == "add" else "weights"
        layer = Layer(
            case["name"],
            LayerKind(kernel["kind"]),
            kernel["in_channels"],
            kernel["out_channels"],
            kernel["taps"],
            1,
            site,
            ("x", "w") if kernel["kind"] == "add" else ("x",),
            "y",
            bias=site is not None,
        )
        shape = executed_shape(layer, kernel["frames"], target.dilation)
        executed = execute(target.precisions, layer.kind, 8, kernel["weight_bits"], 8)
        assert executed is not None  # noqa: S101 (every case is one the target runs)
        work = target.compute.work(shape, executed.activation_bits, executed.weight_bits)
        levels = {level.name: level for level in target.memory}
        placement = Placement(weights=levels[case["weights_in"]], activations=levels["l2"])
        weight_bytes = stored_weight_bytes(target, layer, shape, kernel["weight_bits"], executed)
        cycles = layer_time(target, shape, executed, work, weight_bytes, placement).total
        milliseconds += cycles / target.clock.clock_hz * 1e3
        microjoules += layer_energy_pj(target, shape, executed, work, weight_bytes, placement, cycles) / 1e6
    figures = {"latency_ms": milliseconds, "energy_uj": microjoules}
    return figures | {f"fitted_{name}": value for name, value in figures.items()}


def _kernel(kind: str, inputs: int, outputs: int, taps: int, frames: int, *, weight_bits: int = 8) -> Kernel:
    return {
        "kind": kind,
        "in_channels": inputs,
        "out_channels": outputs,
        "taps": taps,
        "frames": frames,
        "weight_bits": weight_bits,
    }


def _ds_cnn() -> list[Kernel]:
    """Keyword spotting: a stem on the cores, then 25 x 5 pixels (27 x 6 in whole tiles) with 5-bit weights."""
    stem = _kernel("conv", 1, 64, 40, 125) | {"target": "gap9"}
    block = [_kernel("depthwise", 64, 64, 3, 162, weight_bits=5), _kernel("conv", 64, 64, 1, 162, weight_bits=5)]
    return [stem, *(block * 4), _kernel("conv", 64, 12, 1, 1, weight_bits=5)]


def _mobilenet_025() -> list[Kernel]:
    """Visual wake words after its stem: depthwise and pointwise layers with 5-bit weights, by pixels out."""
    blocks = [(8, 16, 2304), (16, 32, 576), (32, 32, 576), (32, 64, 144), (64, 64, 144), (64, 128, 36)]
    blocks += [(128, 128, 36)] * 5 + [(128, 256, 9), (256, 256, 9)]
    layers = []
    for inputs, outputs, pixels in blocks:
        layers.append(_kernel("depthwise", inputs, inputs, 3, pixels, weight_bits=5))
        layers.append(_kernel("conv", inputs, outputs, 1, pixels, weight_bits=5))
    return [*layers, _kernel("conv", 256, 2, 1, 1, weight_bits=5)]


def _autoencoder() -> list[Kernel]:
    """Anomaly detection: fully connected layers with 6-bit weights."""
    widths = (640, 128, 128, 128, 128, 8, 128, 128, 128, 128, 640)
    return [_kernel("conv", inputs, outputs, 1, 1, weight_bits=6) for inputs, outputs in pairwise(widths)]


def _resnet8() -> list[Kernel]:
    """Image classification with 7-bit weights: 3 x 3 kernels, for which NE16 has a mode that the target does not model."""
    layers = [_kernel("conv", 3, 16, 9, 1089, weight_bits=7)]  # 32 x 32 pixels in whole tiles
    for inputs, outputs, pixels in ((16, 16, 1089), (16, 32, 324), (32, 64, 81)):
        layers.append(_kernel("conv", inputs, outputs, 9, pixels, weight_bits=7))
        layers.append(_kernel("conv", outputs, outputs, 9, pixels, weight_bits=7))
        if inputs != outputs:
            layers.append(_kernel("conv", inputs, outputs, 1, pixels, weight_bits=7))
        layers.append(_kernel("add", outputs, outputs, 1, pixels))
    return [*layers, _kernel("conv", 64, 10, 1, 1, weight_bits=7)]
