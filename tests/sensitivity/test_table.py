"""A table survives JSON bit by bit, and nothing broken becomes a table."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hwsearch.errors import UserError
from hwsearch.extensions import SENSITIVITIES
from hwsearch.sensitivity.table import SensitivityTable, over_mixtures, unit_of

NUMBER = st.floats(-1e6, 1e6)


def table(**changes: object) -> SensitivityTable:
    parts = {
        "method": "measured",
        "sites": ("a.weight", "features"),
        "widths": (2, 4),
        "value": [[0.5, 0.1], [math.nan, -0.25]],
        "standard_error": [[0.05, 0.01], [math.nan, 0.0]],
        "mixtures": 3,
    }
    return SensitivityTable(**{**parts, **changes})


@given(st.sampled_from(list(SENSITIVITIES)), st.lists(st.tuples(NUMBER, st.floats(0, 1e6)), min_size=6, max_size=6))
@settings(deadline=None)
def test_json_keeps_every_bit(method, numbers):
    value = np.array([number for number, _ in numbers]).reshape(3, 2)
    error = np.array([number for _, number in numbers]).reshape(3, 2)
    value[2, 0] = error[2, 0] = error[0, 1] = math.nan
    before = SensitivityTable(method, ("a", "b", "c"), (2, 3), value, error, 5)
    after = SensitivityTable.from_json(json.loads(json.dumps(before.to_json(), allow_nan=False)), "table.json")
    assert (after.method, after.sites, after.widths, after.mixtures) == (method, ("a", "b", "c"), (2, 3), 5)
    np.testing.assert_array_equal(after.value, value)
    np.testing.assert_array_equal(after.standard_error, error)


def test_every_method_states_its_unit():
    assert all(unit_of(method) for method in SENSITIVITIES)
    assert table().to_json()["unit"] == "dB"


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"method": "guess"},
        {"unit": "nats per frame"},
        {"mixtures": 0},
        {"mixtures": True},
        {"sites": ["a.weight", "a.weight"]},
        {"sites": "ab"},
        {"widths": [4, 2]},
        {"widths": [2.0, 4.0]},
        {"widths": []},
        {"value": [[0.5, 0.1]]},
        {"value": [[0.5, 0.1], [0.5]]},
        {"value": [[0.5, "0.1"], [None, 1.0]]},
        {"value": [[0.5, math.inf], [None, 1.0]]},
        {"standard_error": [[0.05, -0.01], [None, 0.0]]},
        {"standard_error": [[0.05, 0.01], [0.1, 0.0]]},
        {"standard_error": None},
        {"extra": 1},
    ],
)
def test_a_broken_file_is_refused_in_one_line(change):
    with pytest.raises(UserError, match=r"^table\.json: .*sensitivity table") as found:
        SensitivityTable.from_json({**table().to_json(), **change}, "table.json")
    assert "\n" not in str(found.value)


def test_something_else_is_no_table():
    for content in ([], None, {}, {"format": 1}):
        with pytest.raises(UserError, match=r"table\.json"):
            SensitivityTable.from_json(content, "table.json")


def test_a_table_cannot_be_written_to_and_shares_no_memory():
    value = np.zeros((2, 2))
    made = table(value=value, standard_error=np.zeros((2, 2)))
    value[0, 0] = 7.0
    assert made.value[0, 0] == 0.0
    with pytest.raises(ValueError, match="read-only"):
        made.value[0, 0] = 1.0


def test_parts_that_do_not_fit_are_refused():
    for change in ({"value": np.zeros((2, 3))}, {"widths": (4, 2)}, {"sites": ()}, {"mixtures": 0}):
        with pytest.raises(ValueError, match="wanted"):
            table(**change)


def test_the_mean_over_mixtures_carries_its_standard_error():
    values = np.random.default_rng(0).normal(size=(7, 3, 2))
    values[:, 1, 0] = math.nan
    made = over_mixtures("kl", ["a", "b", "c"], [3, 5], values)
    np.testing.assert_allclose(made.value, values.mean(axis=0))
    np.testing.assert_allclose(made.standard_error, stats.sem(values, axis=0))
    assert made.mixtures == 7


def test_one_mixture_has_no_standard_error():
    made = over_mixtures("kl", ["a"], [3, 5], [[[1.0, 2.0]]])
    assert np.isnan(made.standard_error).all()
    assert made.value.tolist() == [[1.0, 2.0]]
