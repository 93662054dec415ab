"""A search problem with a known answer: noise powers of the sites add, sizes add. Run as a module, it is a
driver to kill.

`python -m tests.search.synthetic FOLDER TRIALS SECONDS_PER_CANDIDATE SAMPLER` searches in FOLDER, with a shared
study where HWSEARCH_STORAGE says.
"""

import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from hwsearch.executor import Executor, LocalExecutor
from hwsearch.experiment import Experiment, Fidelity, parse_experiment
from hwsearch.extensions import SAMPLERS
from hwsearch.search.driver import Cost, Task, run_search
from hwsearch.search.posterior.engine import PosteriorEngine, table_cost
from hwsearch.search.priors import loss_prior
from hwsearch.search.progress import SearchProgress, SearchSummary
from hwsearch.search.proposer import Plan, Proposer
from hwsearch.search.record import RECORD_FILE, Event, read_record
from hwsearch.search.samplers.posterior import PosteriorProposer
from hwsearch.search.samplers.sampler import Searched
from hwsearch.search.scoring import ScoringJob
from hwsearch.search.space import SearchSpace, Seed, build_space, ends_seeds, uniform_seeds
from hwsearch.search.studies.address import STORAGE_VARIABLE, StorageAddress, parse_address
from hwsearch.sensitivity.table import SensitivityTable
from hwsearch.separator.allocation import BitAllocation, is_weight
from hwsearch.separator.configuration import Configuration
from hwsearch.separator.untrained import untrained_sites

RECOVERED = {
    Fidelity.SUBSET: 1.1,
    Fidelity.POST_TRAINING: 1.0,
    Fidelity.SHARED_SUBSET: 0.7,
    Fidelity.SHARED: 0.6,
    Fidelity.SHORT_QAT: 0.4,
    Fidelity.FULL_QAT: 0.2,
    Fidelity.FINETUNED: 0.1,
}
"""Share of the noise that a fidelity leaves."""


def make_experiment(trials: int, seed: int = 3, **search: object) -> Experiment:
    """Eight weight sites with six widths each; activations at 8 bits unless `search` says otherwise; NSGA-II.

    `qat`, `separator` and `quantization` are sections of their own.
    """
    sections = {name: search.pop(name) for name in ("qat", "separator", "quantization") if name in search}
    validation = search.pop("validation", 0)
    count = {"train": 1} | ({"validation": validation} if validation else {})
    return parse_experiment(
        {
            "name": "synthetic",
            "seed": seed,
            "data": {
                "corpora": [{"kind": "espeak", "splits": {"train": 0.5, "validation": 0.5}}],
                "rooms": {"count": dict.fromkeys(count, 1)},
                "mixtures": {"count": count},
            },
            "separator": {"X": 1, "R": 2},
            "search": {"trials": trials, "population": 5, "sampler": "nsga2", **search},
            **sections,
        },
        source="test",
    )


def noise(index: int, bits: int) -> float:
    """Relative noise of the site at a position of the allocation: a sensitivity times 4^-bits."""
    return (1 + index % 5) * 4.0**-bits


def quality(allocation: BitAllocation, fidelity: Fidelity = Fidelity.POST_TRAINING) -> dict[str, float]:
    """Quality falls with the sum of the sites' noise."""
    lost = sum(noise(index, bits) for index, (_, bits) in enumerate(allocation.widths)) * RECOVERED[fidelity]
    return {
        "si_snr_improvement_db": 12.0 - 10 * math.log10(1 + lost),
        "si_snr_improvement_ci95_db": 0.2,
        "utterances": 16.0,
    }


def score(job: ScoringJob, seconds: float = 0.0) -> Mapping[str, float]:
    time.sleep(seconds)
    return quality(job.configuration.allocation, job.fidelity)


def make_scorer(seconds: float = 0.0) -> Callable[[ScoringJob], Mapping[str, float]]:
    return partial(score, seconds=seconds)


def site_bytes(index: int, bits: int) -> float:
    """The site at position k of the allocation has 100 (1 + k mod 3) weights."""
    return 100 * (1 + index % 3) * bits / 8


def cost(configurations: Sequence[Configuration]) -> list[dict[str, float]]:
    """Bytes of the weights."""
    return [
        {
            "size_bytes": sum(site_bytes(index, bits) for index, (site, bits) in enumerate(widths) if is_weight(site)),
            "latency_ms[chip]": sum(bits for _, bits in widths) / 10,
        }
        for widths in (configuration.allocation.widths for configuration in configurations)
    ]


