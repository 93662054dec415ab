"""What a search may leave out: the values of each option of structure, from the patterns of the experiment."""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from hwsearch.errors import UserError

if TYPE_CHECKING:  # graphs import torch, which is slow to load
    from hwsearch.network.options import Options

Values = dict[str, tuple[int, ...]]
"""What may be kept of each option, by its name, in rising order; the last value is the whole."""


def structure_values(patterns: Mapping[str, tuple[float, ...]], options: "Options") -> Values:
    """Return what may be kept of the options that `search.structure` names, in the order of the options.

    A block is kept or left out. Of a group of channels, a share is rounded to a number of channels.

    Raises:
        UserError: a pattern matches nothing, a block is to be kept in part, or a share leaves no channel.
    """
    shares: dict[str, tuple[str, tuple[float, ...]]] = {}
    for pattern, values in patterns.items():
        matched = [name for name in options.by_name if fnmatchcase(name, pattern)]
        if not matched:
            some = " or ".join(repr(name) for name in dict.fromkeys(_examples(options))) or "none"
            raise UserError(
                f"search.structure: pattern '{pattern}' matches nothing that can be left out; options are like {some}"
            )
        shares |= dict.fromkeys(matched, (pattern, values))
    found = {name: _kept(name, *shares[name], options) for name in options.by_name if name in shares}
    return {name: values for name, values in found.items() if len(values) > 1}


def _kept(name: str, pattern: str, shares: tuple[float, ...], options: "Options") -> tuple[int, ...]:
    """Return what may be kept of an option, with the whole."""
    whole, block = options.whole(name), options.is_block(name)
    kept = {whole}
    for share in shares:
        count = round(share * whole)
        if block and share not in (0.0, 1.0):
            raise UserError(f"search.structure: pattern '{pattern}' keeps {share:g} of block '{name}'; wanted 0, or the whole")
        if not block and count < 1:
            raise UserError(
                f"search.structure: pattern '{pattern}' keeps {share:g} of the {whole} channels of '{name}'; wanted one at least"
            )
        kept.add(count)
    return tuple(sorted(kept))


def _examples(options: "Options") -> Iterator[str]:
    yield from (block.name for block in options.blocks[:1])
    yield from (group.name for group in options.groups[:1])
