"""The allocation problem: a loss that adds up over the sites, costs that do, and groups of sites that share a width.

A *choice* is a site, or a group of sites that share a width. Its *options* are its widths. A site with one width is a choice with
one option.
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
"""Positions of widths among the widths of their site."""

Widths = tuple[tuple[str, tuple[int, ...]], ...]
"""Sites and the widths each may take, as in `SearchSpace.widths`."""

_MANTISSA_BITS = 53


@dataclass(frozen=True, eq=False)
class Cost:
    """A cost of allocations: a sum over the sites, or the largest of several such sums."""

    name: str
    """The column of the record, such as `size_bytes`."""
    tables: FloatArray
    """[sums, sites, widths] cost of a site at a width in each sum, finite. Entries beyond the widths of a site are ignored."""
    constants: FloatArray
    """[sums] the value that each sum starts from."""

    @property
    def additive(self) -> bool:
        """Whether the cost is a single sum."""
        return len(self.tables) == 1


@dataclass(frozen=True, eq=False)
class AllocationProblem:
    """Which width every site takes, to keep a separable loss and some costs low."""

    widths: Widths
    loss: FloatArray
    """[sites, widths] loss of a site at a width, finite and 0 or more. Entries beyond the widths of a site are ignored."""
    costs: tuple[Cost, ...]
    groups: tuple[tuple[str, ...], ...] = ()
    """Sites that share a width, as in `SearchSpace.groups`: all sites of a group may take the same widths."""

    def __post_init__(self) -> None:
        """Check the tables.

        Raises:
            UserError: a loss or a cost is not finite, or a loss is negative; names the site.
            ValueError: a table has another shape, or the sites of a group may take different widths.
        """
        if not self.widths or not all(widths for _, widths in self.widths):
            raise ValueError("wanted at least one site, and at least one width for each")
        self._check_table("sensitivity", self.loss, 0.0, "a finite number of 0 or more")
        for cost in self.costs:
            if not len(cost.tables) or len(cost.tables) != len(cost.constants):
                raise ValueError(
                    f"{cost.name}: {len(cost.tables)} tables and {len(cost.constants)} constants; wanted one or more of each"
                )
            for table in cost.tables:
                self._check_table(cost.name, table, -math.inf, "a finite number")
            if not np.isfinite(cost.constants).all():
                raise UserError(f"{cost.name} without any site is {cost.constants.tolist()}; wanted finite values")
        widths = dict(self.widths)
        if any(len({widths[site] for site in group}) > 1 for group in self.groups):
            raise ValueError("wanted the same widths for all sites of a group")

    @cached_property
    def sites(self) -> tuple[str, ...]:
        """Every site, in the order of the rows of the tables."""
        return tuple(site for site, _ in self.widths)

    @cached_property
    def valid(self) -> npt.NDArray[np.bool_]:
        """[sites, widths] which entries of a table are a width of the site."""
        counts = np.array([len(widths) for _, widths in self.widths])
        valid: npt.NDArray[np.bool_] = np.arange(counts.max()) < counts[:, None]
        return valid

    @cached_property
    def members(self) -> tuple[tuple[int, ...], ...]:
        """The sites of every choice, by position. Choices are in the order of their first site."""
        position = {site: i for i, site in enumerate(self.sites)}
        grouped = {position[site]: sorted(position[other] for other in group) for group in self.groups for site in group}
        return tuple(tuple(grouped.get(i, [i])) for i in range(len(self.sites)) if grouped.get(i, [i])[0] == i)

    @cached_property
    def choice_of(self) -> IntArray:
        """[sites] the choice that decides each site."""
        choice = np.empty(len(self.sites), np.int64)
        for i, sites in enumerate(self.members):
            choice[list(sites)] = i
        return choice

    @cached_property
    def option_valid(self) -> npt.NDArray[np.bool_]:
        """[choices, options] which options exist."""
        return self.valid[[sites[0] for sites in self.members]]

    def merged(self, table: FloatArray) -> FloatArray:
        """Sum a table [sites, widths] over the sites of each choice: [choices, options], padded with infinity."""
        total = np.zeros(self.option_valid.shape)
        np.add.at(total, self.choice_of, table)
        total[~self.option_valid] = np.inf
        return total

    def expand(self, options: IndexArray) -> IndexArray:
        """Return options [allocations, choices] as positions of widths [allocations, sites]."""
        return options.T[self.choice_of].T

    def loss_of(self, indices: IndexArray) -> FloatArray:
        """Return the losses [allocations] of positions of widths [allocations, sites]."""
        return _sum(self.loss, indices)

    def cost(self, name: str) -> Cost:
        """Return the cost of a name.

        Raises:
            UserError: there is none; names those there are.
        """
        for cost in self.costs:
            if cost.name == name:
                return cost
        raise UserError(f"no cost '{name}'; the problem has {', '.join(cost.name for cost in self.costs) or 'none'}")

    def cost_of(self, name: str, indices: IndexArray) -> FloatArray:
        """Return a cost [allocations] of positions of widths [allocations, sites].

        Raises:
            UserError: no such cost.
        """
        cost = self.cost(name)
        sums = [_sum(table, indices) + constant for table, constant in zip(cost.tables, cost.constants, strict=True)]
        largest: FloatArray = np.max(sums, axis=0)
        return largest

    def allocation(self, indices: IndexArray) -> BitAllocation:
        """Return the allocation at positions [sites]."""
        return BitAllocation(tuple((site, widths[i]) for (site, widths), i in zip(self.widths, indices.tolist(), strict=True)))

    def point(self, indices: IndexArray) -> Point:
        """Return the point of the search space at positions [sites]."""
        return tuple(int(indices[sites[0]]) for sites in self.members if len(self.widths[sites[0]][1]) > 1)

    def _check_table(self, what: str, table: FloatArray, least: float, wanted: str) -> None:
        if table.shape != self.valid.shape:
            raise ValueError(f"{what}: table of shape {table.shape}; wanted {self.valid.shape}")
        for row, column in np.argwhere(self.valid & ~(np.isfinite(table) & (table >= least))):
            site, widths = self.widths[row]
            raise UserError(f"{what} of site '{site}' at {widths[column]} bits is {table[row, column]}; wanted {wanted}")


def allocation_problem(
    space: SearchSpace, sensitivity: Mapping[str, Mapping[int, float]], costs: Sequence[Cost]
) -> AllocationProblem:
    """Make the problem of a search space from losses by site and width. Sites with one width need no loss.

    Raises:
        UserError: a free site or one of its widths has no sensitivity, or a value is not finite or negative.
    """
    missing = next((site for site, _ in space.free_sites if site not in sensitivity), None)
    if missing is not None:
        raise UserError(f"sensitivity: no values for site '{missing}'; wanted one for each of its widths")
    return AllocationProblem(space.widths, _table(space.widths, sensitivity, "sensitivity"), tuple(costs), space.groups)


def additive_cost(name: str, widths: Widths, charges: Mapping[str, Mapping[int, float]], constant: float = 0.0) -> Cost:
    """Make a cost that is one sum, from the cost of each site at each width. A site without `charges` costs nothing.

    Raises:
        UserError: an unknown site, or a width of a charged site without a value.
    """
    return Cost(name, _table(widths, charges, name)[None], np.array([constant], np.float64))


def quantum(values: FloatArray) -> float | None:
    """Return the largest number of which all values are whole multiples; 1 if all values are zero.

    Every float is a whole number times a power of two, so there is such a number. None is returned if it is too small to count
    the multiples exactly in 53 bits.
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
    """Write a number shortly, and not smaller than it is, so that a user can set it as a limit."""
    short = f"{value:.10g}"
    return short if float(short) >= value else repr(value)


def _table(widths: Widths, values: Mapping[str, Mapping[int, float]], what: str) -> FloatArray:
    unknown = values.keys() - dict(widths).keys()
    if unknown:
        raise UserError(f"{what}: unknown site '{min(unknown)}'; the space's sites are like '{widths[0][0]}'")
    table = np.zeros((len(widths), max(len(options) for _, options in widths)))
    for row, (site, options) in enumerate(widths):
        if site not in values:
            continue
        for column, width in enumerate(options):
            if width not in values[site]:
                raise UserError(f"{what}: site '{site}' has no value at {width} bits; it has them at {sorted(values[site])}")
            table[row, column] = values[site][width]
    return table


def _sum(table: FloatArray, indices: IndexArray) -> FloatArray:
    """Sum over the sites one after another, so that an allocation has the same sum, to the last bit, in every batch."""
    total = np.zeros(len(indices))
    for row, column in zip(table, indices.T, strict=True):
        total += row[column]
    return total
