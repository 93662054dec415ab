"""Numbers as people read them."""

import math


def significant(value: float, digits: int = 4) -> str:
    """A number with at least so many significant digits, thousands apart, and no exponent.

    The digits before the point are always whole: 23,022 and 2.594 and 0.000652.
    """
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    # Rounding may add a digit: 9.9999 is 10.00, not 10.000.
    decimals -= abs(round(value, decimals)) >= 10.0 ** (digits - decimals)
    return f"{value:,.{max(decimals, 0)}f}"
