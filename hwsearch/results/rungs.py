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
    """How well the qualities at a cheaper fidelity rank those at a more expensive one."""

    below: Fidelity
    above: Fidelity
    spearman: float
    """Rank correlation over the candidates scored at both. NaN if these are fewer than four, or have equal qualities."""
    candidates: int
    """Number of candidates scored at both."""

    def __str__(self) -> str:
        figure = "too few to rank" if np.isnan(self.spearman) else f"rank correlation {self.spearman:.2f}"
        return f"{self.below.value} to {self.above.value}: {figure} over {self.candidates} candidates"


def rung_correlations(folder: Path) -> list[RungCorrelation]:
    """Correlate each fidelity of a search with the next higher one that it used.

    Raises:
        UserError: no record in the folder, or a damaged one.
    """
    rungs: dict[Fidelity, dict[int, float]] = {}
    for event in read_record(folder)[1]:
        if isinstance(event, Scored) and event.candidate != REFERENCE:
            rungs.setdefault(event.fidelity, {})[event.candidate] = event.metrics[QUALITY]
    found = []
    for below, above in pairwise(fidelity for fidelity in Fidelity if fidelity in rungs):
        both = rungs[below].keys() & rungs[above].keys()
        lower, upper = ([rungs[fidelity][number] for number in both] for fidelity in (below, above))
        enough = len(both) >= _FEWEST and np.ptp(lower) > 0 and np.ptp(upper) > 0
        found.append(RungCorrelation(below, above, float(spearmanr(lower, upper)[0]) if enough else np.nan, len(both)))
    return found
