"""The belief about the loss of every site at every width: a Gaussian that each scored candidate narrows.

A loss is the relative noise 10^(drop in dB / 10) - 1. As noise powers add, the loss of an allocation is the sum of its sites'
losses and of an intercept, which is the loss of the sites that are not searched. The prior's mean is a sensitivity table. Its
covariance allows for an error factor common to all sites, one for each site, and an error at each width.

The posterior of this linear model is Gaussian as well. It is kept as a mean and a square root of the covariance. A scored
candidate changes the root by a matrix of rank one, so no matrix is factorised or inverted (Potter's form of the Kalman update;
Bierman, Factorization Methods for Discrete Sequential Estimation, 1977, section II.8).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg.blas import dger

FloatArray = npt.NDArray[np.float64]
OptionArray = npt.NDArray[np.int64]
"""Options of choices, [allocations, choices]."""


@dataclass(frozen=True)
class PriorSpread:
    """Standard deviations of a prior's errors, in addition to its own standard deviations."""

    common: float = 0.5
    """Relative, of one factor that all sites share."""
    site: float = 0.6
    """Relative, of a factor for each site."""
    intercept: float = 0.3
    """Absolute, of the loss that all allocations share."""


class LossPosterior:
    """The posterior of the loss by choice and option."""

    def __init__(self, prior: FloatArray, deviation: FloatArray, valid: npt.NDArray[np.bool_], spread: PriorSpread) -> None:
        """Start from a prior.

        Args:
            prior: [choices, options] losses, 0 or more.
            deviation: [choices, options] standard deviation of each loss alone, above 0.
            valid: [choices, options] which options exist.
            spread: standard deviations of the errors that losses share.
        """
        self._valid = valid
        self._column = np.full(valid.shape, -1)
        self._column[valid] = np.arange(valid.sum())
        self._first = np.arange(len(valid)) * valid.shape[1]
        """Start of each choice in the flat `_column`."""
        self._theta = np.append(prior[valid], 0.0)
        self._root = _prior_root(prior[valid], deviation[valid], np.nonzero(valid)[0], spread)

    @property
    def mean(self) -> FloatArray:
        """The posterior mean, [choices, options]; 0 beyond the options of a choice."""
        return self._table(self._theta)

    def update(self, options: OptionArray, loss: float, deviation: float) -> None:
        """Learn the loss of an allocation [choices], which is known up to a standard deviation."""
        columns = np.append(self._columns(options[None])[0], -1)
        direction = self._root[columns].sum(axis=0)
        variance = float(direction @ direction) + deviation**2
        gain = self._root @ direction
        self._theta += gain * ((loss - self._theta[columns].sum()) / variance)
        shrink = 1.0 / (variance + deviation * np.sqrt(variance))
        # In place, because the matrix is large. BLAS wants the memory order of its transpose.
        dger(-shrink, direction, gain, a=self._root.T, overwrite_a=True)

    def expect(self, options: OptionArray) -> FloatArray:
        """Return the mean losses [allocations] of allocations [allocations, choices]."""
        total: FloatArray = self._theta[-1] + self._theta[self._columns(options)].sum(axis=1)
        return total

    def predict(self, options: OptionArray) -> tuple[FloatArray, FloatArray]:
        """Return mean and standard deviation of the losses of allocations [allocations, choices], each [allocations]."""
        columns = self._columns(options)
        rows = np.zeros((len(options), len(self._theta)), np.float32)
        rows[:, -1] = 1.0
        rows[np.arange(len(rows))[:, None], columns] = 1.0
        # Single precision halves the time of this product, the largest of all, and changes a deviation by a millionth. About half
        # of the options are used by no allocation.
        used = np.flatnonzero(rows.any(axis=0))
        roots = rows[:, used] @ self._root[used].astype(np.float32)
        return self.expect(options), np.sqrt(np.square(roots, dtype=np.float64).sum(axis=1))

    def draw(self, rng: np.random.Generator) -> FloatArray:
        """Draw a table of losses [choices, options] from the posterior, 0 or more, without the intercept."""
        return np.maximum(self._table(self._theta + self._root @ rng.standard_normal(self._root.shape[1])), 0.0)

    def _columns(self, options: OptionArray) -> npt.NDArray[np.int64]:
        columns: npt.NDArray[np.int64] = self._column.take(options + self._first)
        return columns

    def _table(self, values: FloatArray) -> FloatArray:
        table = np.zeros(self._valid.shape)
        table[self._valid] = values[:-1]
        return table


def _prior_root(losses: FloatArray, deviation: FloatArray, choice: npt.NDArray[np.int64], spread: PriorSpread) -> FloatArray:
    """Return a square matrix whose product with its transpose is the prior covariance of losses and intercept."""
    own = np.diag(np.append(deviation, spread.intercept))
    factors = np.zeros((len(losses) + 1, int(choice.max()) + 2))
    factors[np.arange(len(losses)), choice] = spread.site * losses
    factors[:-1, -1] = spread.common * losses
    # The triangle of a QR decomposition has the same product, and fewer columns.
    return np.ascontiguousarray(np.asarray(np.linalg.qr(np.concatenate([own, factors], axis=1).T, mode="r")).T)
