"""Two array rules against ZigZag's analytical model (Mei et al., IEEE TC 2021): do both order layers alike?

ZigZag searches the order of the loops of a layer on a described array with described memories, for the least latency. It is
another model with other assumptions, so what is compared is the order (Spearman) of layers, and the errors say how far the
assumptions lie apart:

- `systolic-weight-stationary`: the array and its buffers alone, without a memory behind them. The rule loads, fills and drains
  the array for every fold and writes every result as a 32-bit sum; ZigZag drains once, loads weights behind the arithmetic where
  its ports allow it, and writes last results in 8 bits.
- `bitfusion`: array, buffers and memory. The authors' simulator, which the rule follows, fetches outputs from memory before they
  are first written, pads them to whole columns, and reads an input from its buffer for each column; ZigZag does none of the
  three, so it moves about half as much where outputs dominate.
"""

from typing import Any, Final

from hw_models.rules.bit_flexible import BitFlexibleCompute, BufferEnergy
from hw_models.rules.systolic import SystolicCompute
from hw_models.shape import Shape
from hw_models.target import Target, load_target
from hw_models.workload import LayerKind

SETTING: Final = (
    "Single layers; the systolic array without memory behind it, BitFusion with it. Other assumptions, so the order counts."
)
REQUIREMENTS: tuple[str, ...] = ("zigzag-dse==3.9.1", "six")

# Frames, channels in and out, taps: layers of TCN separators, and dense kernels of 3 and 5 taps.
LAYERS: Final = (
    (250, 64, 128, 1),
    (250, 128, 64, 1),
    (250, 514, 64, 1),
    (250, 64, 514, 1),
    (500, 96, 192, 1),
    (100, 128, 512, 1),
    (100, 512, 128, 1),
    (400, 256, 512, 1),
    (480, 32, 32, 1),
    (60, 64, 64, 1),
    (250, 64, 64, 3),
    (200, 32, 64, 5),
)
NARROW_LAYERS: Final = ((250, 64, 128, 1), (250, 514, 64, 1), (400, 256, 512, 1))
PARTIAL_SUM_BITS: Final = 32
PLENTY_BITS: Final = 8 * 2**22
"""Room in the buffers of the systolic array, whose rule knows no stalls, and in memory."""


def cases() -> list[dict[str, Any]]:
    """Every layer with 8-bit operands on both arrays, some with narrow operands on the bit-flexible one."""
    systolic, bitfusion = load_target("systolic-weight-stationary"), load_target("bitfusion")
    return [
        *(_case(systolic, _systolic_array(systolic), layer, 8) for layer in LAYERS),
        *(_case(bitfusion, _bit_flexible_array(bitfusion, 8), layer, 8) for layer in LAYERS),
        *(_case(bitfusion, _bit_flexible_array(bitfusion, bits), layer, bits) for bits in (4, 2) for layer in NARROW_LAYERS),
    ]


