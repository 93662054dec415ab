"""Compute time from a table of measured rates."""

from hw_models.cycles import Cycles
from hw_models.shape import Shape
from hw_models.target import RateCompute
from hw_models.workload import LayerKind


def rate_cycles(rule: RateCompute, shape: Shape, activation_bits: int, weight_bits: int) -> Cycles:
    """Cycles of a layer at an executed pair of widths (`weight_bits` is not looked at for an `add`)."""
    wanted = (shape.kind.value, activation_bits, 0 if shape.kind is LayerKind.ADD else weight_bits)
    rate = next(r for r in rule.rates if (r.kernel, r.activation_bits, r.weight_bits) == wanted)
    return Cycles(
        compute=rate.cycles_per_mac * shape.macs + rate.cycles_per_output * shape.outputs,
        memory=0.0,
        fixed=rate.layer_cycles + rate.cycles_per_channel * shape.out_channels,
    )
