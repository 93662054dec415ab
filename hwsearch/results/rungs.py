"""How well a cheap fidelity predicts an expensive one: rank correlations between the rungs of a search."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from hwsearch.experiment import Fidelity
from hwsearch.search.objectives import QUALITY
from hwsearch.search.record import REFERENCE, Scored, read_record

_FEWEST = 4
"""With fewer candidates than this, a rank correlation says nothing."""


@dataclass(frozen=True)
class RungCorrelation:
    """How well one rung's qualities rank the next one's.

    Attributes:
        below: the cheaper fidelity.
        above: the more expensive one.
        spearman: rank correlation of quality over the candidates scored at both; NaN if these are fewer than four or have equal
            qualities.
        candidates: number of candidates scored at both.
    """

    below: Fidelity
    above: Fidelity
    spearman: float
    candidates: int

    def __str__(self) -> str:
        """Describe the correlation in one line."""
        figure = "too few to rank" if np.isnan(self.spearman) else f"rank correlation {self.spearman:.2f}"
        return f"{self.below.value} to {self.above.value}: {figure} over {self.candidates} candidates"


def rung_correlations(folder: Path) -> list[RungCorrelation]:
    """Correlate each fidelity of a search with the next higher one that it used.

    Raises:
        UserError: no record in the folder, or a damaged one.
    """
    _, events = read_record(folder)
    rungs: dict[Fidelity, dict[int, float]] = {}
    for event in events:
        if isinstance(event, Scored) and event.candidate != REFERENCE:
            rungs.setdefault(event.fidelity, {})[event.candidate] = event.metrics[QUALITY]
    used = [fidelity for fidelity in Fidelity if fidelity in rungs]
    found = []
    for below, above in pairwise(used):
        both = sorted(rungs[below].keys() & rungs[above].keys())
        lower, upper = ([rungs[fidelity][number] for number in both] for fidelity in (below, above))
        enough = len(both) >= _FEWEST and np.ptp(lower) > 0 and np.ptp(upper) > 0
        found.append(RungCorrelation(below, above, float(spearmanr(lower, upper)[0]) if enough else float("nan"), len(both)))
    return found
