import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hw_models.figures import significant


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (23021.796, "23,022"),
        (3596004.526, "3,596,005"),
        (885.404, "885.4"),
        (2.594, "2.594"),
        (0.000652, "0.0006520"),
        (0.0, "0"),
        (-0.25, "-0.2500"),
        (9.99996, "10.00"),
        (99999.96, "100,000"),
        (1e20, "100,000,000,000,000,000,000"),
    ],
)
def test_numbers_are_written_out_with_four_digits_at_least(value: float, text: str) -> None:
    assert significant(value) == text


@given(st.floats(1e-9, 1e15), st.integers(1, 8))
def test_no_number_has_an_exponent_or_loses_its_digits(value: float, digits: int) -> None:
    text = significant(value, digits)
    assert "e" not in text
    assert math.isclose(float(text.replace(",", "")), value, rel_tol=0.51 * 10.0 ** (1 - digits))
    assert len(text.replace(",", "").replace(".", "").lstrip("0")) >= digits
    assert significant(-value, digits) == f"-{text}"
