"""What formats without floating point have in common: the allocations that they take, and how they store biases."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hwsearch.errors import UserError
from hwsearch.network.sites import WEIGHT
from hwsearch.separator.allocation import BitAllocation
from hwsearch.separator.quantizers import MAX_BITS, bias_integers, is_float, rounds_bias

NIBBLE_BITS = 4
"""Widest weights that INT4 holds."""


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


def integer_bias(bias: Tensor, product: Tensor, bits: int) -> NDArray[np.int64]:
    """Round a bias as the network does; where the network does not, steps are so fine that it does not matter.

    Args:
        bias: [out].
        product: scale of the products that it is added to, [out] or [1].
        bits: width of the activation that the layer reads.
    """
    rounded = bias_integers(bias, product) if rounds_bias(bits) else (bias.double() / product.double()).round()
    integers: NDArray[np.int64] = rounded.numpy().astype(np.int64)
    return integers
