"""Where weights and activations lie: what fits on the chip decides more than arithmetic."""

from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from hw_models.sections import Memory
from hw_models.target import Target
from hw_models.workload import IntArray


@dataclass(frozen=True)
class Placement:
    """The memory levels that hold all weights and all activations."""

    weights: Memory
    activations: Memory


def placements(target: Target) -> tuple[Placement, ...]:
    """Every combination of levels, those of the weights outermost, each nearest first."""
    return tuple(Placement(*levels) for levels in product(target.levels("weights"), target.levels("activations")))


def place(target: Target, weight_bytes: IntArray, peak_activation_bytes: IntArray) -> tuple[IntArray, npt.NDArray[np.bool_]]:
    """Where the tensors of allocations lie, and whether they fit at all.

    Activations take the nearest level that has room for their peak; weights the nearest that has room for all of them, beside
    the activations if those lie there too. What fits nowhere is charged as if it lay in the last level.

    Args:
        target: the chip.
        weight_bytes: `[allocations]`.
        peak_activation_bytes: `[allocations]`.

    Returns:
        `[allocations]` positions in `placements(target)`, and `[allocations]` whether both fit.
    """
    activation_levels, weight_levels = target.levels("activations"), target.levels("weights")
    none = np.zeros_like(weight_bytes)
    activations, fits = _nearest([_capacity(level) + none for level in activation_levels], peak_activation_bytes)
    rooms = []
    for level in weight_levels:
        shared = np.array([level == other for other in activation_levels])[activations]
        rooms.append(_capacity(level) - np.where(shared, peak_activation_bytes, 0))
    weights, weights_fit = _nearest(rooms, weight_bytes)
    return weights * len(activation_levels) + activations, np.logical_and(fits, weights_fit)


def _capacity(level: Memory) -> int:
    return np.iinfo(np.int64).max if level.bytes is None else level.bytes


def _nearest(rooms: list[IntArray], wanted: IntArray) -> tuple[IntArray, npt.NDArray[np.bool_]]:
    """The first of the levels with room `[allocations]`, else the last, and whether there is room."""
    enough = np.stack([wanted <= room for room in rooms])
    return np.where(enough.any(axis=0), enough.argmax(axis=0), len(rooms) - 1), np.logical_or.reduce(enough)
