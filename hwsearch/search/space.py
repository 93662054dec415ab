"""The search space: which sites are free, which widths each may take, what may be left out, and configurations as points.

A *choice* is a site, or a group of sites that share a width; it is free if it has more than one width. A *point* holds, for every
free choice, the index of its width, and behind these, for every option of structure, the index of what is kept of it. Choices
with a single width (fixed by a pattern, or because the experiment allows only one) are constants and no part of a point.

Where something is left out, what a point says about the rest of it means nothing. In a *canonical* point such choices have their
widest width, and such options are whole.
"""

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING

from hwsearch.errors import UserError
from hwsearch.experiment import FLOAT_BITS, NARROW_BITS, WIDE_BITS, SearchConfig
from hwsearch.search.structure import structure_values
from hwsearch.separator.allocation import ACTIVATION_WIDTHS, WEIGHT_WIDTHS, BitAllocation, is_weight
from hwsearch.separator.configuration import Configuration

if TYPE_CHECKING:  # graphs import torch, which is slow to load
    from hwsearch.network.elastic_sites import ElasticSites
    from hwsearch.network.sites import Sites, Tie

Point = tuple[int, ...]
"""Index of the chosen width of every free choice, then of what is kept of every option."""

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
    options: tuple[tuple[str, tuple[int, ...]], ...] = ()
    """What may be kept of each option of structure, in rising order; the last value is the whole."""
    network: "ElasticSites | None" = field(default=None, compare=False, repr=False)
    """Knows which sites a structure keeps. Without it, a space with options has a shape, but no configurations."""

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
    def variables(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """What a point decides: the free choices with their widths, then the options with what may be kept."""
        return self.free + self.options

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Number of values of each variable."""
        return tuple(len(values) for _, values in self.variables)

    @property
    def full_precision(self) -> Configuration:
        """The whole network with every site in floating point, whatever the space allows."""
        return Configuration(BitAllocation(tuple((site, FLOAT_BITS) for site, _ in self.widths)))

    @property
    def size(self) -> int:
        """Number of different points. Where something may be left out, several mean the same configuration."""
        return math.prod(self.shape)

    def decode(self, point: Point) -> Configuration:
        """Return the configuration at a point.

        Raises:
            ValueError: the point has another length, or an index lies outside its variable's values.
        """
        if len(point) != len(self.variables):
            raise ValueError(f"point has {len(point)} indices; the space has {len(self.variables)} free choices and options")
        for (name, values), index in zip(self.variables, point, strict=True):
            if not 0 <= index < len(values):
                raise ValueError(f"index {index} of '{name}' is outside its {len(values)} values")
        chosen = zip(self.options, point[len(self.free) :], strict=True)
        structure = self._relevant({name: values[index] for (name, values), index in chosen})
        kept = self.sites_at(structure)
        widths = (
            (site, widths[0 if choice is None else point[choice]]) for site, widths, choice in self._choices if site in kept
        )
        return Configuration(BitAllocation(tuple(widths)), tuple(structure.items()))

    def encode(self, configuration: Configuration) -> Point:
        """Return the canonical point of a configuration.

        Raises:
            ValueError: the configuration has another site, a width outside the space, two widths in a group, or keeps what the
                space does not know.
        """
        by_site, kept = configuration.allocation.by_site, configuration.kept
        if kept != self._relevant(kept) or by_site.keys() != self.sites_at(kept):
            raise ValueError("the configuration's sites or options are not those of the space")
        options = dict(self.options)
        for name, value in kept.items():
            if value not in options.get(name, ()):
                raise ValueError(f"'{name}' is kept at {value}, outside the space ({list(options.get(name, ()))})")
        for site, widths in self.widths:
            if by_site.get(site, widths[0]) not in widths:
                raise ValueError(f"width {by_site[site]} of site '{site}' is outside the space ({list(widths)})")
        for group in self.groups:
            if len({by_site[site] for site in group if site in by_site}) > 1:
                raise ValueError(f"sites {list(group)} are a group of the space and have several widths")
        found = []
        for name, widths in self.free:
            first = next((by_site[site] for site in self.members[name] if site in by_site), widths[-1])
            found.append(widths.index(first))
        return (*found, *(values.index(kept.get(name, values[-1])) for name, values in self.options))

    def canonical(self, point: Point) -> Point:
        """Return the canonical point of the same configuration."""
        return self.encode(self.decode(point)) if self.options else point

    @property
    def inside(self) -> dict[str, str]:
        """The block, by its option, that a group of channels lies in, if both are options."""
        if self.network is None:
            return {}
        names = dict(self.options)
        around = {name: self.network.options.block_around(name) for name in names}
        return {name: block for name, block in around.items() if block in names and block != name and block is not None}

    def sites_at(self, structure: Mapping[str, int]) -> Set[str]:
        """Return the sites of what a structure keeps."""
        return self.network.at(structure) if structure and self.network is not None else self._all

    def _relevant(self, structure: Mapping[str, int]) -> dict[str, int]:
        if not structure:
            return {}
        if self.network is None:
            raise ValueError("a space with options wants the network that they are options of")
        return self.network.relevant(structure)

    @cached_property
    def _all(self) -> frozenset[str]:
        return frozenset(site for site, _ in self.widths)

    @cached_property
    def _choices(self) -> tuple[tuple[str, tuple[int, ...], int | None], ...]:
        """Every site, its widths, and the free choice that decides between them."""
        decides = {site: choice for choice, (name, _) in enumerate(self.free) for site in self.members[name]}
        return tuple((site, widths, decides.get(site)) for site, widths in self.widths)


@dataclass(frozen=True)
class Seed:
    """A configuration that is scored before any sampler proposes: its point, and the rule it comes from."""

    strategy: str
    point: Point


def build_space(search: SearchConfig, network: "Sites", elastic: "ElasticSites | None" = None) -> SearchSpace:
    """Build the space that an experiment asks for, over the sites of its network.

    A pattern uses shell wildcards and matches whole site names. If several patterns of `search.fixed` or of `search.allowed`
    match a site, the last one wins, and `fixed` wins over `allowed`. A group may take the widths that each of its sites may
    take. Tied sites are a group, too; what the sums of a tie add has 8 bits.

    Args:
        search: the patterns and widths.
        network: the sites of the whole network.
        elastic: what can be left out of it; needed if `search.structure` names anything.

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
    options = structure_values(search.structure, elastic.options) if elastic is not None else {}
    return SearchSpace(tuple(widths.items()), frozenset({*fixed, *apart}), groups, tuple(options.items()), elastic)


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
    return {w: space.decode(_seed(space, UNIFORM, widest | dict.fromkeys(free, w)).point).allocation for w in weights}


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
    return Seed(strategy, (*point, *(len(values) - 1 for _, values in space.options)))
