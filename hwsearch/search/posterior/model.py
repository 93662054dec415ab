"""What is known of the loss of every site at every width: a Gaussian that each scored candidate narrows.

The loss of an allocation is the sum of its sites' losses and of an intercept (what the sites that are not searched lose), as
noise powers add: the relative noise 10^(drop in dB / 10) - 1. The prior's mean is a sensitivity table; its covariance says that
a table may be off by a factor common to all sites, by one of each site, and at each width by itself. The posterior of such a
linear model stays Gaussian and is kept as a mean and a square root of the covariance, which a scored candidate changes by a
matrix of rank one (Potter's form of the Kalman update; Bierman, Factorization Methods for Discrete Sequential Estimation, 1977,
section II.8): no matrix is factorised or inverted however many candidates are scored.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg.blas import dger

FloatArray = npt.NDArray[np.float64]
OptionArray = npt.NDArray[np.int64]
"""Positions of options among those of each choice, [allocations, choices]."""


@dataclass(frozen=True)
class PriorSpread:
    """How far off a prior may be beyond what its own standard deviations say.

    Attributes:
        common: relative, of one factor that all sites share.
        site: relative, of a factor for each site.
        intercept: absolute, of the loss that all allocations share.
    """

    common: float = 0.5
    site: float = 0.6
    intercept: float = 0.3


class LossPosterior:
    """Posterior of the loss by choice and option.

    Attributes:
        mean: [choices, options] posterior mean; 0 beyond the options of a choice.
    """

    def __init__(self, prior: FloatArray, deviation: FloatArray, valid: npt.NDArray[np.bool_], spread: PriorSpread) -> None:
        """Start from a prior.

        Args:
            prior: [choices, options] losses, 0 or more.
            deviation: [choices, options] standard deviation of each by itself, above 0.
            valid: [choices, options] which options exist.
            spread: what they share.
        """
        self._valid = valid
        self._column = np.full(valid.shape, -1)
        self._column[valid] = np.arange(valid.sum())
        self._first = np.arange(len(valid)) * valid.shape[1]
        """Where in `_column`, laid out flat, each choice begins."""
        self._theta = np.append(prior[valid], 0.0)
        self._root = _prior_root(prior[valid], deviation[valid], np.nonzero(valid)[0], spread)

    @property
    def mean(self) -> FloatArray:
        """See the class."""
        return self._table(self._theta)

    def update(self, options: OptionArray, loss: float, deviation: float) -> None:
        """Learn that an allocation [choices] lost `loss`, known to within a standard deviation."""
        columns = np.append(self._columns(options[None])[0], -1)
        direction = self._root[columns].sum(axis=0)
        variance = float(direction @ direction) + deviation**2
        gain = self._root @ direction
        self._theta += gain * ((loss - self._theta[columns].sum()) / variance)
        shrink = 1.0 / (variance + deviation * np.sqrt(variance))
        # In place: the matrix is by far the largest thing that moves here. BLAS wants the order of its transpose.
        dger(-shrink, direction, gain, a=self._root.T, overwrite_a=True)

    def expect(self, options: OptionArray) -> FloatArray:
        """Mean of the loss of allocations [allocations, choices], [allocations]."""
        total: FloatArray = self._theta[-1] + self._theta[self._columns(options)].sum(axis=1)
        return total

    def predict(self, options: OptionArray) -> tuple[FloatArray, FloatArray]:
        """Mean and standard deviation of the loss of allocations [allocations, choices]; each [allocations]."""
        columns = self._columns(options)
        rows = np.zeros((len(options), len(self._theta)), np.float32)
        rows[:, -1] = 1.0
        rows[np.arange(len(rows))[:, None], columns] = 1.0
        # Single precision halves the time of the largest product there is, and moves a deviation by a millionth; about half of
        # the options are nobody's.
        used = np.flatnonzero(rows.any(axis=0))
        roots = rows[:, used] @ self._root[used].astype(np.float32)
        return self.expect(options), np.sqrt(np.square(roots, dtype=np.float64).sum(axis=1))

    def draw(self, rng: np.random.Generator) -> FloatArray:
        """A table [choices, options] from the posterior, 0 or more, without the intercept."""
        return np.maximum(self._table(self._theta + self._root @ rng.standard_normal(self._root.shape[1])), 0.0)

    def _columns(self, options: OptionArray) -> npt.NDArray[np.int64]:
        columns: npt.NDArray[np.int64] = self._column.take(options + self._first)
        return columns

    def _table(self, values: FloatArray) -> FloatArray:
        table = np.zeros(self._valid.shape)
        table[self._valid] = values[:-1]
        return table


def _prior_root(losses: FloatArray, deviation: FloatArray, choice: npt.NDArray[np.int64], spread: PriorSpread) -> FloatArray:
    """A matrix whose product with its transpose is the prior covariance of losses and intercept."""
    own = np.diag(np.append(deviation, spread.intercept))
    factors = np.zeros((len(losses) + 1, int(choice.max()) + 2))
    factors[np.arange(len(losses)), choice] = spread.site * losses
    factors[:-1, -1] = spread.common * losses
    return _square(np.concatenate([own, factors], axis=1))


def _square(root: FloatArray) -> FloatArray:
    """The square root [n, n] with the same product: updates then take n^2 steps, not n times the number of factors."""
    return np.ascontiguousarray(np.asarray(np.linalg.qr(root.T, mode="r")).T)
