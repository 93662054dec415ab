"""The contract of samplers: what makes one, and what it may know of the search."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hwsearch.experiment import Experiment
from hwsearch.search.costs import CostBook
from hwsearch.search.proposer import Proposer
from hwsearch.search.space import SearchSpace
from hwsearch.sensitivity.table import SensitivityTable


@dataclass(frozen=True)
class Searched:
    """What a sampler may know before it proposes.

    Attributes:
        experiment: with the seed, the objectives and the limits.
        space: of allocations.
        costs: what allocations are charged.
        tables: sensitivities by name, those of `search.priors` at least.
    """

    experiment: Experiment
    space: SearchSpace
    costs: CostBook
    tables: Mapping[str, SensitivityTable]


MakeProposer = Callable[[Searched], Proposer]
"""Makes the proposer of a search. Raises `UserError` for an experiment that it cannot serve."""
