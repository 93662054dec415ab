"""The belief about the loss of every site at every width: a Gaussian that each scored candidate narrows.

A loss is the relative noise 10^(drop in dB / 10) - 1. As noise powers add, the loss of an allocation is the sum of its sites'
losses and of an intercept, which is the loss of the sites that are not searched. The prior's mean is a sensitivity table. Its
covariance allows for an error factor common to all sites, one for each site, and an error at each width.

The posterior of this linear model is Gaussian as well. It is kept as a mean and a square root of the covariance. A scored
candidate changes the root by a matrix of rank one, so no matrix is factorised or inverted (Potter's form of the Kalman update;
Bierman, Factorization Methods for Discrete Sequential Estimation, 1977, section II.8).

Where options of structure are searched, they have losses as choices have. What is gone or whole loses nothing: it stands for a
parameter that is known to be 0. The terms of `Terms` with learned factors are added.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy.linalg.blas import dger

from hwsearch.search.exact.layout import Layout

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


class Terms(Protocol):
    """What structure adds to the sum of losses, linear in factors that are learned."""

    layout: Layout
    searched: npt.NDArray[np.bool_]
    """[variables, values] which losses are not known to be 0."""
    factors: FloatArray
    """[terms] prior means of the factors."""
    deviations: FloatArray
    """[terms] their standard deviations."""

    def terms(self, points: OptionArray) -> FloatArray:
        """Return the terms [points, terms] at canonical points."""


class LossPosterior:
    """The posterior of the loss by choice and option."""

    def __init__(
        self,
        prior: FloatArray,
        deviation: FloatArray,
        valid: npt.NDArray[np.bool_],
        spread: PriorSpread,
        structure: Terms | None = None,
    ) -> None:
        """Start from a prior.

        Args:
            prior: [choices, options] losses, 0 or more.
            deviation: [choices, options] standard deviation of each loss alone, above 0.
            valid: [choices, options] which options exist.
            spread: standard deviations of the errors that losses share.
            structure: if options of structure are searched; choices are then followed by options in all tables.
        """
        self._structure = structure
        valid = valid if structure is None else valid & structure.searched
        self._valid = valid
        self._column = np.full(valid.shape, -1)
        self._column[valid] = np.arange(valid.sum())
        self._first = np.arange(len(valid)) * valid.shape[1]
        """Start of each choice in the flat `_column`."""
        choice = np.nonzero(valid)[0]
        if structure is None:
            self._theta = np.append(prior[valid], 0.0)
            self._root = _prior_root(prior[valid], np.append(deviation[valid], spread.intercept), choice, spread)
            return
        # The losses, the factors of the terms, a loss that is known to be 0, the intercept
        self._terms = slice(len(choice), len(choice) + len(structure.factors))
        self._zero = self._terms.stop
        self._column[~valid] = self._zero
        self._theta = np.concatenate([prior[valid], structure.factors, [0.0, 0.0]])
        deviations = np.concatenate([deviation[valid], structure.deviations, [0.0, spread.intercept]])
        option = choice >= len(structure.layout.choices)
        self._root = _prior_root(prior[valid], deviations, choice, spread, option)
        self._root[self._zero] = 0.0

    @property
    def mean(self) -> FloatArray:
        """The posterior mean, [choices, options]; 0 beyond the options of a choice."""
        return self._table(self._theta)

    def update(self, options: OptionArray, loss: float, deviation: float) -> None:
        """Learn the loss of an allocation [choices], which is known up to a standard deviation."""
        columns = np.append(self._columns(options[None])[0], -1)
        direction = self._root[columns].sum(axis=0)
        if self._structure is not None:
            terms = self._structure.terms(options[None])[0]
            direction += terms @ self._root[self._terms]
            loss -= float(terms @ self._theta[self._terms])
        variance = float(direction @ direction) + deviation**2
        gain = self._root @ direction
        self._theta += gain * ((loss - self._theta[columns].sum()) / variance)
        shrink = 1.0 / (variance + deviation * np.sqrt(variance))
        # In place, because the matrix is large. BLAS wants the memory order of its transpose.
        dger(-shrink, direction, gain, a=self._root.T, overwrite_a=True)

    def expect(self, options: OptionArray) -> FloatArray:
        """Return the mean losses [allocations] of allocations [allocations, choices]."""
        total: FloatArray = self._theta[-1] + self._theta[self._columns(options)].sum(axis=1)
        if self._structure is not None:
            total += self._structure.terms(options) @ self._theta[self._terms]
        return total

    def predict(self, options: OptionArray) -> tuple[FloatArray, FloatArray]:
        """Return mean and standard deviation of the losses of allocations [allocations, choices], each [allocations]."""
        columns = self._columns(options)
        rows = np.zeros((len(options), len(self._theta)), np.float32)
        rows[:, -1] = 1.0
        rows[np.arange(len(rows))[:, None], columns] = 1.0
        if self._structure is not None:
            rows[:, self._terms] = self._structure.terms(options)
        # Single precision halves the time of this product, the largest of all, and changes a deviation by a millionth. About half
        # of the options are used by no allocation.
        used = np.flatnonzero(rows.any(axis=0))
        roots = rows[:, used] @ self._root[used].astype(np.float32)
        return self.expect(options), np.sqrt(np.square(roots, dtype=np.float64).sum(axis=1))

    def draw(self, rng: np.random.Generator) -> FloatArray:
        """Draw a table of losses [choices, options] from the posterior, 0 or more, without the intercept."""
        return np.maximum(self._table(self._drawn(rng)), 0.0)

    def losses_and_factors(self, rng: np.random.Generator | None) -> tuple[FloatArray, FloatArray]:
        """Return losses [variables, values] and factors of terms, 0 or more: means, or drawn with `rng`.

        Raises:
            ValueError: no options of structure are searched.
        """
        if self._structure is None:
            raise ValueError("wanted a posterior with terms of structure")
        theta = self._theta if rng is None else self._drawn(rng)
        return np.maximum(self._table(theta), 0.0), np.maximum(theta[self._terms], 0.0)

    def _drawn(self, rng: np.random.Generator) -> FloatArray:
        drawn: FloatArray = self._theta + self._root @ rng.standard_normal(self._root.shape[1])
        return drawn

    def _columns(self, options: OptionArray) -> npt.NDArray[np.int64]:
        columns: npt.NDArray[np.int64] = self._column.take(options + self._first)
        if self._structure is not None:
            layout = self._structure.layout
            columns[:, layout.dependent] = np.where(layout.gone(options), self._zero, columns[:, layout.dependent])
        return columns

    def _table(self, values: FloatArray) -> FloatArray:
        table = np.zeros(self._valid.shape)
        table[self._valid] = values[: np.count_nonzero(self._valid)]
        return table


def _prior_root(
    losses: FloatArray,
    deviations: FloatArray,
    choice: npt.NDArray[np.int64],
    spread: PriorSpread,
    option: npt.NDArray[np.bool_] | None = None,
) -> FloatArray:
    """Return a square matrix whose product with its transpose is the prior covariance.

    Args:
        losses: the losses; the parameters begin with them.
        deviations: of all parameters by themselves.
        choice: [losses] the choice of each loss.
        spread: errors that losses share.
        option: [losses] which losses are those of options of structure. These share a factor of their own.
    """
    common = [np.ones(len(losses), np.bool_)] if option is None else [~option, option]
    factors = np.zeros((len(deviations), int(choice.max()) + 1 + len(common)))
    factors[np.arange(len(losses)), choice] = spread.site * losses
    for column, sharing in enumerate(common, start=-len(common)):
        factors[: len(losses), column] = np.where(sharing, spread.common * losses, 0.0)
    # The triangle of a QR decomposition has the same product, and fewer columns.
    both = np.concatenate([np.diag(deviations), factors], axis=1)
    return np.ascontiguousarray(np.asarray(np.linalg.qr(both.T, mode="r")).T)
