"""Placement of weights and activations in memory levels."""

from dataclasses import dataclass
from itertools import product

import numpy as np

from hw_models.sections import Memory
from hw_models.target import Target
from hw_models.workload import FloatArray, IntArray


@dataclass(frozen=True)
class Placement:
    """The memory levels that hold all weights and all activations."""

    weights: Memory
    activations: Memory


def placements(target: Target) -> tuple[Placement, ...]:
    """Every combination of levels, weights in the outer loop, each from the nearest level on."""
    return tuple(Placement(*levels) for levels in product(target.levels("weights"), target.levels("activations")))


def occupancies(target: Target, weight_bytes: IntArray, peak_activation_bytes: IntArray) -> FloatArray:
    """Largest share of a level's bytes that each placement takes, `[allocations, placements]`; above 1 it does not fit.

    Args:
        target: the chip.
        weight_bytes: `[allocations]`.
        peak_activation_bytes: `[allocations]`.
    """
    columns = []
    for placement in placements(target):
        shares = np.zeros(len(weight_bytes))
        for level in dict.fromkeys((placement.weights, placement.activations)):
            if level.bytes is not None:
                held = np.where(placement.weights == level, weight_bytes, 0)
                held = held + np.where(placement.activations == level, peak_activation_bytes, 0)
                shares = np.maximum(shares, held / level.bytes)
        columns.append(shares)
    return np.stack(columns, axis=1)


def place(occupancy: FloatArray, cycles: FloatArray) -> IntArray:
    """Position of the fastest placement that fits, `[allocations]`, or of the last if none fits.

    Args:
        occupancy: `[allocations, placements]`.
        cycles: cycles of the whole inference, `[allocations, placements]`.
    """
    time = np.where(occupancy <= 1, cycles, np.inf)
    fastest: IntArray = np.where((occupancy <= 1).any(axis=1), time.argmin(axis=1), occupancy.shape[1] - 1)
    return fastest
