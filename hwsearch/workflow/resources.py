"""What the steps may use of this machine, or of a cluster."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Resources:
    """Processes and workers.

    Attributes:
        processes: that make data, at least 1.
        workers: on Ray; 0 computes in the calling process, without Ray.
        ray_address: HOST:PORT of a running cluster; None starts Ray on this machine.
    """

    processes: int = 2
    workers: int = 2
    ray_address: str | None = None


DEFAULTS = Resources()
"""What is used where nothing is said."""
