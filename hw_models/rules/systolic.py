"""Time and buffer traffic of a layer on a systolic array, counted as in SCALE-Sim (Samajdar et al., ISPASS 2020).

A layer over M = frames is the product of [M, K] inputs and [K, N] weights, K = input channels * taps, N = output channels. Each
dataflow maps two of the three dimensions to the R rows and C columns of the array, and the third to time:

    dataflow             rows  columns  time   cycles of one fold
    weight_stationary     K       N       M      2 R + C + M - 2
    output_stationary     M       N       K        R + C + K - 2
    input_stationary      K       M       N      2 R + C + N - 2

Larger products are cut into ceil(rows dimension / R) * ceil(columns dimension / C) folds, one after another. Each fills and
drains the array; the second R is the loading of the stationary operand. Without stalls a layer takes

    folds * cycles of one fold - 1

cycles in the simulator's report, which is the index of the last cycle counted from 0.

The groups of a convolution run one after another. A depthwise layer runs channel by channel, with K = taps and N = 1, as
SCALE-Sim 3.0.0 runs layers with `DP` in their name. The simulator has no elementwise layers; a fixed rate of sums is an
assumption.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, assert_never

from hw_models.rules.base import ComputeRule
from hw_models.sections import Bits, Count, NotNegative, Positive
from hw_models.shape import Shape
from hw_models.work import Work
from hw_models.workload import LayerKind

Dataflow = Literal["weight_stationary", "output_stationary", "input_stationary"]


@dataclass(frozen=True)
class BufferAccesses:
    """Words moved between the array and its input, weight and output buffers; partial sums are written once per fold."""

    input_reads: int
    weight_reads: int
    output_writes: int


class SystolicCompute(ComputeRule):
    """Compute time of a systolic array of `rows` by `columns` multipliers (see `systolic`).

    `partial_sum_bits` is the width of a word of the output buffer, `buffer_pj_per_bit` the energy to read or write one bit of any
    of the three buffers.
    """

    general: ClassVar = True

    rule: Literal["systolic_array"]
    rows: Count
    columns: Count
    dataflow: Dataflow
    add_elements_per_cycle: Positive
    partial_sum_bits: Bits
    buffer_pj_per_bit: NotNegative

    def work(self, shape: Shape, activation_bits: int, weight_bits: int) -> Work:
        """Cycles and buffer energy of a layer; only the energy depends on widths."""
        if shape.kind is LayerKind.ADD:
            moved_bits = (shape.inputs + shape.outputs) * activation_bits
            return Work(compute=shape.elements / self.add_elements_per_cycle, energy_pj=self.buffer_pj_per_bit * moved_bits)
        repeats, m, k, n = _products(shape)
        row_folds, column_folds = self._folds(m, k, n)
        match self.dataflow:
            case "weight_stationary":
                fold = 2 * self.rows + self.columns + m - 2
            case "output_stationary":
                fold = self.rows + self.columns + k - 2
            case "input_stationary":
                fold = 2 * self.rows + self.columns + n - 2
            case _:
                assert_never(self.dataflow)
        return Work(
            compute=float(repeats * (row_folds * column_folds * fold - 1)),
            energy_pj=self.buffer_pj_per_bit * self._moved_bits(shape, activation_bits, weight_bits),
        )

    def peak_macs_per_cycle(self, activation_bits: int, weight_bits: int) -> float:
        """Number of multipliers, at any width."""
        return float(self.rows * self.columns)

    def buffer_accesses(self, shape: Shape) -> BufferAccesses:
        """Words read and written by a layer with weights; each fold reads the operands that are not stationary again."""
        repeats, m, k, n = _products(shape)
        row_folds, column_folds = self._folds(m, k, n)
        inputs, weights, outputs = repeats * m * k, repeats * k * n, repeats * m * n
        match self.dataflow:
            case "weight_stationary":
                return BufferAccesses(inputs * column_folds, weights, outputs * row_folds)
            case "output_stationary":
                return BufferAccesses(inputs * column_folds, weights * row_folds, outputs)
            case "input_stationary":
                return BufferAccesses(inputs, weights * column_folds, outputs * row_folds)
            case _:
                assert_never(self.dataflow)

    def _folds(self, m: int, k: int, n: int) -> tuple[int, int]:
        """Folds along rows and columns."""
        along_rows = m if self.dataflow == "output_stationary" else k
        along_columns = m if self.dataflow == "input_stationary" else n
        return -(-along_rows // self.rows), -(-along_columns // self.columns)

    def _moved_bits(self, shape: Shape, activation_bits: int, weight_bits: int) -> int:
        """Bits read and written; partial sums are read back to be added to the next."""
        accesses = self.buffer_accesses(shape)
        partial_sums = 2 * accesses.output_writes - shape.outputs
        operands = accesses.input_reads * activation_bits + accesses.weight_reads * weight_bits
        return operands + partial_sums * self.partial_sum_bits


def _products(shape: Shape) -> tuple[int, int, int, int]:
    """Number of matrix products of a layer, and M, K, N of one."""
    if shape.kind is LayerKind.DEPTHWISE:
        return shape.out_channels, shape.frames, shape.taps, 1
    inputs, outputs = shape.in_channels // shape.groups, shape.out_channels // shape.groups
    return shape.groups, shape.frames, inputs * shape.taps, outputs
