"""The posterior of the losses, against Gaussian conditioning with dense matrices."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsearch.search.posterior.model import LossPosterior, PriorSpread

Update = tuple[np.ndarray, float, float]


@dataclass(frozen=True)
class Case:
    prior: np.ndarray
    deviation: np.ndarray
    valid: np.ndarray
    spread: PriorSpread
    updates: list[Update]

    def posterior(self) -> LossPosterior:
        found = LossPosterior(self.prior, self.deviation, self.valid, self.spread)
        for update in self.updates:
            found.update(*update)
        return found

    def row(self, options: np.ndarray) -> np.ndarray:
        """The sum that an allocation measures: one entry of each choice, and the intercept."""
        chosen = np.zeros(self.valid.shape)
        chosen[np.arange(len(options)), options] = 1.0
        return np.append(chosen[self.valid], 1.0)

    def dense_prior(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance: own variances, and a factor for each choice and one for all, relative to the losses."""
        loss, choice = self.prior[self.valid], np.nonzero(self.valid)[0]
        count = len(loss)
        covariance = np.zeros((count + 1, count + 1))
        for i in range(count):
            for j in range(count):
                covariance[i, j] = self.spread.common**2 * loss[i] * loss[j]
                if choice[i] == choice[j]:
                    covariance[i, j] += self.spread.site**2 * loss[i] * loss[j]
        covariance[:count, :count] += np.diag(self.deviation[self.valid] ** 2)
        covariance[count, count] = self.spread.intercept**2
        return np.append(loss, 0.0), covariance

    def dense(self) -> tuple[np.ndarray, np.ndarray]:
        """All updates at once: N(m, S) given A x + e = y, with e ~ N(0, diag(d^2))."""
        mean, covariance = self.dense_prior()
        if not self.updates:
            return mean, covariance
        a = np.stack([self.row(options) for options, _, _ in self.updates])
        y = np.array([loss for _, loss, _ in self.updates])
        noise = np.diag([deviation**2 for _, _, deviation in self.updates])
        gain = covariance @ a.T @ np.linalg.inv(a @ covariance @ a.T + noise)
        return mean + gain @ (y - a @ mean), covariance - gain @ a @ covariance


@st.composite
def cases(draw: st.DrawFn) -> Case:
    counts = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    valid = np.arange(max(counts)) < np.array(counts)[:, None]
    numbers = st.floats(0.0, 3.0).map(lambda value: round(value, 3))
    positive = st.floats(0.05, 1.0)
    shape = valid.shape
    prior = np.array(draw(st.lists(numbers, min_size=valid.size, max_size=valid.size))).reshape(shape) * valid
    deviation = np.array(draw(st.lists(positive, min_size=valid.size, max_size=valid.size))).reshape(shape)
    spread = PriorSpread(common=draw(positive), site=draw(positive), intercept=draw(positive))
    updates = [
        (np.array([draw(st.integers(0, count - 1)) for count in counts]), draw(st.floats(-1.0, 10.0)), draw(positive))
        for _ in range(draw(st.integers(0, 6)))
    ]
    return Case(prior, deviation, valid, spread, updates)


@settings(deadline=None, max_examples=80)
@given(cases())
def test_updates_are_gaussian_conditioning(case: Case) -> None:
    found, (mean, covariance) = case.posterior(), case.dense()
    np.testing.assert_allclose(found.mean[case.valid], mean[:-1], atol=1e-8, rtol=1e-8)
    assert not found.mean[~case.valid].any()
    every = np.array(list(np.ndindex(*case.valid.sum(axis=1).tolist())))
    rows = np.stack([case.row(options) for options in every])
    expected, deviation = found.predict(every)
    np.testing.assert_allclose(expected, rows @ mean, atol=1e-8, rtol=1e-8)
    np.testing.assert_allclose(deviation, np.sqrt(np.diag(rows @ covariance @ rows.T)), atol=1e-8, rtol=1e-6)
    np.testing.assert_allclose(found.expect(every), expected, atol=1e-10, rtol=1e-10)


def test_draws_have_the_mean_and_the_covariance_of_the_posterior() -> None:
    """Losses far from zero, so that none is cut off there."""
    rng = np.random.default_rng(0)
    valid = np.array([[True, True, False], [True, True, True]])
    prior, deviation = rng.uniform(8.0, 12.0, valid.shape) * valid, rng.uniform(0.3, 0.6, valid.shape)
    updates = [(np.array([0, 2]), 21.0, 0.3), (np.array([1, 2]), 17.0, 0.5)]
    case = Case(prior, deviation, valid, PriorSpread(common=0.05, site=0.04, intercept=0.5), updates)
    mean, covariance = case.dense()
    posterior = case.posterior()
    draws = np.stack([posterior.draw(rng) for _ in range(20_000)])
    assert (draws[:, ~valid] == 0.0).all()
    draws = draws[:, valid]
    scale = np.sqrt(np.diag(covariance)[:-1])
    # Standard errors of means and of second moments over this many draws are below 0.01 deviations.
    np.testing.assert_allclose((draws.mean(axis=0) - mean[:-1]) / scale, 0.0, atol=0.04)
    np.testing.assert_allclose(np.cov(draws.T) / np.outer(scale, scale), covariance[:-1, :-1] / np.outer(scale, scale), atol=0.06)


def test_no_draw_is_below_zero() -> None:
    posterior = LossPosterior(np.full((3, 2), 0.1), np.ones((3, 2)), np.ones((3, 2), bool), PriorSpread())
    rng = np.random.default_rng(0)
    assert min(posterior.draw(rng).min() for _ in range(50)) == 0.0


def test_many_updates_stay_conditioned() -> None:
    """The square root form keeps variances above zero where thousands of sharp measurements leave almost none."""
    rng = np.random.default_rng(1)
    truth = rng.uniform(0.0, 1.0, (10, 4))
    valid = np.ones(truth.shape, bool)
    posterior = LossPosterior(truth * rng.lognormal(0.0, 0.7, (10, 1)), np.full(truth.shape, 0.2), valid, PriorSpread())
    for _ in range(2000):
        options = rng.integers(0, 4, 10)
        posterior.update(options, truth[np.arange(10), options].sum(), 1e-4)
    unseen = rng.integers(0, 4, (50, 10))
    mean, deviation = posterior.predict(unseen)
    assert (deviation > 0).all()
    np.testing.assert_allclose(mean, truth[np.arange(10), unseen].sum(axis=1), atol=1e-3)
    assert deviation == pytest.approx(np.zeros(50), abs=1e-3)
