"""Compiles a target and a workload into tables, so that the cost of an allocation is a gather and a sum.

The cost of a layer depends only on its shape, on the widths of its weights, inputs and output, and on the memory levels that hold
all weights and all activations. The tables hold every combination that the target distinguishes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from hw_models.dataflow.table import RESOURCES, DataflowTable, compile_dataflow
from hw_models.errors import TargetError
from hw_models.layer_cost import (
    Executed,
    aligned,
    execute,
    executed_activation,
    layer_energy_pj,
    layer_time,
    stored_weight_bytes,
)
from hw_models.placement import placements
from hw_models.rules.dataflow import DataflowCompute
from hw_models.sections import Precisions
from hw_models.shape import Shape, executed_shape
from hw_models.target import Target
from hw_models.workload import FLOAT_BITS, WIDTHS, FloatArray, IntArray, Layer, LayerKind, Workload

WIDTH_INDEX: Final[npt.NDArray[np.intp]] = np.full(FLOAT_BITS + 1, -1, np.intp)
"""Position of a bit-width on the width axes of the tables."""
WIDTH_INDEX[list(WIDTHS)] = np.arange(len(WIDTHS))


@dataclass(frozen=True, eq=False)
class CostTable:
    """Costs of every layer of a workload on a target at every bit-width (`WIDTHS`, the axes W, A and O).

    Attributes:
        target: the chip.
        workload: the network.
        cycles: `[placements, layers, W, A, O]` cycles by placement (`placement.placements`) and by weight, input and output
            width; NaN if the target refuses the widths.
        energy_pj: energy, on the same axes; NaN if the target states none.
        weight_bytes: `[layers, W, A]` stored bytes; 0 if the target refuses the widths.
        site_bytes: `[activation sites, A]` bytes of each tensor over the frames of an inference; 0 if the target refuses the
            width.
        state_bytes: `[activation sites, A]` bytes of each tensor kept from frame to frame; 0 unless streaming.
        live: `[layers, slots]` columns of `site_bytes` alive while a layer runs, padded with the number of sites.
        inputs: `[layers, operands]` columns of `bits` that a layer reads, at least two; the last is repeated.
        weights: `[layers]` column of `bits` of a layer's weights, or of its first input if it has no weights.
        outputs: `[layers]` column of `bits` that a layer writes.
        dataflow: on an FPGA, the foldings and their resources; `cycles` and `energy_pj` are 0 there, because all layers run at
            once.
    """

    target: Target
    workload: Workload
    cycles: FloatArray
    energy_pj: FloatArray
    weight_bytes: IntArray
    site_bytes: IntArray
    state_bytes: IntArray
    live: npt.NDArray[np.int64]
    inputs: npt.NDArray[np.int64]
    weights: npt.NDArray[np.int64]
    outputs: npt.NDArray[np.int64]
    dataflow: DataflowTable | None

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the costs in `cost.Costs` that depend on this target, which a search may optimise."""
        energy = () if self.target.energy is None else ("energy_uj",)
        resources = () if self.dataflow is None else ("interval_ms", *RESOURCES)
        limited = any(level.bytes is not None for level in self.target.memory) or self.dataflow is not None
        occupancy = ("occupancy",) if limited else ()
        return ("latency_ms", "weight_bytes", "peak_activation_bytes", *energy, *occupancy, *resources)


def compile_target(target: Target, workload: Workload, known: "KnownTables | None" = None) -> CostTable:
    """Compile the tables of a target for a workload.

    Args:
        target: the chip.
        workload: the network.
        known: tables of layers for the same target. They are taken from there, and new ones are added.

    Raises:
        TargetError: the target cannot run a layer at any width.
    """
    tables = all_layer_tables(target, workload, workload.layers, known)
    column = workload.column
    state = [workload.state_frames[site] for site in workload.site_channels]
    return CostTable(
        target=target,
        workload=workload,
        cycles=np.stack([table.cycles for table in tables], axis=1),
        energy_pj=np.stack([table.energy_pj for table in tables], axis=1),
        weight_bytes=np.stack([table.weight_bytes for table in tables]),
        site_bytes=_tensor_bytes(target, workload, [workload.site_positions[site] for site in workload.site_channels]),
        state_bytes=_tensor_bytes(target, workload, state),
        live=_live_sites(workload),
        inputs=_inputs(workload),
        weights=np.array([column[x.weight_site or x.input_sites[0]] for x in workload.layers], np.int64),
        outputs=np.array([column[x.output_site] for x in workload.layers], np.int64),
        dataflow=compile_dataflow(target, workload) if isinstance(target.compute, DataflowCompute) else None,
    )


def layer_shape(target: Target, workload: Workload, layer: Layer) -> Shape:
    """A layer of a workload as the target runs it."""
    return executed_shape(layer, workload.frames, target.dilation, streaming=workload.streaming)


@dataclass(frozen=True, eq=False)
class LayerTables:
    """One layer's part of a `CostTable`."""

    cycles: FloatArray
    energy_pj: FloatArray
    weight_bytes: IntArray


KnownTables = dict[tuple[Shape, LayerKind, int], LayerTables]
"""Tables of layers by what they depend on, for one target."""


