"""Costs as tables over the parts of a network, from the changes that single choices and variants make."""

import math
from collections.abc import Callable, Iterator

import numpy as np

from hwsearch.search.exact.layout import PartTable
from hwsearch.search.exact.problem import FloatArray, IntArray
from hwsearch.search.parts import Part, find_parts
from hwsearch.search.space import SearchSpace


def part_table(space: SearchSpace, charge: Callable[[IntArray], FloatArray]) -> PartTable | None:
    """Tabulate a cost over the parts of a space.

    The table starts from the whole network at its narrowest widths. It is exact for a cost that adds up over the parts and,
    inside a variant, over the choices; the size of a file does but for about a hundred bytes. Else it is an approximation.

    Args:
        space: the space, with options.
        charge: computes the cost [N] of points [N, variables], which need not be canonical.

    Returns:
        The table, with infinity where the cost is infinite; None if it is infinite at the start already.
    """
    parts, places = find_parts(space), len(space.free)
    start = np.array([0] * places + [len(values) - 1 for _, values in space.options], np.int64)
    outside = sorted(set(range(places)) - {choice for part in parts for choice in part.choices})
    whole = Part((), ((),), tuple(outside), removes=False)  # what is always there, as a part with one variant
    points: list[IntArray] = []
    for part in (whole, *parts):
        points += _points(start, part, space)
    values = iter(charge(np.stack(points)).tolist())
    most = max((len(part.variants) for part in parts), default=1)
    widest = max((len(widths) for _, widths in space.free), default=0)
    choices, alone = np.zeros((places, most, widest)), np.zeros((len(parts), most))
    origin = math.nan
    for number, part in enumerate((whole, *parts), start=-1):
        for variant, indices in enumerate(part.variants):
            base = next(values)
            origin = base if number < 0 else origin
            if number >= 0:
                alone[number, variant] = base - origin
            for choice in () if part.gone(indices) else part.choices:
                for option in range(1, len(space.free[choice][1])):
                    choices[choice, variant, option] = next(values) - base
    return PartTable(choices, alone, origin) if math.isfinite(origin) else None


def _points(start: IntArray, part: Part, space: SearchSpace) -> Iterator[IntArray]:
    """Yield each variant of a part at the start's widths, each followed by its choices at other widths, one at a time."""
    for indices in part.variants:
        at = start.copy()
        at[[len(space.free) + option for option in part.options]] = indices
        yield at
        for choice in () if part.gone(indices) else part.choices:
            for option in range(1, len(space.free[choice][1])):
                changed = at.copy()
                changed[choice] = option
                yield changed
