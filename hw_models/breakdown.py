"""What each layer of one allocation costs, and what bounds it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from hw_models.compile import WIDTH_INDEX, CostTable, layer_shape
from hw_models.cost import layer_widths, placement_of, refusal, runnable
from hw_models.dataflow.table import DataflowTable, design
from hw_models.errors import TargetError
from hw_models.layer_cost import Executed, execute, layer_energy_pj, layer_time
from hw_models.shape import Shape
from hw_models.workload import IntArray, LayerKind


@dataclass(frozen=True)
class LayerCost:
    """One layer of one allocation.

    Attributes:
        layer: its name.
        kind: what it computes.
        weight_bits: the width chosen; None for an `add`.
        activation_bits: that of its inputs, the wider of two.
        output_bits: that of its output.
        executed: the widths it runs in; 0 weight bits for an `add`.
        macs: multiply-accumulates, free of what dilation modes add.
        weight_bytes: weights and constants as stored.
        activation_bytes: inputs read and outputs written once.
        cycles: from its start to its end.
        latency_ms: the same as time.
        energy_uj: NaN where the target states none, and on an FPGA, whose layers run at once.
        utilisation: share of the multiply-accumulates that the chip could have done in the layer's time at these widths; on an
            FPGA, the share of the time in which the layer's circuit works.
        bound: what the layer waits for most: `compute`, `overhead`, the name of a memory level, or `buffers` (traffic that the
            compute rule models); on an FPGA `compute` for the circuits that set the pace, `slack` for those that wait for them.
        resources: of an FPGA: `lut`, `bram18`, `uram`, `dsp`, and the parallelism `pe` and `simd`.
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
    """What a layer does on its chip."""

    cycles: float
    energy_pj: float
    utilisation: float
    bound: str
    resources: Mapping[str, int] = field(default_factory=dict)


def per_layer(table: CostTable, bits_row: IntArray) -> tuple[LayerCost, ...]:
    """Each layer of one allocation `[sites]`, in execution order.

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
                activation_bytes=-(-(shape.inputs * executed.activation_bits + shape.outputs * executed.output_bits) // 8),
                cycles=done.cycles,
                latency_ms=done.cycles / target.clock.clock_hz * 1e3,
                energy_uj=done.energy_pj / 1e6,
                utilisation=done.utilisation,
                bound=done.bound,
                resources=done.resources,
            )
        )
    return tuple(costs)


def _run(table: CostTable, bits_row: IntArray, shape: Shape, executed: Executed, stored: int, macs: int) -> _Performance:
    """A layer on a chip that runs one after another."""
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
    """Every layer as a circuit of its own, all of them working at once."""
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
