"""The `ethos-u*` targets against Arm's Vela compiler (its C++ core): cycles, stored weights and peak memory of separators.

The compiler gets the separator as a .tflite file with frames along the width, [1, 1, T, C], and ReLU fused into the layer before
it. Its cycles are those of `--optimise Performance`, which fetches weights ahead, during the layer before; its memory that of
`--optimise Size`, which does not. On Ethos-U65 that memory is a cache, and no peak is compared. Layers are also compared one by
one.
"""

from itertools import product
from typing import Any, Final

import numpy as np

from hw_models.breakdown import per_layer
from hw_models.compile import CostTable, compile_target
from hw_models.cost import evaluate
from hw_models.target import load_target
from hw_models.workload import LayerKind, Workload, bits_matrix
from hwsearch.experiment import SeparatorConfig
from hwsearch.separator.tcn import MaskNetwork
from hwsearch.separator.untrained import network_of

SETTING: Final = (
    "Whole separators; cycles optimised for Performance, memory for Size. "
    "U55: High_End_Embedded, Shared_Sram. U65: Client_Server, 384 kB."
)
REQUIREMENTS: tuple[str, ...] = ("ethos-u-vela==5.2.0", "flatbuffers==25.12.19", "tflite==2.18.0")
TARGETS: Final = ("ethos-u55-128", "ethos-u55-256", "ethos-u65-256")
PEAK_TARGETS: Final = ("ethos-u55-128", "ethos-u55-256")
SIZES: Final = ((64, 128), (128, 256), (256, 512))
"""Channels B and H; dilations are 1 to 128."""
FRAMES: Final = (100, 250, 500)
WEIGHT_BITS: Final = (8, 4, 2)
ODD: Final = ((40, 100, 251, 8, 8), (64, 128, 250, 16, 8), (128, 256, 101, 8, 6))
"""Further B, H, frames, activation and weight bits: ragged channels, odd frames, 16-bit activations, 6-bit weights."""
LAYER_FRAMES: Final = 250

Case = dict[str, Any]


def cases() -> list[Case]:
    """Whole separators in several sizes, lengths and weight widths, and the distinct layers of some."""
    found = []
    for target in TARGETS:
        whole = [(*size, frames, 8, bits) for size, frames, bits in product(SIZES, FRAMES, WEIGHT_BITS)]
        found += [{**_case(target, *each), "group": "network"} for each in (*whole, *ODD)]
        for channels, hidden in SIZES:
            case = _case(target, channels, hidden, LAYER_FRAMES, 8, 8)
            distinct = ["input_proj", "blocks.0.expand", "blocks.0.project", "blocks.0.add", "mask_head"]
            distinct += [layer["name"] for layer in case["network"]["layers"] if layer["kind"] == LayerKind.DEPTHWISE]
            found += [{**case, "name": f"{case['name']}, {layer}", "group": "layer", "layer": layer} for layer in distinct]
    return found


def predictions(cases: list[Case]) -> list[dict[str, float]]:
    """Cycles, weight bytes and peak memory by the target; cycles alone for a layer."""
    tables: dict[tuple[Any, ...], CostTable] = {}
    results = []
    for case in cases:
        key = (case["target"], *case["separator"])
        if key not in tables:
            tables[key] = compile_target(load_target(case["target"]), _workload(*case["separator"]))
        table = tables[key]
        workload = table.workload
        widths = dict.fromkeys(workload.weight_sites, int(case["weight_bits"]))
        widths |= dict.fromkeys(workload.activation_sites, int(case["activation_bits"]))
        bits = bits_matrix(workload, [widths])
        if "layer" in case:
            cost = next(cost for cost in per_layer(table, bits[0]) if cost.layer == case["layer"])
            results.append({"layer_cycles": cost.cycles})
            continue
        costs = evaluate(table, bits)
        found = {
            "cycles": float(costs.latency_ms[0]) / 1e3 * table.target.clock.clock_hz,
            "weight_bytes": float(costs.weight_bytes[0]),
        }
        if case["target"] in PEAK_TARGETS:
            found["peak_activation_bytes"] = float(np.max(costs.peak_activation_bytes))
        results.append(found)
    return results


def _case(target: str, channels: int, hidden: int, frames: int, activation_bits: int, weight_bits: int) -> Case:
    workload = _workload(channels, hidden, frames)
    return {
        "name": f"B {channels}, H {hidden}, {frames} frames, a{activation_bits}w{weight_bits}",
        "target": target,
        "separator": [channels, hidden, frames],
        "activation_bits": activation_bits,
        "weight_bits": weight_bits,
        "network": _serialised(workload),
    }


def _workload(channels: int, hidden: int, frames: int) -> Workload:
    config = SeparatorConfig(n_fft=256, B=channels, H=hidden, P=3, X=8, R=1)
    return network_of(MaskNetwork(config, 3 * 129), 3 * 129).workload(frames, config.hop_length / 16000, per_channel=True)


def _serialised(workload: Workload) -> dict[str, Any]:
    """The workload as `tools/tflite_writer.py` reads it."""
    return {
        "frames": workload.frames,
        "sites": dict(workload.site_channels),
        "layers": [
            {
                "name": layer.name,
                "kind": str(layer.kind),
                "inputs": list(layer.input_sites),
                "output": layer.output_site,
                "in_channels": layer.in_channels,
                "out_channels": layer.out_channels,
                "kernel_size": layer.kernel_size,
                "dilation": layer.dilation,
                "relu": layer.name.endswith((".expand", ".depthwise")),
            }
            for layer in workload.layers
        ],
    }
