"""Times the cost models: allocations charged per second on every built-in target, all its metrics, on one thread.

    OMP_NUM_THREADS=1 python experiments/cost_speed.py

The network has 103 sites, 44 of weights and 59 of tensors, in 58 layers; widths are drawn at random from those that each target
runs. Side by side in the same run: one allocation after the other, which is what the tables save.
"""

import argparse
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

from hw_models.compile import compile_target
from hw_models.cost import evaluate, runnable
from hw_models.target import built_in_targets, load_target
from hw_models.workload import WIDTHS, Workload
from hwsearch.experiment import SeparatorConfig
from hwsearch.files.writing import atomic_write_json
from hwsearch.separator.tcn import MaskNetwork
from hwsearch.separator.untrained import network_of

ALLOCATIONS = 20_000
SINGLE = 200
REPEATS = 5
BLOCKS = {"X": 7, "R": 2}
WANTED = 100_000


def network() -> Workload:
    """A separator of 14 blocks over four seconds."""
    config = SeparatorConfig(B=128, H=256, **BLOCKS)
    return network_of(MaskNetwork(config, 1285), 1285).workload(251, config.hop_length / 16000, per_channel=True)


def seconds(work: Callable[[], object]) -> float:
    """The fewest processor seconds of several runs."""
    found = []
    for _ in range(REPEATS):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


def measure(name: str, workload: Workload) -> dict[str, float | int | str]:
    """One target."""
    start = time.process_time()
    table = compile_target(load_target(name), workload)
    compiled = time.process_time() - start
    widths = [bits for bits in WIDTHS if bits <= 8 and runnable(table, np.full((1, len(workload.sites)), bits))[0]]
    bits = np.random.default_rng(0).choice(widths, (ALLOCATIONS, len(workload.sites)))
    batch = ALLOCATIONS / seconds(lambda: evaluate(table, bits))
    single = SINGLE / seconds(lambda: [evaluate(table, bits[i : i + 1]) for i in range(SINGLE)])
    return {
        "target": name,
        "metrics": len(table.metrics),
        "compile_s": compiled,
        "per_second": batch,
        "per_second_one_by_one": single,
        "ratio": batch / single,
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    workload = network()
    rows = [measure(name, workload) for name in built_in_targets()]
    print(f"{len(workload.sites)} sites, {len(workload.layers)} layers")
    print("| target | metrics | compile, s | allocations a second | one by one | ratio |\n|---|---|---|---|---|---|")
    for row in rows:
        speeds = f"{row['per_second']:,.0f} | {row['per_second_one_by_one']:,.0f} | {row['ratio']:.0f}"
        print(f"| {row['target']} | {row['metrics']} | {row['compile_s']:.2f} | {speeds} |")
    below = [str(row["target"]) for row in rows if float(row["per_second"]) < WANTED]
    print(f"below {WANTED:,}: {', '.join(below) or 'none'}")
    made_by = {"command": "OMP_NUM_THREADS=1 python experiments/cost_speed.py", "numpy": version("numpy")}
    made_by |= {"sites": len(workload.sites), "layers": len(workload.layers), "allocations": ALLOCATIONS}
    atomic_write_json(options.results / "cost_speed.json", {"made_by": made_by, "rows": rows})


if __name__ == "__main__":
    main()
