"""Costs to propose with and limits, against the columns that candidates are charged and every allocation of small spaces."""

import math
import re
from itertools import product

import numpy as np
import pytest

from hwsearch.errors import UserError
from hwsearch.experiment import Experiment
from hwsearch.search.costing import make_cost
from hwsearch.search.exact.costs import NotSeparableError
from hwsearch.search.exact.problem import AllocationProblem
from hwsearch.search.known_costs import CostBook
from hwsearch.search.space import SearchSpace
from tests.search.synthetic import make_experiment, space_of

TARGETS = ("bitfusion", "cortex-m7-cmsis-nn", "ethos-u55-128", "x86-onnxruntime")
METRICS = ("latency_ms", "weight_bytes", "peak_activation_bytes")
COLUMNS = ("size_bytes", "average_bits", "tcn_average_bits", *(f"{metric}[{target}]" for metric in METRICS for target in TARGETS))
GROUPS = [["blocks.0.*.weight"], ["*.add.output", "input_proj.output"]]


def book_of(**search: object) -> tuple[CostBook, SearchSpace, Experiment]:
    experiment = make_experiment(20, **search)
    space = space_of(experiment)
    return CostBook(experiment, space), space, experiment


def random_points(space: SearchSpace, count: int = 30) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(0)
    return [tuple(rng.integers(space.shape).tolist()) for _ in range(count)]


def charged(experiment: Experiment, space: SearchSpace, points: list[tuple[int, ...]], column: str) -> list[float]:
    return [row[column] for row in make_cost(experiment)([space.decode(point) for point in points])]


@pytest.mark.parametrize("column", COLUMNS)
def test_sums_are_what_candidates_are_charged(column: str) -> None:
    book, space, experiment = book_of(groups=GROUPS, targets=[target for target in TARGETS if target in column], trunk_bits=[8])
    points = random_points(space)
    wanted = charged(experiment, space, points, column)
    cost = book.exact(column)
    problem = AllocationProblem(space.widths, np.zeros(cost.tables.shape[1:]), (cost,), space.groups)
    indices = np.array(
        [[widths.index(space.decode(point).by_site[site]) for site, widths in space.widths] for point in points], np.int8
    )
    np.testing.assert_allclose(problem.cost_of(column, indices), wanted, rtol=1e-9)
    known = book.known(column)
    np.testing.assert_allclose(known.charge(np.array(points)), wanted, rtol=1e-12)
    if cost.additive:
        sums = known.table[np.arange(len(space.free)), np.array(points)].sum(axis=1)
        np.testing.assert_allclose(sums - sums[0], np.array(wanted) - wanted[0], rtol=1e-9, atol=1e-9 * max(wanted))


@pytest.mark.parametrize("column", ["latency_ms[bitfusion]", "latency_ms[ethos-u55-128]", "size_bytes"])
def test_where_weights_and_activations_are_free_the_charge_stays_exact(column: str) -> None:
    """A bit-flexible accelerator's time depends on a layer's two widths jointly: it is no sum, and proposed with anyhow."""
    book, space, experiment = book_of(
        weight_bits=[2, 4, 8], activation_bits=[4, 8], groups=GROUPS, targets=["bitfusion", "ethos-u55-128"]
    )
    if column == "latency_ms[bitfusion]":
        with pytest.raises(NotSeparableError, match="is no sum over the sites"):
            book.exact(column)
    points = random_points(space)
    known = book.known(column)
    np.testing.assert_allclose(known.charge(np.array(points)), charged(experiment, space, points, column), rtol=1e-12)
    assert known.table.shape == (len(space.free), 3)
    # Each entry is what one choice alone changes at the narrowest allocation.
    start = (0,) * len(space.free)
    entries = [(choice, option) for choice, (_, widths) in enumerate(space.free) for option in range(len(widths))]
    changed = [(*start[:choice], option, *start[choice + 1 :]) for choice, option in entries]
    before, *after = charged(experiment, space, [start, *changed], column)
    for (choice, option), value in zip(entries, after, strict=True):
        assert known.table[choice, option] == pytest.approx(value - before, rel=1e-9, abs=1e-9 * before)


def test_an_unknown_cost_is_refused_with_those_there_are() -> None:
    book, _, _ = book_of(targets=["ethos-u55-128"])
    for refused in (book.exact, book.known, lambda name: book.check_limits({name: 1.0})):
        with pytest.raises(UserError) as refusal:
            refused("latency_ms[abacus]")
        assert str(refusal.value).endswith(
            "no cost 'latency_ms[abacus]'; wanted size_bytes, average_bits, tcn_average_bits, or latency_ms[T], weight_bytes[T], "
            "peak_activation_bytes[T] with T one of ethos-u55-128"
        )


