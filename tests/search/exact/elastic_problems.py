"""Small problems with parts, their solution by going through every configuration, and one of a real size."""

from itertools import product

import numpy as np
from hypothesis import strategies as st

from hwsearch.search.exact.elastic import ElasticProblem
from hwsearch.search.exact.layout import Layout, PartTable
from hwsearch.search.parts import Part


def make_part(options, counts, choices, *, removes):
    """A part with these places of options, and its variants in the order of `find_parts`."""
    variants = [each for each in product(*map(range, counts)) if not (removes and each[0] == 0)]
    out = [(0, *(count - 1 for count in counts[1:]))] if removes else []
    return Part(tuple(options), tuple(out + variants), tuple(choices), removes)


@st.composite
def layouts(draw, most_parts=3):
    """Up to three parts, removable or not, with up to two groups of channels and three choices, and choices outside."""
    choices, options, parts, free = [], [], [], []
    for _ in range(draw(st.integers(0, most_parts))):
        removes = draw(st.booleans())
        counts = [2] * removes + draw(st.lists(st.integers(2, 3), min_size=0 if removes else 1, max_size=1 if removes else 2))
        inner = draw(st.lists(st.integers(2, 3), min_size=0, max_size=2))
        parts.append((range(len(options), len(options) + len(counts)), counts, len(inner), removes))
        options += counts
        free += inner
    outside = draw(st.lists(st.integers(2, 3), min_size=0 if parts else 1, max_size=2))
    # Choices of parts and those outside are mixed.
    order = draw(st.permutations(range(len(free) + len(outside))))
    choices = [0] * len(order)
    for place, count in zip(order, [*free, *outside], strict=True):
        choices[place] = count
    made, start = [], 0
    for places, counts, inner, removes in parts:
        made.append(make_part(places, counts, sorted(order[start : start + inner]), removes=removes))
        start += inner
    return Layout(tuple(choices), tuple(options), tuple(made))


def table_of(layout, number):
    """A table whose entries `number()` gives, with 0 where a choice is gone."""
    choices = np.zeros((*layout.present.shape, layout.valid.shape[1]))
    for place in np.argwhere(layout.present[:, :, None] & layout.valid[:, None]):
        choices[tuple(place)] = number()
    parts = np.array([number() for _ in range(layout.exists.size)], float).reshape(layout.exists.shape)
    return PartTable(choices, parts, number())


@st.composite
def elastic_problems(draw, costs=("size",), limit=9):
    layout = draw(layouts())
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    return ElasticProblem(
        layout,
        table_of(layout, lambda: float(rng.integers(0, limit + 4))),
        {name: table_of(layout, lambda: float(rng.integers(0, limit + 1))) for name in costs},
    )


def every_point(layout):
    """Every canonical point, once."""
    found = []
    for point in product(*map(range, layout.counts.tolist())):
        canonical = list(point)
        for part in layout.parts:
            if part.removes and point[len(layout.choices) + part.options[0]] == 0:
                for column in [*part.choices, *(len(layout.choices) + option for option in part.options[1:])]:
                    canonical[column] = int(layout.counts[column]) - 1
        if tuple(canonical) == point:
            found.append(point)
    return found


def value(layout, table, point):
    """What a table says of a canonical point, by plain sums."""
    total = table.constant
    at = dict.fromkeys(range(len(layout.choices)), 0)
    for place, part in enumerate(layout.parts):
        variant = part.variants.index(tuple(point[len(layout.choices) + option] for option in part.options))
        total += table.parts[place, variant]
        at |= dict.fromkeys(part.choices, variant)
    return total + sum(table.choices[choice, variant, point[choice]] for choice, variant in at.items())


def every_configuration(problem):
    """Canonical points with loss and costs: a list of (point, loss, {cost: value})."""
    return [
        (
            point,
            value(problem.layout, problem.loss, point),
            {name: value(problem.layout, table, point) for name, table in problem.costs.items()},
        )
        for point in every_point(problem.layout)
    ]


def real_sized(blocks=18, weights=3, activations=0, seed=0):
    """Blocks of some layers that may be left out or have 1/4 to 4/4 of their channels, with 1.5 MB of weights in 8 bits."""
    rng = np.random.default_rng(seed)
    bits, shares = np.array([2, 3, 4, 5, 6, 8]), np.array([0.25, 0.5, 0.75, 1.0])
    inner = weights + activations
    parts = [make_part((2 * i, 2 * i + 1), (2, 4), range(inner * i, inner * (i + 1)), removes=True) for i in range(blocks)]
    layout = Layout((6,) * (inner * blocks + 2), (2, 4) * blocks, tuple(parts))
    size, loss = (np.zeros((len(layout.choices), 5, 6)) for _ in range(2))
    counts = np.where(np.arange(inner) < weights, rng.choice([1536, 16384, 65536], (blocks, inner)), 0)
    sensitivity = rng.lognormal(0, 1.2, (blocks, inner))
    for block in range(blocks):
        for k in range(inner):
            size[block * inner + k, 1:] = np.round(shares[:, None] * counts[block, k]) * bits / 8
            loss[block * inner + k, 1:] = sensitivity[block, k] * 4.0**-bits * shares[:, None] ** -0.5
    size[-2:, 0], loss[-2:, 0] = 4096 * bits / 8, 3 * 4.0**-bits
    lost = rng.lognormal(-2, 1, (blocks, 1)) * np.array([1.0, 0.6, 0.25, 0.1, 0.0])
    kept = np.array([0, 40, 80, 120, 160]) * np.ones((blocks, 1))
    return ElasticProblem(layout, PartTable(loss, lost), {"size": PartTable(size, kept, 1000.0)})
