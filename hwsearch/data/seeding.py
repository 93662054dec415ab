"""Random numbers named by what they are for.

Each example draws from a generator seeded by a hash of its own name, so neither the order of work nor the number of processes
changes the data.
"""

import hashlib

import numpy as np


def generator(*name: str | int) -> np.random.Generator:
    """A generator of its own for every name."""
    text = "\x1f".join(str(part) for part in name)
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")
    return np.random.default_rng(seed)
