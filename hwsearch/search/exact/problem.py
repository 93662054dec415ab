"""The allocation problem: a separable loss, costs that are sums over the sites, and which sites share a width.

A *choice* is one decision: a site, or a group of sites that share a width. An *option* of a choice is one of the widths that all
its sites may take. Sites with one width are choices with one option.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from hwsearch.errors import UserError
from hwsearch.search.space import Point, SearchSpace
from hwsearch.separator.allocation import BitAllocation

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
IndexArray = npt.NDArray[np.int8]
"""Positions of widths among the widths of their site, or of options among the options of their choice."""

Widths = tuple[tuple[str, tuple[int, ...]], ...]
"""Sites and the widths each may take, as in `SearchSpace.widths`."""

_MANTISSA_BITS = 53


@dataclass(frozen=True, eq=False)
class Cost:
    """A cost of allocations: a sum over the sites, or the largest of several such sums.

    Attributes:
        name: the column of the record, such as `size_bytes`.
        tables: `[sums, sites, widths]` what each sum is charged for a site at a width, finite; entries beyond the widths of a
            site are ignored.
        constants: `[sums]` what each sum starts from.
    """

    name: str
    tables: FloatArray
    constants: FloatArray

    @property
    def additive(self) -> bool:
        """Whether the cost is a single sum."""
        return len(self.tables) == 1


@dataclass(frozen=True, eq=False)
class AllocationProblem:
    """Which width every site takes, to keep a separable loss and some costs low.

    Attributes:
        widths: every site and the widths it may take.
        loss: `[sites, widths]` loss of a site at a width, finite and 0 or more; entries beyond the widths of a site are ignored.
        costs: what allocations are charged.
        groups: sites that share a width; a site belongs to one group at most.
    """

    widths: Widths
    loss: FloatArray
    costs: tuple[Cost, ...]
    groups: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        """Check the tables.

        Raises:
            UserError: a loss or a cost that is not finite, a negative loss, a group with an unknown site, a site in two groups,
                or a group without a common width; names the site.
            ValueError: a table of another shape.
        """
        if not self.widths or not all(widths for _, widths in self.widths):
            raise ValueError("wanted at least one site, and at least one width for each")
        self._check_table(self.loss, "sensitivity")
        if (self.loss[self.valid] < 0).any():
            site, width = self._first(self.valid & (self.loss < 0))
            raise UserError(f"sensitivity of site '{site}' at {width} bits is negative; wanted 0 or more")
        for cost in self.costs:
            if len(cost.tables) != len(cost.constants) or not len(cost.tables):
                raise ValueError(
                    f"{cost.name}: {len(cost.tables)} tables and {len(cost.constants)} constants; wanted one or more of each"
                )
            for table in cost.tables:
                self._check_table(table, cost.name)
            if not np.isfinite(cost.constants).all():
                raise UserError(f"{cost.name} without any site is {cost.constants.tolist()}; wanted finite values")
        self._check_groups()

    @cached_property
    def sites(self) -> tuple[str, ...]:
        """Every site, in the order of the rows of the tables."""
        return tuple(site for site, _ in self.widths)

    @cached_property
    def width_table(self) -> IntArray:
        """`[sites, widths]` bits, padded with 0."""
        size = max(len(widths) for _, widths in self.widths)
        return np.array([widths + (0,) * (size - len(widths)) for _, widths in self.widths], np.int64)

    @cached_property
    def valid(self) -> npt.NDArray[np.bool_]:
        """`[sites, widths]` which entries of a table are a width of the site."""
        return self.width_table > 0

    @cached_property
    def members(self) -> tuple[tuple[int, ...], ...]:
        """The sites of every choice, by position; choices in the order of their first site."""
        position = {site: i for i, site in enumerate(self.sites)}
        grouped = {position[site]: sorted(position[other] for other in group) for group in self.groups for site in group}
        return tuple(tuple(grouped.get(i, [i])) for i in range(len(self.sites)) if grouped.get(i, [i])[0] == i)

    @cached_property
    def choice_of(self) -> IntArray:
        """`[sites]` the choice that decides each site."""
        choice = np.empty(len(self.sites), np.int64)
        for i, sites in enumerate(self.members):
            choice[list(sites)] = i
        return choice

    @cached_property
    def site_option(self) -> IndexArray:
        """`[sites, options]` position among the site's widths of each option of its choice, padded with -1."""
        position = np.full((len(self.sites), self.width_table.shape[1]), -1, np.int8)
        for sites in self.members:
            common = _common_widths([self.widths[site][1] for site in sites])
            for site in sites:
                position[site, : len(common)] = [self.widths[site][1].index(width) for width in common]
        return position

    @cached_property
    def option_valid(self) -> npt.NDArray[np.bool_]:
        """`[choices, options]` which options exist."""
        exists: npt.NDArray[np.bool_] = self.site_option[[sites[0] for sites in self.members]] >= 0
        return exists

    def merged(self, table: FloatArray) -> FloatArray:
        """A table `[sites, widths]` summed over the sites of each choice, `[choices, options]`, padded with infinity."""
        gathered = np.take_along_axis(table, np.maximum(self.site_option, 0).astype(np.int64), axis=1)
        total = np.zeros(self.option_valid.shape)
        np.add.at(total, self.choice_of, gathered)
        total[~self.option_valid] = np.inf
        return total

    def expand(self, options: IndexArray) -> IndexArray:
        """Options `[allocations, choices]` as positions of widths `[allocations, sites]`."""
        indices = np.empty((len(self.sites), len(options)), np.int8)
        for site, choice in enumerate(self.choice_of.tolist()):
            indices[site] = self.site_option[site][options[:, choice]]
        return indices.T

    def loss_of(self, indices: IndexArray) -> FloatArray:
        """Loss `[allocations]` of positions of widths `[allocations, sites]`."""
        return _sum(self.loss, indices)

    def cost(self, name: str) -> Cost:
        """The cost of a name.

        Raises:
            UserError: there is none; names those there are.
        """
        for cost in self.costs:
            if cost.name == name:
                return cost
        raise UserError(f"no cost '{name}'; the problem has {', '.join(cost.name for cost in self.costs) or 'none'}")

    def cost_of(self, name: str, indices: IndexArray) -> FloatArray:
        """Cost `[allocations]` of positions of widths `[allocations, sites]`.

        Raises:
            UserError: no such cost.
        """
        cost = self.cost(name)
        sums = [_sum(table, indices) + constant for table, constant in zip(cost.tables, cost.constants, strict=True)]
        largest: FloatArray = np.max(sums, axis=0)
        return largest

    def bits(self, indices: IndexArray) -> IntArray:
        """Widths `[allocations, sites]` at positions `[allocations, sites]`."""
        return np.take_along_axis(self.width_table, indices.T.astype(np.int64), axis=1).T

    def allocation(self, indices: IndexArray) -> BitAllocation:
        """The allocation at positions `[sites]`."""
        return BitAllocation(tuple((site, widths[i]) for (site, widths), i in zip(self.widths, indices.tolist(), strict=True)))

    def point(self, indices: IndexArray) -> Point:
        """The point of the search space at positions `[sites]`; its groups must be those of the problem."""
        return tuple(int(indices[sites[0]]) for sites in self.members if len(self.widths[sites[0]][1]) > 1)

    def _check_table(self, table: FloatArray, what: str) -> None:
        if table.shape != self.valid.shape:
            raise ValueError(f"{what}: table of shape {table.shape}; wanted {self.valid.shape}")
        wrong = self.valid & ~np.isfinite(table)
        if wrong.any():
            site, width = self._first(wrong)
            found = table[tuple(np.argwhere(wrong)[0])]
            raise UserError(f"{what} of site '{site}' at {width} bits is {found}; wanted a finite number")

    def _first(self, where: npt.NDArray[np.bool_]) -> tuple[str, int]:
        row, column = np.argwhere(where)[0]
        return self.widths[row][0], int(self.width_table[row, column])

    def _check_groups(self) -> None:
        widths = dict(self.widths)
        seen: set[str] = set()
        for group in self.groups:
            for site in group:
                if site not in widths:
                    raise UserError(f"group {list(group)}: unknown site '{site}'")
                if site in seen:
                    raise UserError(f"group {list(group)}: site '{site}' stands in two groups or twice in one")
                seen.add(site)
            if not _common_widths([widths[site] for site in group]):
                ranges = ", ".join(f"'{site}' {list(widths[site])}" for site in group)
                raise UserError(f"group {list(group)}: no width that all its sites may take; they may take {ranges}")


