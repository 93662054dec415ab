"""The `bitfusion` target against the authors' simulator: cycles and energy of the TCN's pointwise layers, exact.

The simulator is not on PyPI: `tools/bitfusion.py` wants the path of a checkout of github.com/hsharma35/bitfusion in
`BITFUSION_ROOT`. It knows no depthwise layer, no sum, and square kernels only, so pointwise layers are all there is
to compare.
"""

from itertools import product
from typing import Any, Final

from hw_models.shape import Shape
from hw_models.target import load_target
from hw_models.workload import LayerKind

SETTING: Final = (
    "Pointwise layers, the only ones that the simulator knows, at all pairs of widths; the array and buffers of its example."
)
REQUIREMENTS: tuple[str, ...] = ()  # the simulator needs NumPy alone
ENVIRONMENT = "BITFUSION_ROOT"

# Frames, channels in and out: input projection, expansion, projection and mask head of separators of several sizes.
LAYERS = (
    (250, 514, 64),
    (250, 64, 128),
    (250, 128, 64),
    (250, 64, 514),
    (333, 96, 333),
    (100, 128, 512),
    (1, 64, 64),
    (63, 40, 17),
)
WIDTHS = (2, 4, 8)


def cases() -> list[dict[str, Any]]:
    """Every layer at every pair of widths that the array executes."""
    return [
        {
            "name": f"{frames} frames, {inputs} to {outputs} channels, a{activation}w{weight}",
            "target": "bitfusion",
            "frames": frames,
            "in_channels": inputs,
            "out_channels": outputs,
            "activation_bits": activation,
            "weight_bits": weight,
        }
        for (frames, inputs, outputs), activation, weight in product(LAYERS, WIDTHS, WIDTHS)
    ]


def predictions(cases: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Cycles and energy by the target's rule."""
    rule = load_target("bitfusion").compute
    results = []
    for case in cases:
        shape = Shape(LayerKind.CONV, case["in_channels"], case["out_channels"], 1, case["frames"], 0)
        work = rule.work(shape, case["activation_bits"], case["weight_bits"])
        results.append({"cycles": work.total, "energy_pj": work.energy_pj})
    return results
