"""A driver that searches on a cluster, to take nodes away from.

`python -m tests.cluster_driver FOLDER ADDRESS TRIALS WORKERS` searches; `none` for ADDRESS is a Ray of its own.
"""

import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from hwsearch.errors import UserError
from hwsearch.executor import RayExecutor, health
from hwsearch.search.scoring import ScoringJob
from tests.search.synthetic import make_experiment, score, search

SECONDS_PER_CANDIDATE = 0.1
PATIENCE_SECONDS = 60.0
BROKEN = "TEST_NODE_IS_BROKEN"
SLOW = "TEST_NODE_IS_SLOW"
"""Its workers never come up; each leaves a file `starting-PROCESS` in the folder for temporary files."""


def make_scorer() -> Callable[[ScoringJob], Mapping[str, float]]:
    if BROKEN in os.environ:
        raise FileNotFoundError("no library here")
    if SLOW in os.environ:
        (Path(tempfile.gettempdir()) / f"starting-{os.getpid()}").touch()
        time.sleep(3600)
    return partial(score, seconds=SECONDS_PER_CANDIDATE)


def main() -> int:
    folder, address, trials, workers = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    logging.basicConfig(format="%(message)s")
    logging.getLogger("hwsearch").setLevel(logging.INFO)
    ray_address = None if address == "none" else address
    health.PATIENCE_SECONDS = PATIENCE_SECONDS
    try:
        with RayExecutor(make_scorer, workers=workers, ray_address=ray_address) as executor:
            summary = search(folder, make_experiment(trials), executor)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"{summary}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