def allocation_problem(
    space: SearchSpace,
    sensitivity: Mapping[str, Mapping[int, float]],
    costs: Sequence[Cost],
    groups: Sequence[Sequence[str]] = (),
) -> AllocationProblem:
    """The problem of a search space.

    Args:
        space: sites and the widths each may take.
        sensitivity: loss by site and width. Sites with one width may be left out: they lose nothing that can be chosen.
        costs: what allocations are charged, made for the same space.
        groups: sites that share a width.

    Raises:
        UserError: a free site or one of its widths has no sensitivity, a value is NaN, infinite or negative, or a group is wrong.
    """
    unknown = sensitivity.keys() - dict(space.widths).keys()
    if unknown:
        raise UserError(f"sensitivity: unknown site '{min(unknown)}'; the space's sites are like '{space.widths[0][0]}'")
    missing = next((site for site, _ in space.free_sites if site not in sensitivity), None)
    if missing is not None:
        raise UserError(f"sensitivity: no values for site '{missing}'; wanted one for each of its widths")
    return AllocationProblem(
        widths=space.widths,
        loss=_table(space.widths, sensitivity, "sensitivity"),
        costs=tuple(costs),
        groups=tuple(tuple(group) for group in groups),
    )


def additive_cost(name: str, widths: Widths, charges: Mapping[str, Mapping[int, float]], constant: float = 0.0) -> Cost:
    """A cost that is one sum.

    Args:
        name: the column of the record.
        widths: every site and the widths it may take.
        charges: what a site is charged at each width. A site left out is charged nothing.
        constant: what the sum starts from.

    Raises:
        UserError: an unknown site, or a width of a charged site without a value.
    """
    unknown = charges.keys() - dict(widths).keys()
    if unknown:
        raise UserError(f"{name}: unknown site '{min(unknown)}'; the space's sites are like '{widths[0][0]}'")
    return Cost(name, _table(widths, charges, name)[None], np.array([constant], np.float64))


