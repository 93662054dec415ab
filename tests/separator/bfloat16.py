"""Scales as packed files hold them, by arithmetic on their digits."""

import numpy as np
import torch
from torch import Tensor


def next_bfloat16(x: Tensor) -> Tensor:
    """The smallest bfloat16 values that are not below positive values. They have eight binary digits."""
    mantissa, exponent = np.frexp(x.double().numpy())
    return torch.from_numpy(np.asarray(np.ldexp(np.ceil(mantissa * 2**8) / 2**8, exponent))).to(x.dtype)
