"""A dataflow accelerator on an FPGA: every layer is a circuit of its own (`hw_models.dataflow`)."""

from itertools import product
from typing import Annotated, Literal

from pydantic import Field

from hw_models.dataflow.folding import MAX_BITS
from hw_models.dataflow.resources import Multipliers, WeightMemory
from hw_models.errors import TargetError
from hw_models.rules.base import ComputeRule
from hw_models.sections import Count, Positive, Precisions
from hw_models.shape import Shape
from hw_models.work import Work

Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Blocks = Annotated[int, Field(ge=0)]


class DataflowCompute(ComputeRule):
    """Resources of the device, their usable share, and the construction of circuits.

    At a fixed folding, fewer bits save logic and memory, not cycles; the savings allow a faster folding. With
    `frames_per_second`, in frames of the workload, the folding is the least that keeps up; without it, the fastest that fits.
    """

    rule: Literal["dataflow"]
    lut: Count
    bram18: Count
    uram: Blocks
    dsp: Blocks
    lut_share: Share
    bram_share: Share
    uram_share: Share
    dsp_share: Share
    multipliers: Multipliers
    weight_memory: WeightMemory
    frames_per_second: Positive | None = None

    @property
    def budget(self) -> tuple[int, int, int, int]:
        """Lookup tables, 18-kbit block RAMs, UltraRAMs and DSP slices that a design may take."""
        has = (
            (self.lut, self.lut_share),
            (self.bram18, self.bram_share),
            (self.uram, self.uram_share),
            (self.dsp, self.dsp_share),
        )
        lut, bram18, uram, dsp = (int(count * share) for count, share in has)
        return lut, bram18, uram, dsp

    def work(self, shape: Shape, activation_bits: int, weight_bits: int) -> Work:
        """Raise `TargetError`: the cycles of a layer depend on how all layers share the device."""
        what = f"a {shape.kind} layer at a{activation_bits}w{weight_bits}"
        raise TargetError(
            f"rule 'dataflow': {what} has no cycles of its own; wanted hw_models.dataflow.table for the whole network"
        )

    def peak_macs_per_cycle(self, activation_bits: int, weight_bits: int) -> float:
        """Lanes of an engine, one multiply-accumulate each, that fit in the usable logic, by FINN-R's logic of a lane."""
        bits = activation_bits + weight_bits
        multiply = (2 * -(-bits // 6) - 1) * bits if self.multipliers == "lut" else 0
        lut, _, _, dsp = self.budget
        lanes = lut / (1.1 * (multiply + 2 * bits))
        return min(lanes, dsp / -(-bits // 48)) if self.multipliers == "dsp" else lanes

    def check(self, precisions: Precisions) -> None:
        """Raise `ValueError` unless the pairs are all widths up to `MAX_BITS`, and the device has the named resources."""
        widths = range(1, MAX_BITS + 1)
        if sorted(precisions.pairs) != list(product(widths, widths)) or precisions.unsupported != "refuse":
            raise ValueError(
                f"precisions: wanted every pair of 1 to {MAX_BITS} bits and unsupported = 'refuse' with rule 'dataflow'"
            )
        if precisions.output_bits is not None:
            raise ValueError("precisions.output_bits: wanted none with rule 'dataflow', thresholds write the chosen width")
        if self.weight_memory == "uram" and not self.uram:
            raise ValueError("compute.weight_memory: found 'uram' and a device without any")
        if self.multipliers == "dsp" and not self.dsp:
            raise ValueError("compute.multipliers: found 'dsp' and a device without any")
