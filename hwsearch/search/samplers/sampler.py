"""The contract of samplers: a function that makes the proposer, and what it may know of the search."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from hwsearch.experiment import Experiment
from hwsearch.search.costs import CostBook
from hwsearch.search.proposer import Proposer
from hwsearch.search.space import SearchSpace
from hwsearch.sensitivity.table import SensitivityTable


@dataclass(frozen=True)
class Searched:
    """What a sampler may know before it proposes."""

    experiment: Experiment
    space: SearchSpace
    costs: CostBook
    tables: Mapping[str, SensitivityTable]
    """Sensitivities by name, at least those of `search.priors`."""
    structure_losses: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    """Relative noise by option of structure and what is kept of it; needed where the space has options."""


MakeProposer = Callable[[Searched], Proposer]
"""Makes the proposer of a search. It raises `UserError` for an experiment that it cannot serve."""
