"""Bit allocations: the bit-width of every site of a network (`network.sites`)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from hwsearch.errors import UserError
from hwsearch.experiment import FLOAT_BITS

if TYPE_CHECKING:  # graphs want torch, which is slow to load
    from hwsearch.network.sites import Sites

WEIGHT_WIDTHS = (2, 3, 4, 5, 6, 7, 8, 16, FLOAT_BITS)
ACTIVATION_WIDTHS = (4, 5, 6, 7, 8, 16, FLOAT_BITS)


def weight_limit(bits: int) -> int:
    """Return the largest integer of a weight."""
    return int(2 ** (bits - 1) - 1)


@dataclass(frozen=True)
class BitAllocation:
    """The bit-width of every site: a hashable value."""

    widths: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, widths: Mapping[str, int]) -> Self:
        """Make an allocation from a mapping of site to width, in its order."""
        return cls(tuple(widths.items()))

    @cached_property
    def by_site(self) -> dict[str, int]:
        """The width of each site."""
        return dict(self.widths)

    def to_json(self) -> dict[str, int]:
        """Convert to a JSON object, site to width."""
        return dict(self.widths)

    def quantized(self, sites: Iterable[str]) -> list[str]:
        """List the sites that do not stay in floating point."""
        return [site for site in sites if self.by_site[site] != FLOAT_BITS]

    @classmethod
    def from_json(cls, value: Any, sites: "Sites", source: str) -> Self:
        """Validate a JSON object against the sites of a network.

        Raises:
            UserError: not an object, an unknown or missing site, or a width that the site cannot take. Names `source` and site.
        """
        if not isinstance(value, dict):
            raise UserError(f"{source}: found {type(value).__name__}; wanted an object of site names and bit-widths")
        names = dict.fromkeys(sites.all)
        for site, bits in value.items():
            if site not in names:
                raise UserError(f"{source}: unknown site '{site}'; the network's sites are like '{sites.all[0]}'")
            allowed = WEIGHT_WIDTHS if is_weight(site) else ACTIVATION_WIDTHS
            if type(bits) is not int or bits not in allowed:
                raise UserError(f"{source}: site '{site}' has width {bits!r}; wanted one of {list(allowed)}")
        missing = [site for site in names if site not in value]
        if missing:
            raise UserError(f"{source}: site '{missing[0]}' is missing ({len(missing)} in all); wanted every site")
        return cls(tuple((site, value[site]) for site in names))


def is_weight(site: str) -> bool:
    """Whether a site is the weights of a layer and not an activation."""
    return site.endswith(".weight")


def uniform(sites: "Sites", weight_bits: int, activation_bits: int = FLOAT_BITS, trunk_bits: int | None = None) -> BitAllocation:
    """Make an allocation with one width for all weights, one for all activations, and possibly one for the trunk."""
    weights, activations = dict.fromkeys(sites.weights, weight_bits), dict.fromkeys(sites.activations, activation_bits)
    carried = {} if trunk_bits is None else dict.fromkeys(sites.carried, max(activation_bits, trunk_bits))
    return BitAllocation.of(weights | activations | carried)
