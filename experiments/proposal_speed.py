"""Times one proposal and one result of the posterior sampler on synthetic problems, in processor seconds on one thread.

OMP_NUM_THREADS=1 python experiments/proposal_speed.py
"""

import argparse
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

from hwsearch.files.writing import atomic_write_json
from hwsearch.search.posterior.engine import PosteriorEngine, table_cost

BITS = np.array([2.0, 3.0, 4.0, 5.0, 6.0, 8.0])
SITES = (40, 56, 98, 250)
TRIALS = (100, 1_000, 10_000)
PROPOSALS = 30


def measure(sites: int, trials: int) -> dict[str, float]:
    """Median milliseconds for a proposal after so many trials, and mean ones to learn a result."""
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.normal(8.0, 1.5, sites))[:, None] * BITS / 8.0
    prior = np.exp(rng.normal(0.0, 1.5, sites))[:, None] * 4.0**-BITS
    prior /= prior[:, 0].sum()
    true = prior * np.exp(rng.normal(0.0, 0.7, (sites, 1)))
    engine = PosteriorEngine(prior, 0.4 * prior + 1e-4, np.ones(prior.shape, np.bool_), [table_cost(sizes, 0.0)], [])
    engine.refer(10.0)

    def finish(point: tuple[int, ...]) -> None:
        engine.finish(point, 10.0 - 10.0 * np.log10(1.0 + true[np.arange(sites), list(point)].sum()))

    points = [tuple(row) for row in rng.integers(len(BITS), size=(trials, sites)).tolist()]
    start = time.process_time()
    for point in points:
        finish(point)
    told = 1e3 * (time.process_time() - start) / trials
    asked = []
    for _ in range(PROPOSALS):
        start = time.process_time()
        proposed = engine.propose(rng)
        asked.append(1e3 * (time.process_time() - start))
        if proposed is not None:
            finish(proposed)
    return {"sites": sites, "trials": trials, "ask_ms": float(np.median(asked)), "ask_worst_ms": max(asked), "tell_ms": told}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    rows = [measure(sites, trials) for sites in SITES for trials in TRIALS]
    print("| sites | trials | ask, ms | worst of 30, ms | tell, ms |\n|---|---|---|---|---|")
    for row in rows:
        print(f"| {row['sites']} | {row['trials']} | {row['ask_ms']:.1f} | {row['ask_worst_ms']:.1f} | {row['tell_ms']:.2f} |")
    made_by = {"command": "OMP_NUM_THREADS=1 python experiments/proposal_speed.py", "numpy": version("numpy")}
    atomic_write_json(options.results / "proposal_speed.json", {"made_by": made_by, "rows": rows})


if __name__ == "__main__":
    main()
