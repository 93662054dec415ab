"""Optuna's random sampler."""

from optuna.samplers import RandomSampler

from hwsearch.search.proposer import Proposer
from hwsearch.search.samplers.optuna_proposer import OptunaProposer
from hwsearch.search.samplers.sampler import Searched


def make(searched: Searched) -> Proposer:
    """Draw uniformly at random."""
    return OptunaProposer(searched, lambda seed: RandomSampler(seed=seed))
