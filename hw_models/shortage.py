"""What a chip has too little of for a network."""

from hw_models.compile import CostTable
from hw_models.cost import evaluate, placement_of
from hw_models.rules.dataflow import DataflowCompute
from hw_models.workload import IntArray

_RESOURCES = {"lut": "lookup tables", "bram18": "block RAMs", "uram": "UltraRAMs", "dsp": "DSP slices"}


def shortage(table: CostTable, bits_row: IntArray) -> str:
    """Say what one allocation `[sites]` takes too much of, such as `weights take 353 kB of 256 kB flash`; empty if it fits.

    Raises:
        TargetError: a wrong shape or width, or a width the target refuses; names the layer.
    """
    costs = evaluate(table, bits_row[None])
    if costs.fits[0]:
        return ""
    placement = placement_of(table, bits_row)
    held = {"weights": int(costs.weight_bytes[0]), "activations": int(costs.peak_activation_bytes[0])}
    for level in dict.fromkeys((placement.weights, placement.activations)):
        inside = [what for what in held if getattr(placement, what) == level]
        taken = sum(held[what] for what in inside)
        if level.bytes is not None and taken > level.bytes:
            return f"{' and '.join(inside)} take {_kilobytes(taken)} of {_kilobytes(level.bytes)} kB {level.name}"
    if isinstance(table.target.compute, DataflowCompute):
        for name, has in zip(_RESOURCES, table.target.compute.budget, strict=True):
            if (needs := int(costs.resources[name][0])) > has:
                return f"the slowest folding takes {needs:,} of {has:,} {_RESOURCES[name]}"
    return "no folding keeps up with the frames"


def _kilobytes(count: int) -> str:
    """Bytes in kB, rounded up so that what is too much is seen to be."""
    return f"{-(-count // 1000):,}" if count >= 10_000 else f"{count / 1000:,.1f}"
