"""The systolic-array rule against SCALE-Sim: cycles, utilisation and buffer traffic of layers of a TCN without stalls.

Layers are pointwise and dense convolutions over 1 to 400 frames, smaller and larger than the array, and depthwise ones; arrays
are square, wide, tall and odd. All of it is a closed form, so every number must be equal.
"""

from typing import Any, Final

from hw_models.rules.systolic import SystolicCompute
from hw_models.shape import Shape
from hw_models.target import load_target
from hw_models.workload import LayerKind

SETTING: Final = "Single layers; buffers as large as wanted and memory as fast as wanted (no stalls)."
REQUIREMENTS: tuple[str, ...] = ("scalesim==3.0.0", "numpy<2.3", "pandas<3")

TARGETS: Final = ("systolic-weight-stationary", "systolic-output-stationary", "systolic-input-stationary")

# Name: kind, frames, channels in and out, taps.
LAYERS: Final = {
    "expand_100": ("conv", 100, 256, 512, 1),
    "expand_400": ("conv", 400, 256, 512, 1),
    "project_250": ("conv", 250, 512, 256, 1),
    "input_100": ("conv", 100, 3000, 256, 1),
    "masks_120": ("conv", 120, 256, 514, 1),
    "dense_k3_100": ("conv", 100, 64, 96, 3),
    "dense_k3_33": ("conv", 33, 33, 17, 3),
    "short_10": ("conv", 10, 64, 128, 1),
    "short_k5_3": ("conv", 3, 20, 12, 5),
    "one_frame": ("conv", 1, 96, 64, 1),
    "narrow_50": ("conv", 50, 3, 2, 1),
    "depthwise_k3_100": ("depthwise", 100, 8, 8, 3),
    "depthwise_k5_9": ("depthwise", 9, 5, 5, 5),
}

# Rows, columns and the layers simulated: large layers only on large arrays, since the simulator walks through every cycle.
ARRAYS: Final = (
    (1, 1, ("short_k5_3", "narrow_50")),
    (8, 8, ("dense_k3_33", "short_10", "one_frame", "narrow_50", "depthwise_k3_100", "depthwise_k5_9")),
    (13, 7, ("dense_k3_33", "short_10", "short_k5_3", "depthwise_k5_9")),
    (16, 16, ("dense_k3_100", "short_10", "short_k5_3", "depthwise_k3_100")),
    (32, 16, ("expand_100", "dense_k3_100", "one_frame")),
    (16, 32, ("dense_k3_100", "masks_120", "one_frame")),
    (32, 32, ("expand_100", "project_250", "dense_k3_100", "short_10", "short_k5_3", "depthwise_k3_100")),
    (64, 32, ("expand_400", "dense_k3_33")),
    (128, 128, ("expand_100", "expand_400", "input_100", "dense_k3_100", "one_frame")),
)


def cases() -> list[dict[str, Any]]:
    """Every dataflow on every array and its layers; the target gives the dataflow."""
    return [
        {
            "name": f"{target}, {rows} x {columns}, {layer}",
            "target": target,
            "dataflow": _array(target).dataflow,
            "rows": rows,
            "columns": columns,
            **dict(zip(("kind", "frames", "in_channels", "out_channels", "taps"), LAYERS[layer], strict=True)),
        }
        for target in TARGETS
        for rows, columns, layers in ARRAYS
        for layer in layers
    ]


def predictions(cases: list[dict[str, Any]]) -> list[dict[str, float]]:
    """What the rule says, in the metrics of `tools/scalesim.py`."""
    return [_prediction(case) for case in cases]


def _prediction(case: dict[str, Any]) -> dict[str, float]:
    array = _array(case["target"]).model_copy(update={"rows": case["rows"], "columns": case["columns"]})
    shape = Shape(LayerKind(case["kind"]), case["in_channels"], case["out_channels"], case["taps"], case["frames"], 0)
    cycles = array.work(shape, 8, 8).compute
    accesses = array.buffer_accesses(shape)
    return {
        "cycles": cycles,
        "utilisation_percent": 100 * shape.macs / (cycles * array.peak_macs_per_cycle(8, 8)),
        "input_buffer_reads": float(accesses.input_reads),
        "weight_buffer_reads": float(accesses.weight_reads),
        "output_buffer_writes": float(accesses.output_writes),
    }


def _array(target: str) -> SystolicCompute:
    compute = load_target(target).compute
    if not isinstance(compute, SystolicCompute):
        raise TypeError(f"target '{target}': found rule '{compute.rule}'; wanted 'systolic_array'")
    return compute
