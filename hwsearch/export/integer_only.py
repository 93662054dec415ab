"""The allocations that formats without floating point hold."""

from hwsearch.errors import UserError
from hwsearch.network.sites import WEIGHT
from hwsearch.separator.allocation import BitAllocation
from hwsearch.separator.quantizers import MAX_BITS, is_float


def check_integer_only(allocation: BitAllocation, graph_format: str) -> None:
    """Refuse weights beyond 8 bits and activations in floating point.

    Raises:
        UserError: names the first such site, the format, and the key of the experiment that gave the width.
    """
    for site, bits in allocation.widths:
        said = "is in floating point" if is_float(bits) else f"has {bits} bits"
        if site.endswith(WEIGHT) and bits > MAX_BITS:
            wanted = f"weights of at most {MAX_BITS} bits (search.weight_bits)"
            raise UserError(f"'{site}' {said}; --format {graph_format} wants {wanted}")
        if not site.endswith(WEIGHT) and is_float(bits):
            raise UserError(f"'{site}' {said}; --format {graph_format} wants quantized activations (search.activation_bits)")
