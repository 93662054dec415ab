"""Seeds that leave something out by simple rules: every group of channels at one share, and the least important blocks."""

from itertools import product

from hwsearch.search.space import Point, SearchSpace, Seed, distinct, uniform_weights
from hwsearch.search.structure_losses import StructureLosses
from hwsearch.separator.configuration import Configuration

UNIFORM_CHANNELS, FEWER_BLOCKS = "uniform-channels", "fewer-blocks"
"""Strategies of these seeds."""


def structure_seeds(space: SearchSpace, losses: StructureLosses) -> list[Seed]:
    """Make, at every uniform width of the weights, the networks with every group of channels at one of its values, and those
    without the 1, 2, 4, ... blocks that lose least. The activations are at their widest.

    Args:
        space: the space.
        losses: of every option and value (`ensure_structure_losses`).
    """
    if space.network is None:
        return []
    places = range(len(space.free), len(space.variables))
    block = [space.network.options.is_block(name) for name, _ in space.options]
    channels = [place for place, removes in zip(places, block, strict=True) if not removes]
    blocks = [place for place, removes in zip(places, block, strict=True) if removes]
    most = max((space.shape[place] for place in channels), default=1)
    narrow = [{place: max(0, space.shape[place] - 1 - fewer) for place in channels} for fewer in range(1, most)]
    ranked = sorted(blocks, key=lambda place: losses[space.variables[place][0]][0])
    counts = [2**power for power in range(len(blocks).bit_length()) if 2**power <= len(blocks)]
    shorter = [dict.fromkeys(ranked[:count], 0) for count in counts]
    found = []
    for allocation in reversed(uniform_weights(space).values()):
        whole = space.encode(Configuration(allocation))
        kinds = product((UNIFORM_CHANNELS,), narrow), product((FEWER_BLOCKS,), shorter)
        found += [Seed(strategy, space.canonical(_changed(whole, indices))) for kind in kinds for strategy, indices in kind]
    return distinct(found)


def _changed(point: Point, indices: dict[int, int]) -> Point:
    return tuple(indices.get(place, index) for place, index in enumerate(point))
