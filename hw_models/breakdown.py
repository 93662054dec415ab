"""Costs of each layer of one allocation, and what bounds it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from hw_models.compile import WIDTH_INDEX, CostTable, layer_shape
from hw_models.cost import LayerSums, layer_widths, peak_bytes, placement_of, refusal, runnable
from hw_models.dataflow.table import DataflowTable, design
from hw_models.errors import TargetError
from hw_models.layer_cost import Executed, activation_bits_moved, execute, layer_energy_pj, layer_time
from hw_models.placement import occupancies, place
from hw_models.shape import Shape
from hw_models.workload import FloatArray, IntArray, LayerKind, check_bits


@dataclass(frozen=True)
class LayerCost:
    """Costs of one layer of one allocation.

    Attributes:
        layer: its name.
        kind: its operation.
        weight_bits: chosen width of the weights; None for an `add`.
        activation_bits: chosen width of the inputs; of several, the widest.
        output_bits: chosen width of the output.
        executed: the widths that the layer runs in; 0 weight bits for an `add`.
        macs: multiply-accumulates of the network, without those that dilation modes add.
        weight_bytes: stored weights and constants.
        activation_bytes: inputs and outputs, each counted once.
        cycles: duration.
        latency_ms: duration.
        energy_uj: energy; NaN if the target states none, and on an FPGA, where all layers run at once.
        utilisation: multiply-accumulates as a share of the peak number at these widths in the layer's time; on an FPGA, the share
            of the time in which the layer's circuit works.
        bound: the largest part of the layer's time: `compute`, `overhead`, the name of a memory level, or `buffers` (traffic
            that the compute rule models). On an FPGA: `compute` for the slowest circuits, `slack` for those that wait for them.
        resources: on an FPGA, `lut`, `bram18`, `uram`, `dsp`, and the parallelism `pe` and `simd`.
    """

    layer: str
    kind: LayerKind
    weight_bits: int | None
    activation_bits: int
    output_bits: int
    executed: Executed
    macs: int
    weight_bytes: int
    activation_bytes: int
    cycles: float
    latency_ms: float
    energy_uj: float
    utilisation: float
    bound: str
    resources: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Performance:
    """Performance of a layer on its chip."""

    cycles: float
    energy_pj: float
    utilisation: float
    bound: str
    resources: Mapping[str, int] = field(default_factory=dict)


def per_layer(table: CostTable, bits_row: IntArray) -> tuple[LayerCost, ...]:
    """Costs of each layer of one allocation `[sites]`, in execution order.

    Raises:
        TargetError: a wrong shape or width, or a width the target refuses; names the layer.
    """
    if not runnable(table, bits_row[None])[0]:
        raise TargetError(refusal(table, bits_row))
    target, workload = table.target, table.workload
    circuits = None if table.dataflow is None else _circuits(table.dataflow, bits_row)
    costs: list[LayerCost] = []
    for i, layer in enumerate(workload.layers):
        activation, weight, output = layer_widths(table, bits_row, i)
        executed = execute(target.precisions, layer.kind, activation, weight, output)
        if executed is None:
            raise AssertionError(f"layer '{layer.name}' runs and is refused")
        shape = layer_shape(target, workload, layer)
        stored = int(table.weight_bytes[i, WIDTH_INDEX[weight], WIDTH_INDEX[activation]])
        macs = layer.macs(workload.frames)
        done = _run(table, bits_row, shape, executed, stored, macs) if circuits is None else circuits[i]
        costs.append(
            LayerCost(
                layer=layer.name,
                kind=layer.kind,
                weight_bits=None if layer.weight_site is None else weight,
                activation_bits=activation,
                output_bits=output,
                executed=executed,
                macs=macs,
                weight_bytes=stored,
                activation_bytes=-(-activation_bits_moved(table.target.precisions, shape, executed) // 8),
                cycles=done.cycles,
                latency_ms=done.cycles / target.clock.clock_hz * 1e3,
                energy_uj=done.energy_pj / 1e6,
                utilisation=done.utilisation,
                bound=done.bound,
                resources=done.resources,
            )
        )
    return tuple(costs)


@dataclass(frozen=True, eq=False)
class LayerTimes:
    """Duration and energy of every layer of many allocations.

    Attributes:
        latency_ms: `[allocations, layers]`, layers in execution order; NaN where the target refuses the allocation.
        energy_uj: the same; NaN also if the target states no energy, and on an FPGA.
    """

    latency_ms: FloatArray
    energy_uj: FloatArray


def layer_times(table: CostTable, bits: IntArray) -> LayerTimes:
    """Durations and energies of `per_layer` for allocations `[allocations, sites]`, thousands at a time.

    Raises:
        TargetError: a wrong shape or width.
    """
    check_bits(table.workload, bits)
    sums = LayerSums.of(table, bits)
    can = sums.runnable
    latency_ms, energy_uj = np.full((2, len(bits), len(table.workload.layers)), np.nan)
    milliseconds = 1e3 / table.target.clock.clock_hz
    if table.dataflow is not None:
        for row in np.flatnonzero(can):
            latency_ms[row] = [one.cycles * milliseconds for one in design(table.dataflow, bits[row])]
        return LayerTimes(latency_ms, energy_uj)
    at = place(occupancies(table.target, sums.weight_bytes, peak_bytes(table, bits)), sums.cycles)[can, None]
    widths = (bits[:, table.weights], bits[:, table.inputs].max(axis=2), bits[:, table.outputs])
    where = (at, np.arange(len(table.workload.layers)), *(WIDTH_INDEX[each[can]] for each in widths))
    latency_ms[can] = table.cycles[where] * milliseconds
    energy_uj[can] = table.energy_pj[where] / 1e6
    return LayerTimes(latency_ms, energy_uj)


def _run(table: CostTable, bits_row: IntArray, shape: Shape, executed: Executed, stored: int, macs: int) -> _Performance:
    """A layer on a chip that runs the layers one after another."""
    target, placement = table.target, placement_of(table, bits_row)
    work = target.compute.work(shape, executed.activation_bits, executed.weight_bits)
    time = layer_time(target, shape, executed, work, stored, placement)
    roof = target.compute.peak_macs_per_cycle(executed.activation_bits, executed.weight_bits) if macs else 1.0
    return _Performance(
        cycles=time.total,
        energy_pj=layer_energy_pj(target, shape, executed, work, stored, placement, time.total),
        utilisation=macs / (roof * time.total) if time.total else 0.0,
        bound=time.bound,
    )


def _circuits(table: DataflowTable, bits_row: IntArray) -> tuple[_Performance, ...]:
    """All layers on an FPGA, where each is a circuit of its own and all work at once."""
    designs = design(table, bits_row)
    interval = max(one.cycles for one in designs)
    return tuple(
        _Performance(
            cycles=one.cycles,
            energy_pj=float("nan"),
            utilisation=one.cycles / interval,
            bound="compute" if one.cycles == interval else "slack",
            resources={
                "lut": one.lut,
                "bram18": one.bram18,
                "uram": one.uram,
                "dsp": one.dsp,
                "pe": one.folding.pe,
                "simd": one.folding.simd,
            },
        )
        for one in designs
    )
