"""Compute time from a table of measured rates."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from hw_models.rules.base import ComputeRule
from hw_models.sections import Bits, NotNegative, Precisions, Section, Source
from hw_models.shape import Shape
from hw_models.work import Work
from hw_models.workload import LayerKind


class Rate(Section):
    """Cycles of one kernel class at one (activation, weight) pair; `weight_bits` is 0 without weights.

    A `function` reads one tensor and has no weights: rounding to another width, too. Without a rate of its own it is an `add`.
    """

    kernel: Literal["conv", "depthwise", "add", "function"]
    activation_bits: Bits
    weight_bits: Annotated[int, Field(ge=0, le=32)]
    cycles_per_mac: NotNegative = 0.0
    cycles_per_output: NotNegative = 0.0
    cycles_per_channel: NotNegative = 0.0
    layer_cycles: NotNegative = 0.0
    source: Source


class RateCompute(ComputeRule):
    """Compute time from a table of measured rates."""

    general: ClassVar = True

    rule: Literal["rates"]
    rates: Annotated[tuple[Rate, ...], Field(strict=False, min_length=1)]

    def work(self, shape: Shape, activation_bits: int, weight_bits: int) -> Work:
        """Rates times MACs, outputs and channels."""
        rate = self.rates[self.rate_index(shape, activation_bits, weight_bits)]
        outputs = shape.elements if shape.kind is LayerKind.ADD else shape.outputs
        return Work(
            compute=rate.cycles_per_mac * shape.macs + rate.cycles_per_output * outputs,
            fixed=rate.layer_cycles + rate.cycles_per_channel * shape.out_channels,
        )

    def rate_index(self, shape: Shape, activation_bits: int, weight_bits: int) -> int:
        """Return the position of the rate that a layer is charged by."""
        keys: list[tuple[str, int, int]] = [(rate.kernel, rate.activation_bits, rate.weight_bits) for rate in self.rates]
        if shape.kind is not LayerKind.ADD:
            return keys.index((shape.kind.value, activation_bits, weight_bits))
        one = shape.operands == 1 and ("function", activation_bits, 0) in keys
        return keys.index(("function" if one else "add", activation_bits, 0))

    def peak_macs_per_cycle(self, activation_bits: int, weight_bits: int) -> float:
        """Peak rate of the fastest kernel class at these widths."""
        pair = (activation_bits, weight_bits)
        return max(
            1 / rate.cycles_per_mac
            for rate in self.rates
            if (rate.activation_bits, rate.weight_bits) == pair and rate.cycles_per_mac
        )

    def check(self, precisions: Precisions) -> None:
        """Raise `ValueError` unless there is one rate for every kernel class at every pair, and no other.

        Rates of functions may be missing.
        """
        found: list[tuple[str, int, int]] = [(rate.kernel, rate.activation_bits, rate.weight_bits) for rate in self.rates]
        wanted: list[tuple[str, int, int]] = [(kernel, a, w) for kernel in ("conv", "depthwise") for a, w in precisions.pairs]
        wanted += [("add", a, 0) for a in precisions.activation_bits]
        wanted += [key for a in precisions.activation_bits if (key := ("function", a, 0)) in found]
        for kernel, a, w in wanted:
            if (count := found.count((kernel, a, w))) != 1:
                what = f"kernel '{kernel}', activation_bits {a}, weight_bits {w}"
                raise ValueError(f"compute.rates: found {count} rates for {what}; wanted one")
        if extra := [key for key in found if key not in wanted]:
            raise ValueError(f"compute.rates: rate {extra[0]} belongs to no pair of precisions.pairs")
        for rate in self.rates:
            if rate.kernel == "conv" and not rate.cycles_per_mac:
                raise ValueError("compute.rates: cycles_per_mac of a conv is 0; wanted more")
