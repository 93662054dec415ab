"""Configurations: what is kept of a network, and the bit-width of every site of what is kept."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from hwsearch.separator.allocation import BitAllocation


@dataclass(frozen=True)
class Configuration:
    """What is kept of a network, and how many bits it has: a hashable value.

    Attributes:
        allocation: the width of every site of what is kept.
        structure: what is kept of each option that is not whole (`network.options.Options.relevant`), in the order of options.
    """

    allocation: BitAllocation
    structure: tuple[tuple[str, int], ...] = ()

    @classmethod
    def of(cls, widths: Mapping[str, int], structure: Mapping[str, int] | None = None) -> Self:
        """Make a configuration from the widths of sites and from what is kept."""
        return cls(BitAllocation.of(widths), tuple((structure or {}).items()))

    @property
    def kept(self) -> dict[str, int]:
        """What is kept of each option that is not whole."""
        return dict(self.structure)
