"""The strategies of a search: which sensitivities it starts from, and whether a sampler follows its seeds."""

from collections.abc import Callable
from dataclasses import dataclass

from hwsearch.experiment import SearchConfig


@dataclass(frozen=True)
class Strategy:
    """Says which candidates a search tries in addition to uniform allocations and those with ends at 8 bits.

    Attributes:
        priors: names of the sensitivities whose exact fronts seed the search.
        nas: whether the differentiable search seeds it.
        samples: whether the sampler follows the seeds. If not, each prior's front is taken at more and more sizes, until there
            are as many candidates as wanted.
    """

    priors: Callable[[SearchConfig], tuple[str, ...]] = lambda search: ()
    nas: Callable[[SearchConfig], bool] = lambda search: False
    samples: bool = False


PRIOR_CORRECTED = Strategy(lambda search: search.priors, lambda search: search.nas, samples=True)
UNIFORM = Strategy()
CURVATURE = Strategy(lambda search: ("curvature",))
KL = Strategy(lambda search: ("kl",))
NAS = Strategy(nas=lambda search: True)