def test_what_a_target_does_not_run_has_no_cost_there() -> None:
    book, space, experiment = book_of(weight_bits=[4, 16], targets=["bitfusion", "x86-onnxruntime"])
    known = book.known("latency_ms[bitfusion]")
    assert np.isinf(known.table[:, 1]).all()
    points = list(product((0, 1), repeat=len(space.free)))[:9]
    for found, wanted in zip(
        known.charge(np.array(points)), charged(experiment, space, points, "latency_ms[bitfusion]"), strict=True
    ):
        assert found == wanted or (math.isinf(found) and math.isnan(wanted))
    with pytest.raises(UserError, match=r"latency_ms\[bitfusion\]: not finite at some widths of the space"):
        book.exact("latency_ms[bitfusion]")
    wide, _, _ = book_of(weight_bits=[16, 32], targets=["bitfusion"])
    with pytest.raises(UserError, match=r"latency_ms\[bitfusion\]: the target does not run the narrowest allocation"):
        wide.known("latency_ms[bitfusion]")


# Limits


def least_named(book: CostBook, limits: dict[str, float]) -> float:
    """The least that a refusal says can be met."""
    with pytest.raises(UserError) as refusal:
        book.check_limits(limits)
    message = str(refusal.value)
    assert message.startswith("search.limits: ")
    assert message.endswith(("raise it, or allow narrower widths", "raise it, or allow other widths"))
    assert "\n" not in message
    found = re.search(r"(?:takes?(?: is)?|least any allocation takes is|least of all that was tried is) ([0-9.e+]+)[:;]", message)
    assert found is not None, message
    return float(found[1])


SMALL = {"weight_bits": [2, 4, 8], "fixed": {"blocks.1.*.weight": 4}, "groups": [["blocks.0.*.weight"]]}


@pytest.mark.parametrize("column", ["size_bytes", "latency_ms[bitfusion]", "peak_activation_bytes[ethos-u55-128]"])
def test_a_limit_that_cannot_be_met_names_the_least_that_can(column: str) -> None:
    book, space, experiment = book_of(**SMALL, targets=["bitfusion", "ethos-u55-128"])
    every = list(product(*(range(count) for count in space.shape)))
    least = min(charged(experiment, space, every, column))
    named = least_named(book, {column: 0.9 * least})
    assert named == pytest.approx(least, rel=1e-6)
    book.check_limits({column: named})
    book.check_limits({column: 2 * least})


@pytest.mark.parametrize(("target", "share"), [("bitfusion", 1.0), ("gap8-pulp-nn", 0.5)])
def test_a_limit_on_a_cost_that_is_no_sum_is_held_against_the_least_that_is_found(target: str, share: float) -> None:
    """On GAP8, whose kernels unpack narrow weights, the narrowest allocation takes twice the least."""
    column = f"latency_ms[{target}]"
    book, space, experiment = book_of(weight_bits=[2, 8], activation_bits=[4, 8], targets=[target])
    drawn = np.random.default_rng(1).integers(0, 2, (3000, len(space.free)))
    (narrowest, widest, *others) = charged(experiment, space, [*np.stack([drawn[0] * 0, drawn[0] * 0 + 1]), *drawn], column)
    found = least_named(book, {column: 0.1 * narrowest})
    assert found <= min(share * narrowest, widest, *others) * (1 + 1e-9)
    book.check_limits({column: 1.001 * found})


def test_a_search_can_be_kept_to_what_fits_a_device() -> None:
    book, _, _ = book_of(weight_bits=[2, 4], activation_bits=[4], targets=["finn-zcu104"])
    book.check_limits({"occupancy[finn-zcu104]": 1.0})
    wide, _, _ = book_of(weight_bits=[8], activation_bits=[8], targets=["finn-zcu104"])
    assert least_named(wide, {"occupancy[finn-zcu104]": 1.0}) > 1


def test_limits_are_refused_exactly_where_no_allocation_meets_them_all() -> None:
    book, space, experiment = book_of(**SMALL, targets=["bitfusion"])
    every = list(product(*(range(count) for count in space.shape)))
    size, latency = (np.array(charged(experiment, space, every, column)) for column in ("size_bytes", "latency_ms[bitfusion]"))
    for share in (0.0, 0.3, 0.7):
        limits = {
            "size_bytes": float(np.quantile(size, share)),
            "latency_ms[bitfusion]": float(np.quantile(latency, share)) * (1 + 1e-9),
        }
        possible = ((size <= limits["size_bytes"]) & (latency <= limits["latency_ms[bitfusion]"])).any()
        if possible:
            book.check_limits(limits)
        else:
            with pytest.raises(UserError):
                book.check_limits(limits)


def test_a_space_of_constants_has_its_cost() -> None:
    book, space, experiment = book_of(weight_bits=[4])
    assert space.free == ()
    (only,) = charged(experiment, space, [()], "size_bytes")
    book.check_limits({"size_bytes": only})
    assert least_named(book, {"size_bytes": only - 1}) == only
    assert book.known("size_bytes").charge(np.zeros((1, 0), np.int64)).tolist() == [only]
