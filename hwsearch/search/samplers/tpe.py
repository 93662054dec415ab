"""Optuna's tree-structured Parzen estimator."""

from optuna.samplers import TPESampler

from hwsearch.search.proposer import Proposer
from hwsearch.search.samplers.optuna_proposer import OptunaProposer
from hwsearch.search.samplers.sampler import Searched


def make(searched: Searched) -> Proposer:
    """Draw from the estimator once `search.population` candidates are scored, and at random until then.

    Running trials count as bad ones (constant liar), so that parallel workers spread out.
    """
    first = searched.experiment.search.population

    def sampler(seed: int) -> TPESampler:
        return TPESampler(n_startup_trials=first, multivariate=True, constant_liar=True, seed=seed)

    return OptunaProposer(searched, sampler)