def quantum(values: FloatArray) -> float | None:
    """The largest number of which all finite values are whole multiples.

    Every float is a whole number times a power of two, so there always is one; None where it is too fine for multiples to be
    counted exactly in 53 bits. 1 where all values are zero.
    """
    nonzero = np.abs(values[values != 0])
    if not nonzero.size:
        return 1.0
    mantissas, exponents = np.frexp(nonzero)
    whole = np.ldexp(mantissas, _MANTISSA_BITS).astype(np.int64)
    trailing = np.frexp((whole & -whole).astype(np.float64))[1] - 1
    finest = int((exponents - _MANTISSA_BITS + trailing).min())
    if math.frexp(float(nonzero.max()))[1] - finest > _MANTISSA_BITS:
        return None
    counts = np.ldexp(nonzero, -finest).astype(np.int64)
    return math.ldexp(float(np.gcd.reduce(counts)), finest)


def readable(value: float) -> str:
    """A short number that is not smaller than `value`, so that it holds where it is set as a limit."""
    short = f"{value:.10g}"
    return short if float(short) >= value else repr(value)


def _table(widths: Widths, values: Mapping[str, Mapping[int, float]], what: str) -> FloatArray:
    table = np.zeros((len(widths), max(len(options) for _, options in widths)))
    for row, (site, options) in enumerate(widths):
        if site not in values:
            continue
        for column, width in enumerate(options):
            if width not in values[site]:
                raise UserError(f"{what}: site '{site}' has no value at {width} bits; it has them at {sorted(values[site])}")
            table[row, column] = values[site][width]
    return table


def _common_widths(widths: Sequence[tuple[int, ...]]) -> list[int]:
    return [width for width in widths[0] if all(width in others for others in widths[1:])]


def _sum(table: FloatArray, indices: IndexArray) -> FloatArray:
    """Sum over the sites, one after another, so that an allocation has the same sum to the last bit in every batch."""
    total = np.zeros(len(indices))
    for row, column in zip(table, indices.T, strict=True):
        total += row[column]
    return total
