"""New proposals: asks the proposers in turn, and mutates a proposal that repeats a candidate."""

from collections.abc import Sequence, Set

import numpy as np

from hwsearch.search.proposer import Proposal, Proposer
from hwsearch.search.space import Point

ASKS_BEFORE_MUTATION = 8
"""After this many proposals that repeat candidates, the last one is mutated."""

MUTATIONS_BEFORE_COUNTING = 100
"""After this many mutations that lead to known points, the space counts as nearly full and is counted through."""


def new_proposal(
    proposers: Sequence[Proposer], known: Set[Point], shape: tuple[int, ...], rng: np.random.Generator
) -> Proposal | None:
    """Return the proposal of the first proposer that has one, mutated if it repeats a candidate; None if none has one.

    Args:
        proposers: in the order in which they are asked.
        known: points of all candidates; must not be the whole space.
        shape: number of widths of each choice.
        rng: mutates.
    """
    for proposer in proposers:
        proposal = proposer.ask()
        for _ in range(ASKS_BEFORE_MUTATION - 1):
            if proposal is None or proposal.point not in known:
                break
            proposal = proposer.ask()
        if proposal is None:
            continue
        if proposal.point not in known:
            return proposal
        point = unknown_neighbour(proposal.point, shape, known, rng)
        return Proposal(point, f"{proposal.strategy}-mutated", proposal.state)
    return None


def unknown_neighbour(point: Point, shape: tuple[int, ...], known: Set[Point], rng: np.random.Generator) -> Point:
    """Return an unknown point near `point`, found by a random walk that changes one site at a time.

    In a nearly full space, the walk gives way to counting on from where it stands. That always ends, because `known` must not
    hold the whole space.
    """
    walk = list(point)
    for _ in range(MUTATIONS_BEFORE_COUNTING):
        site = int(rng.integers(len(shape)))
        walk[site] = (walk[site] + int(rng.integers(1, shape[site]))) % shape[site]
        if tuple(walk) not in known:
            return tuple(walk)
    while tuple(walk) in known:
        site = len(shape) - 1
        while walk[site] == shape[site] - 1:
            walk[site] = 0
            site -= 1
        walk[site] += 1
    return tuple(walk)
