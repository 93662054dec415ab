"""Sites and bit allocations.

A site is a tensor whose bit-width is chosen; an allocation maps every site of a network to its width. Weight sites are named
after the layer (`blocks.3.expand.weight`), activation sites after the tensor:

    features                    the network's input
    input_proj.output           the trunk before the first block
    blocks.K.expand.output      behind the first activation
    blocks.K.depthwise.output   behind the second activation
    blocks.K.project.output     before the residual add
    blocks.K.add.output         the trunk behind block K, quantized once for all that read it
    mask_head.output            the network's output
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from hwsearch.errors import UserError
from hwsearch.experiment import FLOAT_BITS, SeparatorConfig

WEIGHT_WIDTHS = (2, 3, 4, 5, 6, 7, 8, 16, FLOAT_BITS)
ACTIVATION_WIDTHS = (4, 5, 6, 7, 8, FLOAT_BITS)


@dataclass(frozen=True)
class BitAllocation:
    """Bit-width of every site: a plain value, hashable, JSON in and out."""

    widths: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, widths: Mapping[str, int]) -> Self:
        """From a mapping of site to width, in the mapping's order."""
        return cls(tuple(widths.items()))

    @cached_property
    def by_site(self) -> dict[str, int]:
        """Width of each site."""
        return dict(self.widths)

    def to_json(self) -> dict[str, int]:
        """A JSON object, site to width."""
        return dict(self.widths)

    @classmethod
    def from_json(cls, value: Any, config: SeparatorConfig, source: str) -> Self:
        """Validate a JSON object against the sites of a network.

        Raises:
            UserError: not an object, an unknown or missing site, or a width the site cannot take; names `source` and site.
        """
        if not isinstance(value, dict):
            raise UserError(f"{source}: found {type(value).__name__}; wanted an object of site names and bit-widths")
        sites = all_sites(config)
        for site, bits in value.items():
            if site not in sites:
                raise UserError(f"{source}: unknown site '{site}'; the network's sites are like '{sites[0]}'")
            allowed = WEIGHT_WIDTHS if is_weight(site) else ACTIVATION_WIDTHS
            if type(bits) is not int or bits not in allowed:
                raise UserError(f"{source}: site '{site}' has width {bits!r}; wanted one of {list(allowed)}")
        missing = [site for site in sites if site not in value]
        if missing:
            raise UserError(f"{source}: site '{missing[0]}' is missing ({len(missing)} in all); wanted every site")
        return cls(tuple((site, value[site]) for site in sites))


def is_weight(site: str) -> bool:
    """Whether a site is a layer's weights (else it is an activation)."""
    return site.endswith(".weight")


def weight_sites(config: SeparatorConfig) -> tuple[str, ...]:
    """Weight sites in the order of execution."""
    blocks = [
        f"blocks.{block}.{layer}.weight" for block in range(config.R * config.X) for layer in ("expand", "depthwise", "project")
    ]
    return ("input_proj.weight", *blocks, "mask_head.weight")


def activation_sites(config: SeparatorConfig) -> tuple[str, ...]:
    """Activation sites in the order of execution."""
    blocks = [
        f"blocks.{block}.{tensor}"
        for block in range(config.R * config.X)
        for tensor in ("expand.output", "depthwise.output", "project.output", "add.output")
    ]
    return ("features", "input_proj.output", *blocks, "mask_head.output")


def all_sites(config: SeparatorConfig) -> tuple[str, ...]:
    """Weight sites, then activation sites."""
    return weight_sites(config) + activation_sites(config)


def uniform(config: SeparatorConfig, weight_bits: int, activation_bits: int = FLOAT_BITS) -> BitAllocation:
    """The allocation with one width for all weights and one for all activations."""
    return BitAllocation(
        tuple((site, weight_bits) for site in weight_sites(config))
        + tuple((site, activation_bits) for site in activation_sites(config))
    )
