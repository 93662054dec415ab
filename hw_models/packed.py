"""The exact size of the packed weight file.

    file header                                  FILE_HEADER_BYTES
    per input channel      normalisation         INPUT_CHANNEL_BYTES      (mean and scale before the first quantizer)
    per weight site        record                RECORD_BYTES
                           weights               ceil(count * bits / 8)   (16: one 16-bit word, 32: float32)
                                                 2 bits: ceil(count / 5)  (-1, 0 or 1; five of them in a byte)
                           scales                2 * (out_channels per channel, else 1); none at 32 bits. The
                                                         groups of a transposed convolution share theirs
                           bias                  4 * out_channels where the layer has one
    per activation site    record                RECORD_BYTES             (scale, zero point and one slope inside)
    per layer              constants             4 each                   (gains and offsets of norms, slopes of channels)

More bits never make the file smaller.
"""

from collections.abc import Collection
from typing import Final

import numpy as np

from hw_models.errors import TargetError
from hw_models.workload import FLOAT_BITS, FloatArray, IntArray, Workload, check_bits

FILE_HEADER_BYTES: Final = 16
RECORD_BYTES: Final = 12
FLOAT_BYTES: Final = 4
SCALE_BYTES: Final = 2
INPUT_CHANNEL_BYTES: Final = 8
TERNARY_BITS: Final = 2
"""Width whose weights are -1, 0 or 1."""
TERNARY_PER_BYTE: Final = 5
"""Ternary weights in a byte: 3^5 = 243 of its 256 values."""


def packed_size_bytes(workload: Workload, bits: IntArray) -> IntArray:
    """Bytes `[allocations]` of the packed file for bit-widths `[allocations, sites]`.

    Raises:
        TargetError: a wrong shape or bit-width.
    """
    check_bits(workload, bits)
    streams = stream_bytes(workload.weight_counts, workload.scale_counts, bits[:, : len(workload.weight_layers)])
    normalisation = INPUT_CHANNEL_BYTES * workload.input_channels
    fixed = FILE_HEADER_BYTES + RECORD_BYTES * len(workload.sites) + FLOAT_BYTES * workload.constant_count + normalisation
    total: IntArray = streams.sum(axis=1) + fixed
    return total


def stream_bytes(weights: IntArray, scales: IntArray, bits: IntArray) -> IntArray:
    """Bytes of the weights and scales of layers, from their numbers and the width of the weights; the arrays broadcast."""
    held = np.where(bits == TERNARY_BITS, -(-weights // TERNARY_PER_BYTE), (weights * bits + 7) >> 3)
    total: IntArray = held + np.where(bits == FLOAT_BITS, 0, SCALE_BYTES * scales)
    return total


def average_weight_bits(workload: Workload, bits: IntArray, sites: Collection[str] | None = None) -> FloatArray:
    """Mean weight bit-width `[allocations]`, weighted by the number of weights; biases and scales are not counted.

    Args:
        workload: the network.
        bits: `[allocations, sites]`.
        sites: weight sites to average over, or None for all. Papers quote the mean over the layers of the TCN.

    Raises:
        TargetError: a wrong shape or bit-width, an unknown weight site, or no site at all.
    """
    check_bits(workload, bits)
    chosen = workload.weight_sites if sites is None else tuple(sites)
    if unknown := [site for site in chosen if site not in workload.weight_sites]:
        raise TargetError(f"unknown weight site '{unknown[0]}'; workload '{workload.name}' lacks it")
    if not chosen:
        raise TargetError("no weight sites to average over; wanted at least one")
    columns = [workload.column[site] for site in chosen]
    counts = workload.weight_counts[columns].astype(np.float64)
    mean: FloatArray = bits[:, columns] @ counts / counts.sum()
    return mean
