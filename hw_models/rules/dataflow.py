"""A dataflow accelerator on an FPGA: every layer is a circuit of its own (`hw_models.dataflow`)."""

from itertools import product
from typing import Annotated, Literal

from pydantic import Field

from hw_models.dataflow.folding import MAX_BITS
from hw_models.dataflow.resources import Multipliers, WeightMemory, WindowMemory
from hw_models.errors import TargetError
from hw_models.rules.base import ComputeRule
from hw_models.sections import Count, Positive, Precisions
from hw_models.shape import Shape
from hw_models.work import Work

Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Blocks = Annotated[int, Field(ge=0)]
Thresholds = Literal["engine", "standalone", "uncounted"]
Accumulators = Literal["by_type", "by_weight"]
Counted = Literal["counted", "uncounted"]


class DataflowCompute(ComputeRule):
    """Resources of the device, their usable share, and the construction of circuits.

    At a fixed folding, fewer bits save logic and memory, not cycles; the savings allow a faster folding. With
    `frames_per_second`, in frames of the workload, the folding is the least that keeps up; without it, the fastest that fits.

    What an option leaves uncounted is missing in FINN's estimate, not in the circuit.

    Attributes:
        lut: lookup tables of the device.
        bram18: its block RAMs of 18 kbit.
        uram: its UltraRAMs.
        dsp: its DSP slices.
        lut_share: share of the lookup tables that a design may take; likewise the other shares.
        multipliers: what multiplies: lookup tables or DSP slices.
        weight_memory: memory of the weights of a layer; `auto` counts as FINN does while synthesis may choose.
        window_memory: memory of the frames that a kernel spans.
        thresholds: of layers with weights. `engine`: in the logic of each engine, which compares with all at once. `standalone`:
            a circuit of its own behind each engine, as wide as the engine, which searches in stages. `uncounted`: in the
            engines, and counted in depthwise ones alone; FINN leaves out the others while synthesis may choose their memory.
        accumulators: `by_type`: wide enough for any weights of their width. `by_weight`: for those of a symmetric quantizer;
            FINN narrows them by the weights themselves.
        residual_fifos: whether the FIFOs before sums count. FINN inserts them after its estimate.
        frames_per_second: wanted frames per second.
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
    window_memory: WindowMemory = "by_depth"
    thresholds: Thresholds = "engine"
    accumulators: Accumulators = "by_type"
    residual_fifos: Counted = "counted"
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
