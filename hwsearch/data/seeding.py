"""Random generators with named seeds.

Each example draws from a generator of its own, so data depend neither on the order of work nor on the number of processes.
"""

import hashlib

import numpy as np


def generator(*name: str | int) -> np.random.Generator:
    """A random generator whose seed is a hash of `name`."""
    text = "\x1f".join(str(part) for part in name)
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")
    return np.random.default_rng(seed)
