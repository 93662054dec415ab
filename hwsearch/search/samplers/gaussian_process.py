"""Optuna's Gaussian process."""

import warnings

from optuna.exceptions import ExperimentalWarning
from optuna.samplers import GPSampler

from hwsearch.search.proposer import Proposer
from hwsearch.search.samplers.optuna_proposer import OptunaProposer
from hwsearch.search.samplers.sampler import Searched


def make(searched: Searched) -> Proposer:
    """Draw from the process once `search.population` candidates are scored, and at random until then."""
    first = searched.experiment.search.population

    def sampler(seed: int) -> GPSampler:
        with warnings.catch_warnings():
            # That it knows a deterministic objective is an experimental argument; it is the one that fits.
            warnings.simplefilter("ignore", ExperimentalWarning)
            return GPSampler(n_startup_trials=first, deterministic_objective=True, seed=seed)

    return OptunaProposer(searched, sampler)