def space_of(experiment: Experiment) -> SearchSpace:
    return build_space(experiment.search, untrained_sites(experiment))


def default_seeds(space: SearchSpace) -> list[Seed]:
    return uniform_seeds(space) + ends_seeds(space)


def prior_table(space: SearchSpace, seed: int = 0) -> SensitivityTable:
    """The true noise of every free site, off by a random factor each."""
    index = {site: number for number, (site, _) in enumerate(space.widths)}
    widths = tuple(sorted({bits for _, options in space.free_sites for bits in options}))
    rng = np.random.default_rng(seed)
    value = np.array(
        [[noise(index[site], bits) if bits in options else math.nan for bits in widths] for site, options in space.free_sites]
    ) * rng.lognormal(sigma=0.7, size=(len(space.free_sites), 1))
    sites = tuple(site for site, _ in space.free_sites)
    return SensitivityTable("output-noise-ratio", sites, widths, value, np.where(np.isnan(value), np.nan, 0.0), 4)


def posterior(space: SearchSpace, seed: int) -> PosteriorProposer:
    """The posterior sampler behind a prior that is off."""
    index = {site: number for number, (site, _) in enumerate(space.widths)}
    prior = loss_prior([prior_table(space)], space, 16)
    table = np.zeros(prior.mean.shape)
    for row, (name, widths) in enumerate(space.free):
        for site in space.members[name]:
            if is_weight(site):
                table[row, : len(widths)] += [site_bytes(index[site], bits) for bits in widths]
    fixed = sum(site_bytes(index[site], widths[0]) for site, widths in space.widths if len(widths) == 1 and is_weight(site))
    engine = PosteriorEngine(prior.mean, prior.deviation, prior.valid, [table_cost(table, fixed)], [])
    return PosteriorProposer(engine, seed)


def proposer_of(experiment: Experiment) -> Proposer:
    """The sampler that an experiment asks for."""
    space = space_of(experiment)
    if experiment.search.sampler == "posterior":
        return posterior(space, experiment.seed)
    return SAMPLERS.load(experiment.search.sampler)(Searched(experiment, space, costs=None, tables={}))


def search(
    folder: Path,
    experiment: Experiment,
    executor: Executor[ScoringJob, Mapping[str, float]] | None = None,
    *,
    seeds: Sequence[Seed] | None = None,
    proposer: Proposer | None = None,
    storage: StorageAddress | None = None,
    progress: Callable[[SearchProgress], None] = lambda _: None,
    charge: Cost = cost,
) -> SearchSummary:
    """Uniform and ends-at-8 seeds, then the experiment's sampler, unless other seeds or another proposer are given."""
    space = space_of(experiment)
    return run_search(
        Task(experiment, space, charge, folder),
        executor or LocalExecutor(make_scorer),
        Plan(tuple(default_seeds(space) if seeds is None else seeds), proposer or proposer_of(experiment)),
        progress,
        storage=storage,
    )


def events(folder: Path) -> list[Event]:
    return list(read_record(folder)[1])


def essence(folder: Path) -> list[dict[str, object]]:
    """The record's events without what differs from run to run: times, durations, processes."""
    return [event.model_dump(exclude={"time", "seconds", "worker"}) for event in events(folder)]


def finished(folder: Path) -> list[dict[str, object]]:
    """The essence of what was scored, in order; a cut may move an `asked` line against a `scored` one."""
    return [event for event in essence(folder) if event["event"] != "asked"]


def cut_record(source: Path, target: Path, length: int) -> None:
    """Copy a record as a driver killed after that many bytes would have left it."""
    target.mkdir(parents=True)
    (target / RECORD_FILE).write_bytes((source / RECORD_FILE).read_bytes()[:length])


if __name__ == "__main__":
    scorer = LocalExecutor(partial(make_scorer, float(sys.argv[3])))
    experiment = make_experiment(int(sys.argv[2]), sampler=sys.argv[4])
    storage = parse_address(os.environ[STORAGE_VARIABLE]) if STORAGE_VARIABLE in os.environ else None
    summary = search(Path(sys.argv[1]), experiment, scorer, storage=storage)
    sys.stdout.write(f"{summary}\n" + (f"{summary.shared}\n" if summary.shared else ""))
