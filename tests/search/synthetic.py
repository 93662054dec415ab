"""A search problem with a known answer: noise powers of the sites add, sizes add. Run as a module, it is a
driver to kill.

`python -m tests.search.synthetic FOLDER TRIALS SECONDS_PER_CANDIDATE` searches in FOLDER.
"""

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from hwsearch.executor import LocalExecutor
from hwsearch.experiment import Experiment, parse_experiment
from hwsearch.search.driver import SearchSummary, run_search
from hwsearch.search.record import RECORD_FILE, Event, read_record
from hwsearch.search.space import build_space
from hwsearch.separator.allocation import BitAllocation, is_weight


def make_experiment(trials: int, seed: int = 3, **search: object) -> Experiment:
    """Eight weight sites with six widths each; activations at 8 bits unless `search` says otherwise."""
    return parse_experiment(
        {
            "name": "synthetic",
            "seed": seed,
            "data": {
                "corpora": [{"kind": "espeak", "splits": {"train": 1.0}}],
                "rooms": {"count": {"train": 1}},
                "mixtures": {"count": {"train": 1}},
            },
            "separator": {"X": 1, "R": 2},
            "search": {"trials": trials, "population": 5, **search},
        },
        source="test",
    )


def score(allocation: BitAllocation, seconds: float = 0.0) -> Mapping[str, float]:
    """Quality falls with the sum of the sites' noise powers, each a sensitivity times 4^-bits."""
    time.sleep(seconds)
    noise = sum((1 + index % 5) * 4.0**-bits for index, (_, bits) in enumerate(allocation.widths))
    return {
        "si_snr_improvement_db": 12.0 - 10 * math.log10(1 + noise),
        "si_snr_improvement_ci95_db": 0.2,
        "utterances": 16.0,
    }


def make_scorer(seconds: float = 0.0) -> Callable[[BitAllocation], Mapping[str, float]]:
    return partial(score, seconds=seconds)


def cost(allocations: Sequence[BitAllocation]) -> list[dict[str, float]]:
    """Bytes of the weights; site k has 100 (1 + k mod 3) weights."""
    return [
        {
            "size_bytes": sum(
                100 * (1 + index % 3) * bits / 8 for index, (site, bits) in enumerate(allocation.widths) if is_weight(site)
            ),
            "latency_ms[chip]": sum(bits for _, bits in allocation.widths) / 10,
        }
        for allocation in allocations
    ]


def search(folder: Path, experiment: Experiment, executor: LocalExecutor | None = None, **options: object) -> SearchSummary:
    space = build_space(experiment.search, experiment.separator)
    executor = executor or LocalExecutor(make_scorer)
    return run_search(experiment, space, executor, cost, folder, lambda _: None, **options)


def events(folder: Path) -> list[Event]:
    return list(read_record(folder)[1])


def essence(folder: Path) -> list[dict[str, object]]:
    """The record's events without what differs from run to run: times, durations, processes."""
    return [event.model_dump(exclude={"time", "seconds", "worker"}) for event in events(folder)]


def cut_record(source: Path, target: Path, length: int) -> None:
    """Copy a record as a driver killed after that many bytes would have left it."""
    target.mkdir(parents=True)
    (target / RECORD_FILE).write_bytes((source / RECORD_FILE).read_bytes()[:length])


if __name__ == "__main__":
    scorer = LocalExecutor(partial(make_scorer, float(sys.argv[3])))
    sys.stdout.write(f"{search(Path(sys.argv[1]), make_experiment(int(sys.argv[2])), scorer)}\n")
