"""The search space: which sites are free, which widths each may take, and allocations as points of integers.

A *choice* is a site, or a group of sites that share a width; it is free if it has more than one width. A *point* holds, for every
free choice, the index of its width. Choices with a single width (fixed by a pattern, or because the experiment allows only one)
are constants and no part of a point.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING

from hwsearch.errors import UserError
from hwsearch.experiment import FLOAT_BITS, NARROW_BITS, WIDE_BITS, SearchConfig
from hwsearch.separator.allocation import ACTIVATION_WIDTHS, WEIGHT_WIDTHS, BitAllocation, is_weight

if TYPE_CHECKING:  # graphs import torch, which is slow to load
    from hwsearch.network.sites import Sites, Tie

Point = tuple[int, ...]
"""Index of the chosen width of every free choice."""

UNIFORM, ENDS = "uniform", "ends-at-8"
"""Strategies of the seeds that need no sensitivities."""

ALWAYS_PROMOTED = (UNIFORM, ENDS)
"""Strategies whose candidates are scored at every fidelity. Uniform allocations are what a search has to beat; hand rules can
look poor before training and good after it."""

END_BITS = 8
"""Width at which hand rules keep the first and the last layer."""


@dataclass(frozen=True)
class SearchSpace:
    """Every site of a network with the widths that it may take, in rising order. A site with one width is constant."""

    widths: tuple[tuple[str, tuple[int, ...]], ...]
    fixed: frozenset[str] = frozenset()
    """Sites that a pattern fixes, and a trunk with widths of its own. A uniform allocation may have other widths at them."""
    groups: tuple[tuple[str, ...], ...] = ()
    """Groups of sites that share a width; all sites of a group have the same widths to choose from."""

    @cached_property
    def free(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Choices with more than one width, each named by its first site, with these widths."""
        return tuple((site, widths) for site, widths in self.free_sites if site in self.members)

    @cached_property
    def free_sites(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Sites with more than one width, those of groups listed singly, with these widths."""
        return tuple((site, widths) for site, widths in self.widths if len(widths) > 1)

    @cached_property
    def members(self) -> dict[str, tuple[str, ...]]:
        """The sites of each free choice."""
        groups = {site: group for group in self.groups for site in group}
        named: dict[tuple[str, ...], str] = {}
        for site, _ in self.free_sites:
            named.setdefault(groups.get(site, (site,)), site)
        return {name: sites for sites, name in named.items()}

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Number of widths of each free choice."""
        return tuple(len(widths) for _, widths in self.free)

    @property
    def full_precision(self) -> BitAllocation:
        """The allocation with every site in floating point, whatever the space allows."""
        return BitAllocation(tuple((site, FLOAT_BITS) for site, _ in self.widths))

    @property
    def size(self) -> int:
        """Number of different allocations."""
        return math.prod(self.shape)

    def decode(self, point: Point) -> BitAllocation:
        """Return the allocation at a point.

        Raises:
            ValueError: the point has another length, or an index lies outside its choice's widths.
        """
        if len(point) != len(self.free):
            raise ValueError(f"point has {len(point)} indices; the space has {len(self.free)} free choices")
        for (name, widths), index in zip(self.free, point, strict=True):
            if not 0 <= index < len(widths):
                raise ValueError(f"index {index} of site '{name}' is outside its {len(widths)} widths")
        return BitAllocation(
            tuple((site, widths[0 if choice is None else point[choice]]) for site, widths, choice in self._choices)
        )

    def encode(self, allocation: BitAllocation) -> Point:
        """Return the point of an allocation.

        Raises:
            ValueError: the allocation has another site, a width outside the space, or two widths in a group.
        """
        by_site = allocation.by_site
        if by_site.keys() != dict(self.widths).keys():
            raise ValueError("the allocation's sites are not those of the space")
        for site, widths in self.widths:
            if by_site[site] not in widths:
                raise ValueError(f"width {by_site[site]} of site '{site}' is outside the space ({list(widths)})")
        for group in self.groups:
            if len({by_site[site] for site in group}) > 1:
                raise ValueError(f"sites {list(group)} are a group of the space and have several widths")
        return tuple(widths.index(by_site[site]) for site, widths in self.free)

    @cached_property
    def _choices(self) -> tuple[tuple[str, tuple[int, ...], int | None], ...]:
        """Every site, its widths, and the free choice that decides between them."""
        decides = {site: choice for choice, (name, _) in enumerate(self.free) for site in self.members[name]}
        return tuple((site, widths, decides.get(site)) for site, widths in self.widths)


@dataclass(frozen=True)
class Seed:
    """An allocation that is scored before any sampler proposes: its point, and the rule it comes from."""

    strategy: str
    point: Point


def build_space(search: SearchConfig, network: "Sites") -> SearchSpace:
    """Build the space that an experiment asks for, over the sites of its network.

    A pattern uses shell wildcards and matches whole site names. If several patterns of `search.fixed` or of `search.allowed`
    match a site, the last one wins, and `fixed` wins over `allowed`. A group may take the widths that each of its sites may
    take. Tied sites are a group, too; what the sums of a tie add has 8 bits.

    Raises:
        UserError: a pattern matches no site or gives one a width it cannot take, a site stands in two groups, the sites of a
            group have no width in common, or a tie cannot have its widths.
    """
    sites = network.all
    fixed = _matched("search.fixed", {pattern: (bits,) for pattern, bits in search.fixed.items()}, sites)
    allowed = _matched("search.allowed", search.allowed, sites)
    trunk = search.activation_bits if search.trunk_bits is None else search.trunk_bits
    usual: dict[str, tuple[int, ...]] = dict.fromkeys(network.weights, search.weight_bits)
    usual |= dict.fromkeys(network.activations, search.activation_bits)
    usual |= dict.fromkeys(network.carried, trunk)
    widths = {site: fixed.get(site, allowed.get(site, usual[site])) for site in sites}
    groups = _grouped(search.groups, sites)
    for tie in network.ties:
        if tie.sums:
            widths |= _unrounded(tie, widths)
        else:
            groups = _joined(groups, tie.sites, sites)
    for group in groups:
        common = tuple(bits for bits in widths[group[0]] if all(bits in widths[site] for site in group))
        if not common:
            ranges = ", ".join(f"'{site}' {list(widths[site])}" for site in group)
            keys = "search.groups, quantization.tied_adds" if network.ties else "search.groups"
            raise UserError(f"{keys}: no width that all sites of a group may take; they may take {ranges}")
        widths.update(dict.fromkeys(group, common))
    apart = network.carried if trunk != search.activation_bits else ()
    return SearchSpace(tuple(widths.items()), frozenset({*fixed, *apart}), groups)


def uniform_seeds(space: SearchSpace) -> list[Seed]:
    """Make one allocation for every pair of weight and activation width. Sites that cannot take a width take the nearest."""
    weights, activations = _searched_widths(space)
    pairs = product(activations, weights)
    return distinct(_seed(space, UNIFORM, {name: w if is_weight(name) else a for name, _ in space.free}) for a, w in pairs)


def uniform_weights(space: SearchSpace) -> dict[int, BitAllocation]:
    """Return the uniform allocation of each weight width, with activations at their widest."""
    weights, activations = _searched_widths(space)
    widest = {name: activations[-1] for name, _ in space.free}
    free = [name for name, _ in space.free if is_weight(name)]
    return {w: space.decode(_seed(space, UNIFORM, widest | dict.fromkeys(free, w)).point) for w in weights}


def ends_seeds(space: SearchSpace) -> list[Seed]:
    """Make the allocations of the hand rule 'ends at 8, rest at n', for every weight width n below 8. Activations are at their
    widest.

    The ends are the weights of the first and the last layer. If neither may take 8 bits, there are no such allocations.
    """
    weight_sites = [site for site, _ in space.widths if is_weight(site)]
    outer = {*weight_sites[:1], *weight_sites[-1:]}
    ends = {name for name, widths in space.free if END_BITS in widths and outer & set(space.members[name])}
    weights, activations = _searched_widths(space)
    widest = {name: END_BITS if name in ends else activations[-1] for name, _ in space.free}
    rest = [name for name, _ in space.free if is_weight(name) and name not in ends]
    return distinct(_seed(space, ENDS, widest | dict.fromkeys(rest, w)) for w in weights if w < END_BITS and ends)


def distinct(seeds: Iterable[Seed]) -> list[Seed]:
    """Return the first seed at each point."""
    found: dict[Point, Seed] = {}
    for seed in seeds:
        found.setdefault(seed.point, seed)
    return list(found.values())


def _matched(key: str, patterns: Mapping[str, tuple[int, ...]], sites: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return the widths that patterns give to the sites they match; the last match wins."""
    found: dict[str, tuple[int, ...]] = {}
    for pattern, widths in patterns.items():
        for site in _matches(key, pattern, sites):
            possible = WEIGHT_WIDTHS if is_weight(site) else ACTIVATION_WIDTHS
            wrong = next((bits for bits in widths if bits not in possible), None)
            if wrong is not None:
                raise UserError(f"{key}: pattern '{pattern}' sets site '{site}' to {wrong} bits; wanted one of {list(possible)}")
            found[site] = tuple(widths)
    return found


def _matches(key: str, pattern: str, sites: Sequence[str]) -> list[str]:
    matches = [site for site in sites if fnmatchcase(site, pattern)]
    if not matches:
        raise UserError(f"{key}: pattern '{pattern}' matches no site; sites are like '{sites[0]}'")
    return matches


def _grouped(groups: Sequence[Sequence[str]], sites: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Return the sites of each group, in the order of execution. A group of one site is left out."""
    found = []
    seen: set[str] = set()
    for patterns in groups:
        matched = {site for pattern in patterns for site in _matches("search.groups", pattern, sites)}
        twice = next((site for site in sites if site in matched & seen), None)
        if twice is not None:
            raise UserError(f"search.groups: site '{twice}' stands in two groups; wanted one at most")
        seen |= matched
        if len(matched) > 1:
            found.append(tuple(site for site in sites if site in matched))
    return tuple(found)


def _joined(groups: Iterable[tuple[str, ...]], joined: Iterable[str], sites: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Join sites, and all groups that hold any of them, into one group."""
    apart, members = [], set(joined)
    for group in groups:
        if members.isdisjoint(group):
            apart.append(group)
        else:
            members.update(group)
    return (*apart, tuple(site for site in sites if site in members))


def _unrounded(tie: "Tie", widths: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the widths of a tie whose sums are never rounded: 16 bits for the sums, 8 bits for what they add."""
    for sites, wanted, key in ((tie.sums, WIDE_BITS, "search.trunk_bits"), (tie.sites, NARROW_BITS, "search.activation_bits")):
        wrong = next((site for site in sites if wanted not in widths[site]), None)
        if wrong is not None:
            raise UserError(
                f"quantization.tied_adds: '{wrong}' may take {list(widths[wrong])} bits; in a trunk of {WIDE_BITS} bits wanted "
                f"{wanted} among them: change {key}, or have a trunk of at most {NARROW_BITS} bits"
            )
    wide, narrow = (WIDE_BITS,), (NARROW_BITS,)
    return {**dict.fromkeys(tie.sums, wide), **dict.fromkeys(tie.sites, narrow)}


def _searched_widths(space: SearchSpace) -> tuple[list[int], list[int]]:
    """Return the widths that free weights and free activations take; one placeholder if none is free."""
    free = [(site, widths) for site, widths in space.free if site not in space.fixed]
    weights = {width for site, widths in free for width in widths if is_weight(site)}
    activations = {width for site, widths in free for width in widths if not is_weight(site)}
    return sorted(weights) or [END_BITS], sorted(activations) or [END_BITS]


def _seed(space: SearchSpace, strategy: str, wanted: Mapping[str, int]) -> Seed:
    """Return the seed with each choice at the width nearest to the wanted one; of two equally near, the wider.

    Choices that do not follow the uniform widths are at their widest.
    """
    point = []
    for name, widths in space.free:
        bits = widths[-1] if name in space.fixed else wanted[name]
        point.append(min(range(len(widths)), key=lambda index: (abs(widths[index] - bits), -widths[index])))
    return Seed(strategy, tuple(point))