def predictions(cases: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Cycles and energy by the rule, multiplications included."""
    results = []
    for case in cases:
        target = load_target(case["target"])
        shape = Shape(LayerKind.CONV, case["in_channels"], case["out_channels"], case["taps"], case["frames"], 0)
        work = target.compute.work(shape, case["bits"], case["bits"])
        results.append({"cycles": work.total, "energy_pj": work.energy_pj + _pj_per_mac(target) * shape.macs})
    return results


def _case(target: Target, accelerator: dict[str, Any], layer: tuple[int, int, int, int], bits: int) -> dict[str, Any]:
    frames, inputs, outputs, taps = layer
    return {
        "name": f"{target.name}, {frames} frames, {inputs} to {outputs} channels, {taps} taps, {bits} bits",
        "target": target.name,
        "accelerator": accelerator,
        "frames": frames,
        "in_channels": inputs,
        "out_channels": outputs,
        "taps": taps,
        "bits": bits,
        "partial_sum_bits": PARTIAL_SUM_BITS,
        "output_bits": target.precisions.output_bits or bits,
    }


def _pj_per_mac(target: Target) -> float:
    """Energy of an 8-bit multiply-accumulate that the target states beside its rule."""
    pairs = target.energy.macs if target.energy is not None else ()
    return next((mac.pj_per_mac for mac in pairs if (mac.activation_bits, mac.weight_bits) == (8, 8)), 0.0)


def _systolic_array(target: Target) -> dict[str, Any]:
    rule = target.compute
    if not isinstance(rule, SystolicCompute):
        raise TypeError(f"target '{target.name}': found rule '{rule.rule}'; wanted 'systolic_array'")
    buffer = BufferEnergy(read_pj_per_bit=rule.buffer_pj_per_bit, write_pj_per_bit=rule.buffer_pj_per_bit)
    words, sums = 8 * rule.rows, PARTIAL_SUM_BITS * rule.columns
    memories = {
        "weight_registers": _memory(8, 8, None, ("I2",), served=()),
        "sum_registers": _memory(PARTIAL_SUM_BITS, PARTIAL_SUM_BITS, None, ("O",), served=("D1",)),
        "weight_buffer": _memory(PLENTY_BITS, 8 * rule.columns, buffer, ("I2",)),
        "input_buffer": _memory(PLENTY_BITS, words, buffer, ("I1",)),
        "output_buffer": _memory(PLENTY_BITS, sums, buffer, ("O",)),
    }
    return _accelerator(memories, rule.rows, rule.columns, _pj_per_mac(target), systolic=True)


def _bit_flexible_array(target: Target, bits: int) -> dict[str, Any]:
    rule = target.compute
    if not isinstance(rule, BitFlexibleCompute):
        raise TypeError(f"target '{target.name}': found rule '{rule.rule}'; wanted 'bit_flexible_array'")
    energy = rule.energy
    rows = round(rule.peak_macs_per_cycle(bits, bits)) // rule.columns
    memory = BufferEnergy(read_pj_per_bit=energy.memory_pj_per_bit, write_pj_per_bit=energy.memory_pj_per_bit)
    sums = PARTIAL_SUM_BITS * rule.columns
    memories = {
        "sum_registers": _memory(PARTIAL_SUM_BITS, PARTIAL_SUM_BITS, None, ("O",), served=("D1",)),
        "weight_buffer": _memory(8 * rule.weight_buffer_bytes, bits * rows * rule.columns, energy.weight_buffer, ("I2",)),
        "input_buffer": _memory(8 * rule.input_buffer_bytes, bits * rows, energy.input_buffer, ("I1",)),
        "output_buffer": _memory(8 * rule.output_buffer_bytes, sums, energy.output_buffer, ("O",)),
        "dram": _memory(1000 * PLENTY_BITS, rule.memory_bits_per_cycle, memory, ("I1", "I2", "O"), one_port=True),
    }
    return _accelerator(memories, rows, rule.columns, energy.core_pj_per_cycle / (rows * rule.columns), systolic=False)


def _accelerator(memories: dict[str, Any], rows: int, columns: int, pj_per_mac: float, *, systolic: bool) -> dict[str, Any]:
    """ZigZag's description of an array: inputs along D1, outputs along D2."""
    array = {"unit_energy": pj_per_mac, "unit_area": 1.0, "dimensions": ["D1", "D2"], "sizes": [rows, columns]}
    if systolic:
        array["systolic_dimensions"] = ["D1", "D2"]
    return {"name": "described", "memories": memories, "operational_array": array}


def _memory(
    size_bits: int,
    bits_per_cycle: int,
    energy: BufferEnergy | None,
    operands: tuple[str, ...],
    *,
    served: tuple[str, ...] = ("D1", "D2"),
    one_port: bool = False,
) -> dict[str, Any]:
    """A memory of ZigZag with a read and a write port (outputs: two of each, towards the array and away), or one for both."""
    width = {"bandwidth_min": min(8, bits_per_cycle), "bandwidth_max": bits_per_cycle}
    ports: list[dict[str, Any]]
    if one_port:
        moves = [
            f"{operand}, {move}"
            for operand in operands
            for move in (("fh", "tl", "fl", "th") if operand == "O" else ("fh", "tl"))
        ]
        ports = [{"name": "rw_port_1", "type": "read_write", **width, "allocation": moves}]
    else:
        operand = operands[0]
        ports = [
            {"name": "r_port_1", "type": "read", **width, "allocation": [f"{operand}, tl"]},
            {"name": "w_port_1", "type": "write", **width, "allocation": [f"{operand}, fh"]},
        ]
        if operand == "O":
            ports += [
                {"name": "r_port_2", "type": "read", **width, "allocation": ["O, th"]},
                {"name": "w_port_2", "type": "write", **width, "allocation": ["O, fl"]},
            ]
    return {
        "size": size_bits,
        "r_cost": 0.0 if energy is None else energy.read_pj_per_bit * bits_per_cycle,
        "w_cost": 0.0 if energy is None else energy.write_pj_per_bit * bits_per_cycle,
        "area": 0.0,
        "latency": 1,
        "operands": list(operands),
        "ports": ports,
        "served_dimensions": list(served),
    }
