"""Optuna's NSGA-II."""

from optuna.samplers import NSGAIISampler

from hwsearch.search.proposer import Proposer
from hwsearch.search.samplers.optuna_proposer import OptunaProposer
from hwsearch.search.samplers.sampler import Searched


def make(searched: Searched) -> Proposer:
    """Breed generations of `search.population` candidates; the seeds are the first one."""
    population = searched.experiment.search.population
    return OptunaProposer(searched, lambda seed: NSGAIISampler(population_size=population, seed=seed))
