"""Numbers in readable form."""

import math


def significant(value: float, digits: int = 4) -> str:
    """A number with at least `digits` significant digits, thousands separators and no exponent: 23,022, 2.594, 0.0006520."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    # Rounding may add a digit: 9.9999 becomes 10.00, not 10.000.
    decimals -= abs(round(value, decimals)) >= 10.0 ** (digits - decimals)
    return f"{value:,.{max(decimals, 0)}f}"
