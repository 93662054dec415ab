"""What leaving out blocks and channels is worth on a chip, beside fewer bits.

    hwsearch train-shared experiments/hardware_aware.toml          # once; `run` does it, too
    python experiments/hardware_aware run --seeds 0 1              # goes on where it was interrupted
    python experiments/hardware_aware report                       # what is there so far
    python experiments/hardware_aware time                         # the x86 winners in ONNX Runtime, on this machine
    python experiments/hardware_aware recipe                       # at which rate and for how long a narrowed network learns

For each chip, three searches on a shared network: `bits` (the widths of the whole network, on a network trained for widths
alone), `structure` (what is kept, at 8 bits) and `both`. Each minimises latency and packed bytes. Of each, the fastest candidates
at several losses on validation mixtures are trained on from the shared network, and separate test mixtures that no search has
heard. Two further searches, `bits` and `both`, minimise bytes alone; of them, the best candidates at several sizes are finished.
"""

import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

from bench import BITS, BOTH, Bench, Settings, bench_of
from finishing import finish, full_precision
from recipe import markdown as variants
from recipe import recipe
from report import write_report
from searching import described, search, searches, winners
from timing import markdown as times
from timing import timed

from hwsearch.errors import UserError
from hwsearch.files.writing import atomic_write_json
from hwsearch.process.interrupts import interrupts_heard, stop_code
from hwsearch.training.pool import build_pool
from hwsearch.workflow.caller import Listener
from hwsearch.workflow.shared import ensure_shared
from hwsearch.workflow.training import build

HERE = Path(__file__).resolve().parent


class _Told(Listener):
    """Prints what is said."""

    def said(self, line: str) -> None:
        print(line, flush=True)


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="hardware_aware", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["run", "report", "time", "recipe"])
    parser.add_argument("--experiment", type=Path, default=HERE.parent / "hardware_aware.toml")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("--results", type=Path, default=HERE.parent / "results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=900, help="training steps of each finished candidate")
    parser.add_argument("--mixtures", type=int, default=60, help="test mixtures, the first ones")
    parser.add_argument("--rounds", type=int, default=20, help="of `time`")
    parser.add_argument("--evaluations", type=int, default=200, help="candidates of each search")
    return parser.parse_args()


def make_networks(bench: Bench) -> None:
    """Make data, training mixtures and both shared networks, as far as they are missing."""
    workspace = bench.workspace(BOTH)
    build(workspace, 1)
    pool = build_pool(workspace, 1, lambda _done, _all: None)
    for mode in (BOTH, BITS):
        ensure_shared(bench.workspace(mode), pool, _Told())
        full_precision(bench, mode)


def run(bench: Bench, seeds: list[int]) -> None:
    """Measure all that is missing, seed after seed."""
    make_networks(bench)
    for seed in seeds:
        for mode, chip in searches(bench):
            search(bench, mode, chip, seed)
            print(f"searched: {mode}, {chip}, seed {seed}", flush=True)
        for mode, chip in searches(bench):
            for winner in winners(bench, mode, chip, seed):
                finish(bench, winner, seed)
                print(f"finished: {described(winner)}, seed {seed}", flush=True)


def main() -> None:
    """Parse and act."""
    options = parsed()
    bench = bench_of(Settings(options.experiment, options.runs_dir, options.steps, options.mixtures, options.evaluations))
    with interrupts_heard():
        try:
            if options.action == "time":
                found = timed(bench, options.seeds[0], options.rounds)
                atomic_write_json(options.results / "hardware_aware_x86.json", found)
                print(times(found))
                return
            if options.action == "recipe":
                make_networks(bench)
                found = recipe(bench, options.seeds[0])
                atomic_write_json(options.results / "hardware_aware_recipe.json", found)
                print(variants(found))
                return
            if options.action == "run":
                run(bench, options.seeds)
            write_report(bench, options.seeds, options.results)
        except UserError as error:
            raise SystemExit(f"hardware_aware: {error}") from None
        except KeyboardInterrupt:
            raise SystemExit(stop_code()) from None


if __name__ == "__main__":
    main()
