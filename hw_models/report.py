"""The cost of one allocation as plain rows for a table."""

from typing import Final

from hw_models.breakdown import LayerCost, per_layer
from hw_models.compile import CostTable
from hw_models.cost import evaluate
from hw_models.workload import IntArray

COLUMNS: Final = (
    "layer",
    "kind",
    "bits",
    "macs",
    "weight_bytes",
    "cycles",
    "latency_ms",
    "energy_uj",
    "utilisation",
    "bound",
    "runs_as",
)

Row = dict[str, str | int | float]


def cost_rows(table: CostTable, bits_row: IntArray) -> list[Row]:
    """A row per layer in execution order, and a last row `total`; keys are `COLUMNS`, and the resources on an FPGA.

    `bits` reads `w4 a8` for weights and inputs, with `-> a6` for another width of the output. `runs_as` holds the wider widths
    that the target runs, if they differ. `bound` is the layer's bound; in the total, the one with most of the time. `energy_uj`
    is NaN if the target states none.

    Args:
        table: a compiled target.
        bits_row: `[sites]` bit-widths.

    Raises:
        TargetError: a wrong shape or width, or a width the target refuses; names the layer.
    """
    layers = per_layer(table, bits_row)
    costs = evaluate(table, bits_row[None])
    time = dict.fromkeys((layer.bound for layer in layers), 0.0)
    for layer in layers:
        time[layer.bound] += layer.cycles
    cycles = float(costs.latency_ms[0]) * table.target.clock.clock_hz / 1e3
    total: Row = {
        "layer": "total",
        "kind": "",
        "bits": "",
        "macs": int(costs.macs[0]),
        "weight_bytes": int(costs.weight_bytes[0]),
        "cycles": cycles,
        "latency_ms": float(costs.latency_ms[0]),
        "energy_uj": float(costs.energy_uj[0]),
        "utilisation": sum(layer.utilisation * layer.cycles for layer in layers) / cycles if cycles else 0.0,
        "bound": "compute" if costs.resources else max(time, key=lambda bound: time[bound]),
        "runs_as": "",
        **{name: int(counts[0]) for name, counts in costs.resources.items()},
        **dict.fromkeys(("pe", "simd") if costs.resources else (), ""),
    }
    return [*(_row(layer) for layer in layers), total]


def _row(cost: LayerCost) -> Row:
    return {
        "layer": cost.layer,
        "kind": str(cost.kind),
        "bits": _widths(cost.weight_bits, cost.activation_bits, cost.output_bits),
        "macs": cost.macs,
        "weight_bytes": cost.weight_bytes,
        "cycles": cost.cycles,
        "latency_ms": cost.latency_ms,
        "energy_uj": cost.energy_uj,
        "utilisation": cost.utilisation,
        "bound": cost.bound,
        "runs_as": _runs_as(cost),
        **cost.resources,
    }


def _widths(weight: int | None, activation: int, output: int) -> str:
    inputs = f"a{activation}" if weight is None else f"w{weight} a{activation}"
    return inputs if output == activation else f"{inputs} -> a{output}"


def _runs_as(cost: LayerCost) -> str:
    weight = None if cost.weight_bits is None else cost.executed.weight_bits
    same = cost.executed.activation_bits == cost.activation_bits and weight == cost.weight_bits
    return "" if same else _widths(weight, cost.executed.activation_bits, cost.executed.activation_bits)
