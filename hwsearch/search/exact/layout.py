"""Where the variables of a space with parts stand in its points, and tables of what they add to a loss or a cost."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from hwsearch.search.exact.problem import FloatArray, IndexArray, IntArray
from hwsearch.search.parts import Part, find_parts
from hwsearch.search.space import SearchSpace

BoolArray = npt.NDArray[np.bool_]
PointArray = npt.NDArray[np.signedinteger[Any]]
"""Points of a space, [points, variables]."""


@dataclass(frozen=True, eq=False)
class PartTable:
    """What free choices and parts add to a quantity, such as a loss or a size."""

    choices: FloatArray
    """[choices, variants, options] of a free choice at each variant of its part; 0 where it is gone. Choices outside all parts
    use variant 0. Entries beyond the variants of the part or the options of the choice are ignored."""
    parts: FloatArray
    """[parts, variants] of a part by itself at each variant."""
    constant: float = 0.0


@dataclass(frozen=True, eq=False)
class Slots:
    """The variables of all parts in one array: those of a part in a row, its choices in the first slots, then its options."""

    columns: IntArray
    """[parts, slots] the variable of each slot."""
    filled: BoolArray
    """[parts, slots] which slots have a variable."""
    present: BoolArray
    """[parts, variants, choice slots] which choices are there."""
    values: IndexArray
    """[parts, variants, slots] the options of each variant, and the last option of each choice."""


@dataclass(frozen=True)
class Layout:
    """The free choices, the options of structure and the parts of a space.

    Attributes:
        choices: number of widths of each free choice.
        options: number of values of each option of structure.
        parts: the parts. Each option belongs to one part, each choice to one at most.
        across: choices outside all parts whose sites all lie in blocks, and the options that are these blocks. Such a choice is
            gone where all the blocks are left out; tables do not know of that.
    """

    choices: tuple[int, ...]
    options: tuple[int, ...]
    parts: tuple[Part, ...]
    across: tuple[tuple[int, tuple[int, ...]], ...] = ()

    def __post_init__(self) -> None:
        """Check the parts.

        Raises:
            ValueError: an option belongs to no part or to two, or a choice to two.
        """
        options = [option for part in self.parts for option in part.options]
        choices = [choice for part in self.parts for choice in part.choices]
        if sorted(options) != list(range(len(self.options))) or len(set(choices)) < len(choices):
            raise ValueError("wanted each option in one part, and each choice in one part at most")

    @classmethod
    def of(cls, space: SearchSpace) -> Self:
        """Return the layout of a space."""
        shape, free, parts = space.shape, len(space.free), find_parts(space)
        return cls(shape[:free], shape[free:], parts, tuple(_across(space, parts)))

    @cached_property
    def counts(self) -> IntArray:
        """[variables] number of values."""
        return np.array(self.choices + self.options, np.int64)

    @cached_property
    def variants(self) -> int:
        """Largest number of variants of a part; 1 if there are no parts."""
        return max((len(part.variants) for part in self.parts), default=1)

    @cached_property
    def owner(self) -> IntArray:
        """[choices] the part of each choice; -1 outside all parts."""
        owner = np.full(len(self.choices), -1)
        for place, part in enumerate(self.parts):
            owner[list(part.choices)] = place
        return owner

    @cached_property
    def outside(self) -> IntArray:
        """The choices outside all parts."""
        return np.flatnonzero(self.owner < 0)

    @cached_property
    def valid(self) -> BoolArray:
        """[choices, options] which options of a choice exist."""
        valid: BoolArray = np.arange(max(self.choices, default=0)) < np.array(self.choices, np.int64)[:, None]
        return valid

    @cached_property
    def exists(self) -> BoolArray:
        """[parts, variants] which variants exist."""
        counts = np.array([len(part.variants) for part in self.parts], np.int64)
        exists: BoolArray = np.arange(self.variants) < counts[:, None]
        return exists

    @cached_property
    def present(self) -> BoolArray:
        """[choices, variants] at which variants a choice is there. Choices outside all parts are there at variant 0."""
        present = np.zeros((len(self.choices), self.variants), np.bool_)
        present[self.outside, 0] = True
        for part in self.parts:
            there = [not part.gone(variant) for variant in part.variants]
            present[list(part.choices), : len(there)] = there
        return present

    @cached_property
    def dependent(self) -> IntArray:
        """The variables that are gone where blocks are left out: choices inside blocks, groups of channels inside them, and the
        choices `across`.
        """
        inside = [place for part in self.parts if part.removes for place in self._inside(part)]
        return np.array([*inside, *(choice for choice, _ in self.across)], np.int64)

    @cached_property
    def _block(self) -> IntArray:
        """The variable of the block that each of the `dependent` that are not `across` lies in."""
        first = len(self.choices)
        return np.array(
            [first + part.options[0] for part in self.parts if part.removes for _ in self._inside(part)], dtype=np.int64
        )

    def _inside(self, part: Part) -> list[int]:
        return [*part.choices, *(len(self.choices) + option for option in part.options[1:])]

    def columns(self, part: Part) -> list[int]:
        """Return the variables of a part: its choices, then its options."""
        return [*part.choices, *(len(self.choices) + option for option in part.options)]

    def gone(self, points: PointArray) -> BoolArray:
        """Return at which points each of the `dependent` variables is gone, [points, dependent]."""
        gone: BoolArray = points[:, self._block] == 0
        if not self.across:
            return gone
        first = len(self.choices)
        across = [(points[:, [first + block for block in blocks]] == 0).all(axis=1) for _, blocks in self.across]
        return np.concatenate([gone, np.stack(across, axis=1)], axis=1)

    def canonical(self, points: PointArray) -> PointArray:
        """Return the canonical points of the same configurations."""
        found = points.copy()
        found[:, self.dependent] = np.where(self.gone(points), self.counts[self.dependent] - 1, points[:, self.dependent])
        return found

    def variants_of(self, points: PointArray) -> IntArray:
        """Return the variant of every part, [points, parts], at canonical points."""
        found = np.zeros((len(points), len(self.parts)), np.int64)
        for place, part in enumerate(self.parts):
            columns = [len(self.choices) + option for option in part.options]
            numbered = np.full(self.counts[columns], -1)
            numbered[tuple(np.array(part.variants).T)] = np.arange(len(part.variants))
            found[:, place] = numbered[tuple(points[:, columns].T)]
        return found

    def total(self, table: PartTable, points: PointArray) -> FloatArray:
        """Sum a table at canonical points, [points].

        The terms are added one after another, so that a point has the same sum, to the last bit, in every batch.
        """
        variants = self.variants_of(points)
        total = np.zeros(len(points))
        for choice, part in enumerate(self.owner.tolist()):
            total += table.choices[choice, variants[:, part] if part >= 0 else 0, points[:, choice]]
        for part, row in enumerate(table.parts):
            total += row[variants[:, part]]
        return total + table.constant

    def spread(self, values: FloatArray) -> FloatArray:
        """Return a table [choices, options] that does not depend on structure as [choices, variants, options]."""
        at_variants: FloatArray = np.where(self.present[:, :, None] & self.valid[:, None, :], values[:, None, :], 0.0)
        return at_variants

    def option_sums(self, values: FloatArray) -> FloatArray:
        """Sum what the values of options add, [options, values], over the options of each part: [parts, variants]."""
        slots, inner = self.slots, self.slots.present.shape[2]
        filled = slots.filled[:, None, inner:]
        options = np.where(filled, slots.columns[:, None, inner:] - len(self.choices), 0)
        sums: FloatArray = np.where(filled, values[options, slots.values[:, :, inner:]], 0.0).sum(axis=2)
        return sums

    def ends(self, table: PartTable) -> tuple[float, float]:
        """Return the least and the largest sum of a table. Infinite entries are left out."""
        inside = self.owner >= 0
        found = []
        for sign in (1.0, -1.0):
            usable = self.valid[:, None, :] & np.isfinite(table.choices)
            each = np.where(usable, sign * table.choices, np.inf).min(axis=2, initial=np.inf)
            each = np.where(self.present, each, 0.0)
            parts = np.where(self.exists & np.isfinite(table.parts), sign * table.parts, np.inf)
            np.add.at(parts, self.owner[inside], each[inside])
            found.append(sign * float(parts.min(axis=1).sum() + each[self.outside, 0].sum()) + table.constant)
        return found[0], found[1]

    @cached_property
    def inside(self) -> tuple[IntArray, IntArray]:
        """Choices in parts, and the variants at which they are there: each pair once."""
        choice, variant = np.nonzero(self.present & (self.owner >= 0)[:, None])
        return choice, variant

    @cached_property
    def slot(self) -> IntArray:
        """[choices] the place of each choice in its part."""
        slot = np.zeros(len(self.choices), np.int64)
        for part in self.parts:
            slot[list(part.choices)] = np.arange(len(part.choices))
        return slot

    @cached_property
    def slots(self) -> Slots:
        """The variables of the parts, part by part."""
        inner = max((len(part.choices) for part in self.parts), default=0)
        width = inner + max((len(part.options) for part in self.parts), default=0)
        columns = np.zeros((len(self.parts), width), np.int64)
        filled = np.zeros(columns.shape, np.bool_)
        present = np.zeros((len(self.parts), self.variants, inner), np.bool_)
        values = np.zeros((len(self.parts), self.variants, width), np.int8)
        for place, part in enumerate(self.parts):
            at = [*range(len(part.choices)), *range(inner, inner + len(part.options))]
            columns[place, at] = self.columns(part)
            filled[place, at] = True
            values[place, :, at] = (self.counts[columns[place, at]] - 1)[:, None]
            values[place, : len(part.variants), inner : inner + len(part.options)] = part.variants
            present[place, :, : len(part.choices)] = self.present[list(part.choices)].T
        return Slots(columns, filled, present, values)

    def filled(self, count: int) -> IndexArray:
        """Return so many points of the whole network with every choice at its widest."""
        return np.repeat((self.counts - 1).astype(np.int8)[None], count, axis=0)


def _across(space: SearchSpace, parts: Sequence[Part]) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Find the choices outside all parts whose sites all lie in blocks, and these blocks."""
    if space.network is None:
        return
    blocks = [(place, name) for place, (name, _) in enumerate(space.options) if space.network.options.is_block(name)]
    sites = {place: space.network.decided_by(name) for place, name in blocks}
    inside = {choice for part in parts for choice in part.choices}
    for choice, (name, _) in enumerate(space.free):
        members = space.members[name]
        around = tuple(place for place, within in sites.items() if not within.isdisjoint(members))
        if choice not in inside and around and all(any(site in sites[place] for place in around) for site in members):
            yield choice, around
