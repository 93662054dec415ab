"""The search space: which sites are free, which widths each may take, and allocations as points of integers.

A *point* holds, for every free site, the index of its width among the widths that the site may take. Sites
with a single width (fixed by a pattern, or because the experiment allows only one) are constants and no part
of a point.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

from hwsearch.errors import UserError
from hwsearch.experiment import SearchConfig, SeparatorConfig
from hwsearch.separator.allocation import (
    ACTIVATION_WIDTHS,
    WEIGHT_WIDTHS,
    BitAllocation,
    all_sites,
    is_weight,
)

Point = tuple[int, ...]
"""Index of the chosen width of every free site."""

END_BITS = 8
"""Width at which hand rules keep the first and the last layer."""


@dataclass(frozen=True)
class SearchSpace:
    """Every site of a network with the widths it may take, in rising order; one width makes it a constant."""

    widths: tuple[tuple[str, tuple[int, ...]], ...]
    fixed: frozenset[str] = frozenset()
    """Sites fixed by a pattern; they do not count when an allocation is called uniform."""

    @cached_property
    def free(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Sites with more than one width, and those widths."""
        return tuple((site, widths) for site, widths in self.widths if len(widths) > 1)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Number of widths of each free site."""
        return tuple(len(widths) for _, widths in self.free)

    @property
    def size(self) -> int:
        """Number of different allocations."""
        return math.prod(self.shape)

    def decode(self, point: Point) -> BitAllocation:
        """The allocation at a point.

        Raises:
            ValueError: the point has another length, or an index lies outside its site's widths.
        """
        if len(point) != len(self.free):
            raise ValueError(f"point has {len(point)} indices; the space has {len(self.free)} free sites")
        for (site, widths), index in zip(self.free, point, strict=True):
            if not 0 <= index < len(widths):
                raise ValueError(f"index {index} of site '{site}' is outside its {len(widths)} widths")
        chosen = {site: index for (site, _), index in zip(self.free, point, strict=True)}
        return BitAllocation(tuple((site, widths[chosen.get(site, 0)]) for site, widths in self.widths))

    def encode(self, allocation: BitAllocation) -> Point:
        """The point of an allocation.

        Raises:
            ValueError: the allocation has another site, or a width outside the space.
        """
        by_site = allocation.by_site
        if by_site.keys() != dict(self.widths).keys():
            raise ValueError("the allocation's sites are not those of the space")
        for site, widths in self.widths:
            if by_site[site] not in widths:
                raise ValueError(f"width {by_site[site]} of site '{site}' is outside the space ({list(widths)})")
        return tuple(widths.index(by_site[site]) for site, widths in self.free)


@dataclass(frozen=True)
class Seed:
    """An allocation that is scored before any sampler proposes: its point, and the rule it comes from."""

    strategy: str
    point: Point


def build_space(search: SearchConfig, separator: SeparatorConfig) -> SearchSpace:
    """The space that an experiment asks for.

    A pattern of `search.fixed` uses shell wildcards and matches whole site names; where several match, the
    last one holds.

    Raises:
        UserError: a pattern matches no site, or fixes a site at a width it cannot take.
    """
    sites = all_sites(separator)
    fixed = _fixed_widths(search.fixed, sites)
    return SearchSpace(
        widths=tuple(
            (
                site,
                (fixed[site],) if site in fixed else tuple(search.weight_bits if is_weight(site) else search.activation_bits),
            )
            for site in sites
        ),
        fixed=frozenset(fixed),
    )


def uniform_seeds(space: SearchSpace) -> list[Seed]:
    """One allocation for every weight width with every activation width; sites with one width keep it."""
    weights, activations = _searched_widths(space)
    return _distinct(
        [
            Seed("uniform", _snap(space, {site: w if is_weight(site) else a for site, _ in space.free}))
            for a in activations
            for w in weights
        ]
    )


def ends_seeds(space: SearchSpace) -> list[Seed]:
    """The hand rule 'ends at 8, rest at n', for every weight width n below 8, activations at their widest.

    The ends are the first and the last layer's weights. Empty where neither end may take 8 bits.
    """
    weight_sites = [site for site, _ in space.widths if is_weight(site)]
    if not weight_sites:
        return []
    ends = {site for site, widths in space.free if site in (weight_sites[0], weight_sites[-1]) and END_BITS in widths}
    if not ends:
        return []
    weights, activations = _searched_widths(space)
    return _distinct(
        [
            Seed(
                "ends-at-8",
                _snap(
                    space,
                    {site: END_BITS if site in ends else (w if is_weight(site) else activations[-1]) for site, _ in space.free},
                ),
            )
            for w in weights
            if w < END_BITS
        ]
    )


def _fixed_widths(patterns: Mapping[str, int], sites: tuple[str, ...]) -> dict[str, int]:
    fixed: dict[str, int] = {}
    for pattern, bits in patterns.items():
        matches = [site for site in sites if fnmatchcase(site, pattern)]
        if not matches:
            raise UserError(f"search.fixed: pattern '{pattern}' matches no site; sites are like '{sites[0]}'")
        for site in matches:
            allowed = WEIGHT_WIDTHS if is_weight(site) else ACTIVATION_WIDTHS
            if bits not in allowed:
                raise UserError(
                    f"search.fixed: pattern '{pattern}' sets site '{site}' to {bits} bits; wanted one of {list(allowed)}"
                )
            fixed[site] = bits
    return fixed


def _searched_widths(space: SearchSpace) -> tuple[list[int], list[int]]:
    """The widths that free weights and free activations take; one placeholder where none is free."""
    weights = {width for site, widths in space.free for width in widths if is_weight(site)}
    activations = {width for site, widths in space.free for width in widths if not is_weight(site)}
    return sorted(weights) or [END_BITS], sorted(activations) or [END_BITS]


def _snap(space: SearchSpace, wanted: Mapping[str, int]) -> Point:
    return tuple(widths.index(wanted[site]) for site, widths in space.free)


def _distinct(seeds: list[Seed]) -> list[Seed]:
    return list({seed.point: seed for seed in seeds}.values())
