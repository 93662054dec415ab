"""Compiles a target and a workload into tables, so that the cost of an allocation is a gather and a sum.

The cost of a layer depends on nothing but its shape and the widths of its weights, inputs and output:
`layer_cost` is asked once for each combination that the target tells apart.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from hw_models.errors import TargetError
from hw_models.layer_cost import aligned, execute, executed_activation, layer_cycles, stored_weight_bytes
from hw_models.shape import Shape, executed_shape
from hw_models.target import Target
from hw_models.workload import FLOAT_BITS, WIDTHS, FloatArray, IntArray, Layer, LayerKind, Workload

WIDTH_INDEX: Final[npt.NDArray[np.int32]] = np.full(FLOAT_BITS + 1, -1, np.int32)
"""Position of a bit-width on the width axes of the tables."""
WIDTH_INDEX[list(WIDTHS)] = np.arange(len(WIDTHS), dtype=np.int32)


@dataclass(frozen=True, eq=False)
class CostTable:
    """A target's cost of every layer of a workload at every bit-width (`WIDTHS`, the axes W, A and O).

    Attributes:
        target: the chip.
        workload: the network.
        cycles: `[layers, W, A, O]` cycles by weight, input and output width; NaN where the target refuses.
        weight_bytes: `[layers, W, A]` bytes stored, 0 where the target refuses.
        site_bytes: `[activation sites, A]` bytes of each tensor over all frames, 0 where the target refuses.
        live: `[layers, slots]` columns of `site_bytes` alive while a layer runs, padded with the number of
            sites.
        inputs: `[layers, 2]` columns of `bits` a layer reads (twice the same where it reads one).
        weights: `[layers]` column of `bits` of a layer's weights, or that of its first input where it has
            none.
        outputs: `[layers]` column of `bits` a layer writes.
    """

    target: Target
    workload: Workload
    cycles: FloatArray
    weight_bytes: IntArray
    site_bytes: IntArray
    live: npt.NDArray[np.int64]
    inputs: npt.NDArray[np.int64]
    weights: npt.NDArray[np.int64]
    outputs: npt.NDArray[np.int64]


def compile_target(target: Target, workload: Workload) -> CostTable:
    """The tables of a target for a workload.

    Raises:
        TargetError: a layer the target cannot run at any width; names the layer.
    """
    layers = workload.layers
    shapes = [executed_shape(layer, workload.frames, target.dilation) for layer in layers]
    for layer, shape in zip(layers, shapes, strict=True):
        if target.limits is not None and shape.taps > target.limits.max_kernel_size:
            found = f"layer '{layer.name}': {shape.taps} taps once dilated"
            wanted = f"{target.limits.max_kernel_size} or fewer"
            raise TargetError(f"{found}; wanted {wanted} on target '{target.name}'")
    blocks: dict[Shape, tuple[FloatArray, IntArray]] = {}
    for layer, shape in zip(layers, shapes, strict=True):
        if shape not in blocks:
            blocks[shape] = _layer_tables(target, layer, shape)
    column = workload.column
    return CostTable(
        target=target,
        workload=workload,
        cycles=np.stack([blocks[shape][0] for shape in shapes]),
        weight_bytes=np.stack([blocks[shape][1] for shape in shapes]),
        site_bytes=_site_bytes(target, workload),
        live=_live_sites(workload),
        inputs=np.array([[column[x.input_sites[0]], column[x.input_sites[-1]]] for x in layers], np.int64),
        weights=np.array([column[x.weight_site or x.input_sites[0]] for x in layers], np.int64),
        outputs=np.array([column[x.output_site] for x in layers], np.int64),
    )


def _layer_tables(target: Target, layer: Layer, shape: Shape) -> tuple[FloatArray, IntArray]:
    """Cycles `[W, A, O]` and stored bytes `[W, A]` of one layer."""
    size = len(WIDTHS)
    cycles = np.full((size, size, size), np.nan)
    weight_bytes = np.zeros((size, size), np.int64)
    known: dict[tuple[object, int], float] = {}
    for w, weight_bits in enumerate(WIDTHS):
        for a, activation_bits in enumerate(WIDTHS):
            for o, output_bits in enumerate(WIDTHS):
                executed = execute(target.precisions, layer.kind, activation_bits, weight_bits, output_bits)
                if executed is None:
                    continue
                stored = stored_weight_bytes(target, layer, shape, weight_bits, executed)
                key = (executed, stored)
                if key not in known:
                    known[key] = layer_cycles(target, shape, executed, stored).total
                cycles[w, a, o] = known[key]
                weight_bytes[w, a] = stored
        if layer.kind is LayerKind.ADD:  # it has no weights: every weight width is the first
            cycles[:] = cycles[w]
            break
    return cycles, weight_bytes


def _site_bytes(target: Target, workload: Workload) -> IntArray:
    """Bytes of each activation tensor at each width: whole frames, each rounded up to whole bytes."""
    held = [executed_activation(target.precisions, bits) or 0 for bits in WIDTHS]
    rows = [
        [aligned(workload.frames * -(-channels * bits // 8), target.storage.alignment_bytes) for bits in held]
        for channels in workload.site_channels.values()
    ]
    return np.array(rows, np.int64)


def _live_sites(workload: Workload) -> npt.NDArray[np.int64]:
    """Tensors alive while each layer runs.

    A tensor lives from the layer that writes it to the last that reads it; an input of the network from the
    start, an output to the end. A layer's output never shares the bytes of its inputs.
    """
    sites = workload.activation_sites
    last = len(workload.layers) - 1
    born = dict.fromkeys(sites, 0)
    dies = dict.fromkeys(sites, last)
    for i, layer in enumerate(workload.layers):
        born[layer.output_site] = i
    for i, layer in enumerate(workload.layers):
        for site in layer.input_sites:
            dies[site] = i
    alive = [[k for k, site in enumerate(sites) if born[site] <= i <= dies[site]] for i in range(last + 1)]
    slots = max(len(columns) for columns in alive)
    return np.array([columns + [len(sites)] * (slots - len(columns)) for columns in alive], np.int64)
