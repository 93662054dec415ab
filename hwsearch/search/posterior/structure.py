"""The posterior engine's view of structure: what leaving out adds to the sum of losses, and which points are worth a try.

Losses of structure do not add up as those of widths do. Two terms with learned factors allow for this:

- *Pairs.* To leave out several things costs more than the sum. If decibels added up, and not noise powers, two losses a and b
  would make a + b + a b. So the first term is the sum of the products of all pairs of losses of structure: its factor is 0 if
  noise powers add up and 1 if decibels do.
- *Narrow parts.* Fewer channels average fewer rounding errors. So the second term is the sum of the losses of the widths in parts
  with channels left out: its factor is the share that they lose more than in the whole part.

Both terms are computed with the prior's losses, so that the loss of a point remains linear in all that is learned.
"""

from collections.abc import Callable, Sequence

import numpy as np

from hwsearch.search.exact.elastic import supported_points
from hwsearch.search.exact.layout import BoolArray, Layout, PartTable
from hwsearch.search.exact.problem import FloatArray, IndexArray, IntArray
from hwsearch.search.posterior.model import OptionArray

_FACTORS = (0.5, 0.25)
"""Prior means of the factors of pairs and of narrow parts."""

_DEVIATIONS = (0.5, 0.5)
"""Their standard deviations, wide enough for noise powers that add up and for decibels that do."""


class Interactions:
    """The two terms, at points of a layout."""

    def __init__(self, layout: Layout, prior: FloatArray) -> None:
        """Take the prior's losses.

        Args:
            layout: of the space.
            prior: [variables, values] losses. Those of options that are whole are taken as 0.
        """
        self.layout = layout
        self.factors, self.deviations = np.array(_FACTORS), np.array(_DEVIATIONS)
        choices = len(layout.choices)
        self._widths = prior[:choices]
        """[choices, widths]"""
        self._lost = prior[choices:].copy()
        """[options, values]"""
        wholes = layout.counts[choices:] - 1
        self._lost[np.arange(len(wholes)), wholes] = 0.0
        self.searched = np.ones(prior.shape, np.bool_)
        """[variables, values] which losses are not known to be 0."""
        self.searched[np.arange(choices, len(prior)), wholes] = False
        channels = np.array([option for part in layout.parts for option in part.options[part.removes :]], np.int64)
        self._channels = choices + channels
        """Variables that are groups of channels."""
        owner = np.array([place for place, part in enumerate(layout.parts) for _ in part.options[part.removes :]], np.int64)
        self._shapes = (owner[:, None] == layout.owner).astype(np.float32)
        """[groups of channels, choices] 1 where a choice lies in the part of a group."""
        self._part_lost = layout.option_sums(self._lost)
        self._part_squares = layout.option_sums(self._lost**2)
        whole = np.zeros(self._lost.shape)
        whole[channels] = np.arange(prior.shape[1]) < wholes[channels, None]
        self._narrow_part = layout.option_sums(whole) > 0
        """[parts, variants] where channels are left out."""

    def lost(self, points: OptionArray) -> FloatArray:
        """Return the sum of the losses of structure, [points], at canonical points."""
        total: FloatArray = self._lost[np.arange(len(self._lost)), points[:, len(self._widths) :]].sum(axis=1)
        return total

    def terms(self, points: OptionArray) -> FloatArray:
        """Return the terms [points, 2] at canonical points."""
        choices = len(self._widths)
        lost = self._lost[np.arange(len(self._lost)), points[:, choices:]]
        pairs = 0.5 * (lost.sum(axis=1) ** 2 - (lost**2).sum(axis=1))
        left_out = (points[:, self._channels] < self.layout.counts[self._channels] - 1).astype(np.float32)
        narrow = left_out @ self._shapes > 0
        widths = np.where(narrow, self._widths[np.arange(choices), points[:, :choices]], 0.0).sum(axis=1)
        return np.stack([pairs, widths], axis=1)

    def part_losses(self, losses: FloatArray, factors: FloatArray, around: float) -> PartTable:
        """Return losses with the terms as a sum over the parts.

        Pairs are no such sum. They are replaced by their tangent.

        Args:
            losses: [variables, values]
            factors: of the terms.
            around: sum of the losses of structure at which the tangent touches.
        """
        layout, choices = self.layout, len(self._widths)
        widths = layout.valid.shape[1]
        at_variants = layout.spread(losses[:choices, :widths])
        narrow = np.zeros(layout.present.shape, np.bool_)
        inside = layout.owner >= 0
        narrow[inside] = self._narrow_part[layout.owner[inside]]
        at_variants += np.where(narrow[:, :, None], factors[1] * layout.spread(self._widths[:, :widths]), 0.0)
        pairs = np.maximum(around * self._part_lost - 0.5 * self._part_squares, 0.0)
        return PartTable(at_variants, layout.option_sums(losses[choices:]) + factors[0] * pairs)


class PartSteering:
    """Finds points on convex hulls of losses against combined costs."""

    def __init__(self, layout: Layout, costs: Sequence[PartTable]) -> None:
        """Scale the costs, each to a range of 1. What is infinitely dear in any of them is never taken."""
        self._layout = layout
        choices, parts = np.stack([cost.choices for cost in costs]), np.stack([cost.parts for cost in costs])
        self._choices_run: BoolArray = np.logical_and.reduce(np.isfinite(choices))
        self._parts_run: BoolArray = np.logical_and.reduce(np.isfinite(parts))
        every = zip(choices, parts, strict=True)
        self.ranges = np.array([_range(*layout.ends(self._limited(*tables))) for tables in every])
        """Range of each cost over the space; 1 if there is none."""
        self._choices = np.where(self._choices_run, choices, 0.0) / self.ranges[:, None, None, None]
        self._parts = np.where(self._parts_run, parts, 0.0) / self.ranges[:, None, None]

    def solve(self, pulls: FloatArray, losses: PartTable, choose: Callable[[int], IntArray]) -> IndexArray:
        """Return points on the hull of losses against the sum of the costs, each multiplied by its pull."""
        steering = self._limited(np.tensordot(pulls, self._choices, 1), np.tensordot(pulls, self._parts, 1))
        return supported_points(self._layout, steering, losses, choose)

    def _limited(self, choices: FloatArray, parts: FloatArray) -> PartTable:
        """Make a table with infinity where any cost is infinite."""
        return PartTable(np.where(self._choices_run, choices, np.inf), np.where(self._parts_run, parts, np.inf))


def _range(low: float, high: float) -> float:
    return high - low if np.isfinite(high - low) and high > low else 1.0