def all_layer_tables(
    target: Target, workload: Workload, layers: Sequence[Layer], known: KnownTables | None = None
) -> list[LayerTables]:
    """Compile the tables of layers, which may be those of the workload with fewer channels; `known` as in `compile_target`.

    Raises:
        TargetError: the target cannot run a layer at any width.
    """
    blocks: KnownTables = {} if known is None else known
    found = []
    for layer in layers:
        shape = layer_shape(target, workload, layer)
        if not target.compute.general and (layer.groups > 1 or layer.kernel_height > 1):
            wrong = f"layer '{layer.name}': {layer.groups} groups, a kernel of {layer.kernel_height} x {layer.kernel_size}"
            raise TargetError(f"{wrong}; target '{target.name}' charges kernels along the frames, dense or depthwise")
        if target.limits is not None and shape.taps > target.limits.max_kernel_size:
            wrong = f"layer '{layer.name}': {shape.taps} taps once dilated"
            wanted = f"{target.limits.max_kernel_size} or fewer"
            raise TargetError(f"{wrong}; wanted {wanted} on target '{target.name}'")
        key = (shape, layer.kind, layer.out_channels)
        if key not in blocks:
            blocks[key] = _layer_tables(target, layer, shape)
        found.append(blocks[key])
    return found


def _layer_tables(target: Target, layer: Layer, shape: Shape) -> LayerTables:
    size, levels = len(WIDTHS), placements(target)
    cycles = np.full((len(levels), size, size, size), np.nan)
    energy = np.full_like(cycles, np.nan)
    weight_bytes = np.zeros((size, size), np.int64)
    known: dict[tuple[Executed, int], tuple[list[float], list[float]]] = {}
    outputs = _output_groups(target.precisions)
    for w, weight_bits in enumerate(WIDTHS):
        for a, activation_bits in enumerate(WIDTHS):
            for o in outputs:
                executed = execute(target.precisions, layer.kind, activation_bits, weight_bits, WIDTHS[o[0]])
                if executed is None:
                    continue
                stored = stored_weight_bytes(target, layer, shape, weight_bits, executed)
                key = (executed, stored)
                if key not in known:
                    known[key] = _times_and_energies(target, shape, executed, stored)
                times, energies = known[key]
                cycles[:, w, a, o], energy[:, w, a, o] = np.array(times)[:, None], np.array(energies)[:, None]
                weight_bytes[w, a] = stored
        if layer.weight_site is None:  # it has no weights: every weight width is the first
            cycles[:] = cycles[:, :1]
            energy[:] = energy[:, :1]
            break
    return LayerTables(cycles, energy, weight_bytes)


def _output_groups(precisions: Precisions) -> list[list[int]]:
    """Positions on the output axis, grouped by the width in which outputs are written."""
    groups: dict[int, list[int]] = {}
    for o, bits in enumerate(WIDTHS):
        if (held := executed_activation(precisions, bits)) is not None:
            groups.setdefault(held, []).append(o)
    return list(groups.values())


def _times_and_energies(target: Target, shape: Shape, executed: Executed, stored: int) -> tuple[list[float], list[float]]:
    """Cycles and energy at every placement."""
    if isinstance(target.compute, DataflowCompute):
        return [0.0] * len(placements(target)), [0.0 if target.energy else math.nan] * len(placements(target))
    work = target.compute.work(shape, executed.activation_bits, executed.weight_bits)
    cycles, energies = [], []
    for placement in placements(target):
        total = layer_time(target, shape, executed, work, stored, placement).total
        cycles.append(total)
        energies.append(layer_energy_pj(target, shape, executed, work, stored, placement, total))
    return cycles, energies


def _tensor_bytes(target: Target, workload: Workload, frames: list[int]) -> IntArray:
    """Bytes of the given numbers of frames of each activation tensor at each width."""
    frame_bytes = (frame_bytes_of(target, channels) for channels in workload.site_channels.values())
    rows = [
        [aligned(count * size, target.storage.alignment_bytes) for size in sizes]
        for sizes, count in zip(frame_bytes, frames, strict=True)
    ]
    return np.array(rows, np.int64)


def frame_bytes_of(target: Target, channels: int) -> list[int]:
    """Bytes of a frame of an activation tensor at each width, whole ones; 0 if the target refuses the width."""
    precisions = target.precisions
    return [-(-channels * precisions.held_bits(executed_activation(precisions, bits) or 0) // 8) for bits in WIDTHS]


def _inputs(workload: Workload) -> IntArray:
    """Columns of `bits` that each layer reads."""
    operands = max(2, *(len(layer.input_sites) for layer in workload.layers))
    rows = [layer.input_sites + (operands - len(layer.input_sites)) * layer.input_sites[-1:] for layer in workload.layers]
    return np.array([[workload.column[site] for site in row] for row in rows], np.int64)


def _live_sites(workload: Workload) -> npt.NDArray[np.int64]:
    """Tensors alive while each layer runs.

    A tensor lives from the first layer that writes it to the last that reads it; an input of the network from the start, an
    output to the end. A layer's output never shares the bytes of its inputs.
    """
    sites = workload.activation_sites
    last = len(workload.layers) - 1
    born = dict.fromkeys(sites, 0)
    dies = dict.fromkeys(sites, last)
    born |= {site: numbers[0] for site, numbers in workload.writers.items()}
    for i, layer in enumerate(workload.layers):
        for site in layer.input_sites:
            dies[site] = i
    alive = [[k for k, site in enumerate(sites) if born[site] <= i <= dies[site]] for i in range(last + 1)]
    slots = max(len(columns) for columns in alive)
    return np.array([columns + [len(sites)] * (slots - len(columns)) for columns in alive], np.int64)
