"""Parts of a network: the options of structure that lie together, and the choices of widths that depend on them.

A part is a residual block with the groups of channels inside it, or a group of channels outside all blocks. Its *variants* are
the combinations of what may be kept. What a choice of a part costs depends on the variant; parts do not depend on one another.
"""

from collections import Counter
from dataclasses import dataclass
from itertools import product

from hwsearch.search.space import SearchSpace


@dataclass(frozen=True)
class Part:
    """A part of a network.

    Attributes:
        options: its options, by their places in `SearchSpace.options`; a block comes first.
        variants: the index of the value of each of these options; combinations that mean the same are listed once. The last
            variant is the whole.
        choices: the free choices whose sites all belong to this part alone, by their places in `SearchSpace.free`.
        removes: whether the first option is a block. Its choices are gone in the variants that begin with 0.
    """

    options: tuple[int, ...]
    variants: tuple[tuple[int, ...], ...]
    choices: tuple[int, ...]
    removes: bool

    def gone(self, variant: tuple[int, ...]) -> bool:
        """Whether the choices of the part are gone in a variant."""
        return self.removes and variant[0] == 0


def find_parts(space: SearchSpace) -> tuple[Part, ...]:
    """Find the parts of a space, in the order of their first options."""
    network = space.network
    if network is None:
        return ()
    together: dict[str, list[int]] = {}
    for place, (name, _) in enumerate(space.options):
        block = network.options.block_around(name)
        searched = any(block == other for other, _ in space.options)
        together.setdefault(block if block is not None and searched else name, []).append(place)
    names = [[space.options[place][0] for place in places] for places in together.values()]
    decided = [frozenset[str]().union(*map(network.decided_by, each)) for each in names]
    parts_of = Counter(site for sites in decided for site in sites)  # a sum of two blocks goes with either
    own = [frozenset(site for site in sites if parts_of[site] == 1) for sites in decided]
    return tuple(_part(space, *each) for each in zip(together.values(), own, strict=True))


def _part(space: SearchSpace, places: list[int], sites: frozenset[str]) -> Part:
    removes = space.network is not None and space.network.options.is_block(space.options[places[0]][0])
    counts = [len(space.options[place][1]) for place in places]
    variants = [each for each in product(*map(range, counts)) if not (removes and each[0] == 0)]
    out = (0, *(count - 1 for count in counts[1:]))
    choices = (place for place, (name, _) in enumerate(space.free) if sites.issuperset(space.members[name]))
    return Part(tuple(places), tuple(([out] if removes else []) + variants), tuple(choices), removes)
