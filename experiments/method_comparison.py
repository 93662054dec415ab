"""Which bit-widths are best: every method at the same file sizes, post-training and after the same short QAT, on real speech.

Everything is judged on test mixtures of speakers, sentences and rooms that neither training nor search heard; widths are chosen
on validation mixtures only. The size at n bits is that of the file with all weights at n bits, one scale per channel, and the
small depthwise weights at 8; every method gets the best it can within it. Activations have 8 bits throughout.

    python experiments/method_comparison.py run --workers 2     # continues where it was interrupted
    python experiments/method_comparison.py report

Methods: `uniform, one scale` is the reference system's (arXiv 2111.14479: one table for all layers, norms apart); `uniform, per
layer` and `uniform, per channel` have least-squares scales; `uniform, small at 8` keeps depthwise weights at 8 bits;
`curvature`, `kl` and `output noise` are the exact allocations of those sensitivities; `nas` takes the best of the
differentiable search's candidates that fits; `prior-corrected` searches post-training, solves the allocation at the size again
under what it has learnt, takes the best few on the whole validation set, trains those and what the other methods propose, and
takes the best on validation again.
"""

import argparse
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from hwsearch.data.dataset import Mixture, load_mixture, open_dataset
from hwsearch.executor import LocalExecutor
from hwsearch.experiment import Experiment, QuantizationConfig, Split, load_experiment
from hwsearch.files.reading import digest, read_json
from hwsearch.files.writing import atomic_write_bytes, atomic_write_json
from hwsearch.metrics.evaluation import System
from hwsearch.metrics.perceptual import pesq_score
from hwsearch.metrics.si_snr import si_snr
from hwsearch.metrics.statistics import bootstrap_mean_interval, paired_permutation_test
from hwsearch.network.sites import WEIGHT
from hwsearch.search.costs import CostBook
from hwsearch.search.driver import Task, run_search
from hwsearch.search.exact.front import front_at
from hwsearch.search.exact.problem import FloatArray, allocation_problem
from hwsearch.search.nas.expected_cost import nas_cost
from hwsearch.search.nas.sweep import NAS_FILE, NasFactory, ensure_nas
from hwsearch.search.objectives import QUALITY, SIZE
from hwsearch.search.plan import make_plan
from hwsearch.search.priors import separable_loss
from hwsearch.search.proposer import Plan
from hwsearch.search.record import REFERENCE, Scored, read_record
from hwsearch.search.samplers.posterior import PosteriorProposer, posterior_engine
from hwsearch.search.scoring import ScorerFactory, ScoringJob
from hwsearch.search.space import Seed, build_space
from hwsearch.sensitivity.estimate import ensure, read_table, table_path
from hwsearch.sensitivity.table import SensitivityTable
from hwsearch.separator.allocation import BitAllocation, is_weight, uniform
from hwsearch.separator.prepare import PreparedBase
from hwsearch.separator.quantizers import mse_scale, weight_limit
from hwsearch.separator.trained import TrainedState, initial_state, load_trained, save_trained
from hwsearch.separator.untrained import untrained_sites
from hwsearch.training.pool import build_pool, load_pool
from hwsearch.training.qat import train_quantized
from hwsearch.workflow.checks import provenance
from hwsearch.workflow.evaluate import candidate_system, float_system
from hwsearch.workflow.training import build, prepare
from hwsearch.workspace import Workspace

HERE = Path(__file__).parent
BITS = (2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
UNIFORM = ("uniform, one scale", "uniform, per layer", "uniform, per channel", "uniform, small at 8")
ONE_SCALE, PER_LAYER, PER_CHANNEL, SMALL_AT_8 = UNIFORM
PRIORS = {"curvature": "curvature", "kl": "kl", "output noise": "output-noise-ratio"}
SHARED = "shared"
"""The way of scaling with one table for the weights of all layers."""
NAS, OURS = "nas", "prior-corrected"
METHODS = (*UNIFORM, *PRIORS, NAS, OURS)
GROUPS = {"single method": (*PRIORS, NAS), "uniform": UNIFORM}
METRICS = ("si_snr_improvement_db", "pesq")
EVALUATIONS = 200
SEARCHED_ON = 48
"""Validation mixtures that our search scores on: on a few it finds what suits those."""
ON_VALIDATION = 3
"""Candidates of our search at each size that the whole validation set chooses among,"""
AT_SIZE = 5
"""beside the best that fit under the corrected losses: their mean, and draws."""
TRAINED = 3
"""The best of these that are trained, beside what the other methods propose."""
NEAR = 0.96
"""They are at least this share of the size allowed."""
STAGES = ("post-training", "after QAT")


@dataclass(frozen=True)
class Choice:
    """What a method proposes at a size: an allocation, and how its weights are scaled."""

    allocation: BitAllocation
    scales: str = "per_channel"


class Bench:
    """Base, data, tools and their caches: loaded once in each process."""

    def __init__(self, experiment_path: Path, runs: Path, test_mixtures: int, steps: int) -> None:
        torch.set_num_threads(1)
        loaded = load_experiment(experiment_path)
        self.experiment = loaded.model_copy(update={"qat": loaded.qat.model_copy(update={"steps": steps, "warm_start": False})})
        self.workspace = Workspace(runs, loaded)
        self.folder = self.workspace.folder / "methods"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.base = prepare(self.workspace)
        self.pool_path = build_pool(self.workspace, 1, lambda _done, _total: None)
        self.space = build_space(loaded.search, untrained_sites(loaded))
        self.costs = CostBook(loaded, self.space)
        self.size = self.costs.known(SIZE)
        self.test = open_dataset(self.workspace.data_folder, Split.TEST)[:test_mixtures]

    @cached_property
    def bases(self) -> Mapping[str, PreparedBase]:
        """The base under each way of scaling weights."""
        per_tensor = QuantizationConfig(weight_scale="per_tensor")
        changed = replace(self.base, quantization=per_tensor)
        return {"per_channel": self.base, "per_tensor": changed, SHARED: self.base}

    @cached_property
    def priors(self) -> list[str]:
        """Sensitivities: the priors of the experiment, and those that are methods here."""
        return list(dict.fromkeys((*self.experiment.search.priors, *PRIORS.values())))

    @cached_property
    def sensitivities(self) -> Mapping[str, SensitivityTable]:
        """Tables of all priors, which `estimate` has written."""
        paths = {prior: table_path(self.workspace, prior) for prior in self.priors}
        return {prior: read_table(path) for prior, path in paths.items()}

    def estimate(self) -> None:
        """Estimate what is missing of the sensitivities; one process at a time may."""
        ensure(self.workspace, self.priors, self.space.free_sites)

    def bytes_of(self, allocation: BitAllocation) -> float:
        """Size of the packed file with one scale per channel."""
        return float(self.size.charge(np.array([self.space.encode(allocation)]))[0])

    def budget(self, bits: float) -> float:
        """Bytes allowed at an average width."""
        below, above = int(np.floor(bits)), int(np.ceil(bits))
        sizes = [self.bytes_of(small_at_8(self.experiment, width)) for width in (below, above)]
        return sizes[0] + (bits - below) * (sizes[1] - sizes[0])

    def initial(self, choice: Choice) -> TrainedState:
        """A choice post-training."""
        state = initial_state(self.bases[choice.scales], choice.allocation)
        if choice.scales != SHARED:
            return state
        (bits,) = {bits for site, bits in choice.allocation.widths if is_weight(site)}
        limit, gains = weight_limit(bits), self.gains
        # Before the norms are folded in, as the reference system quantizes: one table for the weights of all layers.
        unfolded = {site: state.parameters[site].double() / gain for site, gain in gains.items()}
        rows = torch.cat([weight.flatten() for weight in unfolded.values()])[None]
        scale = float(mse_scale(rows, rows.abs().amax(dim=1) / limit, limit))
        changed = {f"{site}.scale": (scale * gain.abs()).float() for site, gain in gains.items()}
        return replace(state, parameters={**state.parameters, **changed})

    @cached_property
    def gains(self) -> Mapping[str, Tensor]:
        """What folding has multiplied each output channel's weights with, [out, 1, 1], by weight site."""
        found = {}
        for site in self.base.sites.weights:
            before = self.base.separator.network.get_submodule(site.removesuffix(WEIGHT)).weight.detach().double()
            power = before.square().sum(dim=(1, 2), keepdim=True)
            gain = (before * self.base.graph.parameters[site].double()).sum(dim=(1, 2), keepdim=True) / power.clamp_min(1e-30)
            found[site] = torch.where(gain.abs() > 1e-12, gain, torch.ones_like(gain))
        return found

    def state(self, choice: Choice, seed: int | None) -> TrainedState:
        """A choice post-training (no seed) or after QAT, which is kept on disk."""
        if seed is None:
            return self.initial(choice)
        base = self.bases[choice.scales]
        path = self.folder / "trained" / f"{self.key(choice, seed)}.safetensors"
        if path.is_file():
            return load_trained(path, base, choice.allocation)
        qat = self.experiment.qat
        start = self.initial(choice) if choice.scales == SHARED else None
        state = train_quantized(base, choice.allocation, load_pool(self.pool_path), qat, qat.steps, seed, start=start)
        save_trained(path, state)
        return state

    def judge(self, choice: Choice, seed: int | None, split: Split) -> dict[str, list[float]]:
        """Metrics of a choice on every mixture of a split, kept on disk."""
        path = self.folder / split.value / f"{self.key(choice, seed)}-{len(self.mixtures(split))}.json"
        if path.is_file():
            content: dict[str, list[float]] = read_json(path, "figures of a choice")
            return content
        system = candidate_system(self.bases[choice.scales], choice.allocation, self.state(choice, seed))
        found = self.score(system, split)
        atomic_write_json(path, found)
        return found

    def score(self, system: System, split: Split) -> dict[str, list[float]]:
        """SI-SNR improvement on every mixture, and PESQ on those of the test."""
        found: dict[str, list[float]] = {metric: [] for metric in METRICS}
        for mixture in self.mixtures(split):
            sound, target = load_mixture(self.workspace.data_folder, mixture)
            estimate = system(sound, mixture.target.doa_deg)
            found["si_snr_improvement_db"].append(float(si_snr(estimate, target)) - float(si_snr(sound[0], target)))
            if split is Split.TEST:
                found["pesq"].append(pesq_score(estimate, target, mixture.sample_rate))
        return found

    def mixtures(self, split: Split) -> Sequence[Mixture]:
        """Mixtures of a split; of the test split, those that methods are judged on."""
        return self.test if split is Split.TEST else open_dataset(self.workspace.data_folder, split)

    def key(self, choice: Choice, seed: int | None) -> str:
        """Hash of a choice and its training."""
        training = None if seed is None else {"seed": seed, "qat": self.experiment.qat.model_dump(mode="json")}
        content = {"allocation": choice.allocation.to_json(), "scales": choice.scales, "training": training}
        return digest(content | {"base": self.base.base_sha256})[:24]


def small_at_8(experiment: Experiment, bits: int) -> BitAllocation:
    """All weights at a width but for the depthwise ones."""
    plain = uniform(untrained_sites(experiment), bits, 8)
    return BitAllocation(tuple((site, 8 if site.endswith("depthwise.weight") else width) for site, width in plain.widths))


def simple_choices(bench: Bench, bits: float) -> dict[str, Choice]:
    """What the methods without a search propose at a size."""
    widest = max(width for width in bench.experiment.search.weight_bits if width <= bits)
    plain = uniform(untrained_sites(bench.experiment), widest, 8)
    found = {
        ONE_SCALE: Choice(plain, SHARED),
        PER_LAYER: Choice(plain, "per_tensor"),
        PER_CHANNEL: Choice(plain),
        SMALL_AT_8: Choice(small_at_8(bench.experiment, widest)),
    }
    for name, prior in PRIORS.items():
        loss = separable_loss(bench.sensitivities[prior], bench.space)
        problem = allocation_problem(bench.space, loss, (bench.costs.exact(SIZE),))
        found[name] = Choice(problem.allocation(front_at(problem, SIZE, [bench.budget(bits)]).indices[0]))
    return found


def nas_allocations(bench: Bench, seed: int) -> list[BitAllocation]:
    """All candidates of a differentiable search."""
    weights = {site: dict.fromkeys(widths, 0.0) for site, widths in bench.space.free_sites}
    factory = NasFactory(
        bench.experiment.model_copy(update={"seed": seed}),
        bench.workspace.base_path.resolve(),
        bench.workspace.data_folder.resolve(),
        (bench.workspace.folder / "calibration.json").resolve(),
        bench.pool_path.resolve(),
        problem=allocation_problem(bench.space, weights, ()),
        cost=nas_cost(bench.experiment, bench.space.widths),
    )
    results = ensure_nas(factory, bench.folder / f"seed-{seed}-{NAS_FILE}", LocalExecutor)
    return list(dict.fromkeys(allocation for result in results for allocation in (result.allocation, result.halfway)))


def nas_choice(bench: Bench, seed: int, bits: float) -> Choice:
    """The candidate of the differentiable search that sounds best on validation, of those that fit; else uniform."""
    fits = [allocation for allocation in nas_allocations(bench, seed) if bench.bytes_of(allocation) <= bench.budget(bits)]
    if not fits:
        return Choice(uniform(untrained_sites(bench.experiment), min(bench.experiment.search.weight_bits), 8))
    near = sorted(fits, key=bench.bytes_of)[-2:]
    return max((Choice(allocation) for allocation in near), key=lambda choice: on_validation(bench, choice, None))


def on_validation(bench: Bench, choice: Choice, seed: int | None) -> float:
    """Mean improvement on the validation set, dB."""
    return float(np.mean(bench.judge(choice, seed, Split.VALIDATION)["si_snr_improvement_db"]))


def run_our_search(bench: Bench, seed: int) -> None:
    """Our search, post-training on a subset of validation; one process at a time may."""
    search = bench.experiment.search.model_copy(update={"trials": EVALUATIONS, "validation_mixtures": SEARCHED_ON})
    experiment = bench.experiment.model_copy(update={"seed": seed, "search": search})
    tables = [bench.sensitivities[prior] for prior in search.priors]
    plan = make_plan(experiment, bench.space, bench.costs, bench.sensitivities)
    others = [
        Seed(name, bench.space.encode(choice.allocation))
        for bits in BITS
        for name, choice in {**simple_choices(bench, bits), NAS: nas_choice(bench, seed, bits)}.items()
    ]
    seeds = {item.point: item for item in (*others, *plan.seeds)}
    engine = posterior_engine(bench.space, tables, bench.costs, search.objectives, {}, SEARCHED_ON)
    calibration = (bench.workspace.folder / "calibration.json").resolve()
    factory = ScorerFactory(experiment, bench.workspace.base_path.resolve(), bench.workspace.data_folder.resolve(), calibration)
    run_search(
        Task(experiment, bench.space, bench.costs.charge, search_folder(bench, seed), provenance(bench.workspace)),
        LocalExecutor[ScoringJob, Mapping[str, float]](factory),
        Plan(tuple(seeds.values()), PosteriorProposer(engine, seed)),
    )


def search_folder(bench: Bench, seed: int) -> Path:
    """Where our search of a seed is recorded."""
    return bench.folder / f"search-{seed}"


def search_candidates(bench: Bench, seed: int) -> list[tuple[BitAllocation, float, float]]:
    """Allocation, bytes and quality on a subset of validation of every candidate of our search."""
    _, events = read_record(search_folder(bench, seed))
    scored = [event for event in events if isinstance(event, Scored) and event.candidate]
    return [(BitAllocation.of(event.allocation), float(event.costs[SIZE] or 0.0), event.metrics[QUALITY]) for event in scored]


def solved_at(bench: Bench, seed: int, bits: float) -> list[BitAllocation]:
    """The exact optima at a size under the losses that our search has learnt: their mean, and draws."""
    _, events = read_record(search_folder(bench, seed))
    scored = [event for event in events if isinstance(event, Scored)]
    priors = [bench.sensitivities[prior] for prior in bench.experiment.search.priors]
    engine = posterior_engine(bench.space, priors, bench.costs, bench.experiment.search.objectives, {}, SEARCHED_ON)
    for event in scored:
        if event.candidate == REFERENCE:
            engine.refer(event.metrics[QUALITY])
        else:
            engine.finish(bench.space.encode(BitAllocation.of(event.allocation)), event.metrics[QUALITY])
    found = []
    for draw in range(AT_SIZE):
        table = engine.losses(np.random.default_rng([seed, draw]) if draw else None)
        loss = {
            name: dict(zip(widths, row.tolist(), strict=False))
            for (name, widths), row in zip(bench.space.free, table, strict=True)
        }
        problem = allocation_problem(bench.space, loss, (bench.costs.exact(SIZE),))
        found.append(problem.allocation(front_at(problem, SIZE, [bench.budget(bits)]).indices[0]))
    return found


def our_choices(bench: Bench, seed: int, bits: float) -> dict[str, Choice]:
    """Our choice at a size, for each stage; chosen on validation."""
    budget = bench.budget(bits)
    fits = [entry for entry in search_candidates(bench, seed) if entry[1] <= budget]
    near = [entry for entry in fits if entry[1] >= NEAR * budget] or fits
    best = sorted(near, key=lambda entry: -entry[2])[:ON_VALIDATION]
    others = [choice for name, choice in simple_choices(bench, bits).items() if name not in (ONE_SCALE, PER_LAYER)]
    others.append(nas_choice(bench, seed, bits))
    searched = [allocation for allocation, _, _ in best] + solved_at(bench, seed, bits)
    candidates = list(dict.fromkeys([*map(Choice, searched), *others]))
    candidates.sort(key=lambda choice: -on_validation(bench, choice, None))
    trained = list(dict.fromkeys([*candidates[:TRAINED], *others]))
    return {STAGES[0]: candidates[0], STAGES[1]: max(trained, key=lambda choice: on_validation(bench, choice, seed))}


def choices(bench: Bench, method: str, seed: int, bits: float) -> dict[str, Choice]:
    """What a method proposes at a size, for each stage."""
    if method == OURS:
        return our_choices(bench, seed, bits)
    choice = nas_choice(bench, seed, bits) if method == NAS else simple_choices(bench, bits)[method]
    return dict.fromkeys(STAGES, choice)


def measure(bench: Bench, method: str, seed: int, bits: float) -> None:
    """Judge a method at a size and keep the figures."""
    path = bench.folder / "rows" / f"{digest([method, seed, bits, bench.experiment.qat.steps, len(bench.test)])[:16]}.json"
    if path.is_file():
        return
    row: dict[str, object] = {"method": method, "seed": seed, "bits": bits}
    for stage, choice in choices(bench, method, seed, bits).items():
        figures = bench.judge(choice, None if stage == STAGES[0] else seed, Split.TEST)
        workload_bytes = bench.bytes_of(choice.allocation)
        weights = {site: width for site, width in choice.allocation.widths if is_weight(site)}
        row[stage] = {"bytes": workload_bytes, "weights": weights, "figures": figures}
    atomic_write_json(path, row)


_bench: Bench | None = None


def work(arguments: tuple[tuple[Path, Path, int, int], str, int, float]) -> str:
    """A row in a process of its own, which keeps the bench for the next one."""
    global _bench  # noqa: PLW0603 (once per process, as a pool's initialiser would)
    settings, method, seed, bits = arguments
    _bench = _bench or Bench(*settings)
    measure(_bench, method, seed, bits)
    return f"{method}, seed {seed}, {bits:g} bits"


def prepare_seed(arguments: tuple[tuple[Path, Path, int, int], int]) -> str:
    """The differentiable search and our search of a seed, which the rows of all sizes read."""
    global _bench  # noqa: PLW0603 (as in `work`)
    settings, seed = arguments
    _bench = _bench or Bench(*settings)
    run_our_search(_bench, seed)
    return f"searches, seed {seed}"


Found = dict[tuple[str, float, str], list[dict[str, Any]]]
"""What was measured by method, bits and stage, of each seed."""


def read_rows(bench: Bench, seeds: int) -> Found:
    """Rows that were measured on the test mixtures asked for."""
    found: Found = {}
    for path in sorted((bench.folder / "rows").glob("*.json")):
        row = read_json(path, "a row")
        for stage in STAGES:
            if len(row[stage]["figures"]["pesq"]) == len(bench.test) and row["seed"] < seeds:
                found.setdefault((row["method"], row["bits"], stage), []).append(row[stage])
    return found


def per_mixture(found: Found, method: str, bits: float, stage: str, metric: str) -> FloatArray:
    """A metric of every test mixture, mean over seeds."""
    mean: FloatArray = np.mean([row["figures"][metric] for row in found[method, bits, stage]], axis=0)
    return mean


def summarise(bench: Bench, found: Found) -> list[dict[str, Any]]:
    """Means over seeds and mixtures, with intervals over target utterances."""
    utterances = [mixture.target.utterance for mixture in bench.test]
    rows = []
    for (method, bits, stage), of_seeds in found.items():
        row: dict[str, Any] = {"stage": stage, "bits": bits, "method": method, "seeds": len(of_seeds)}
        row["bytes"] = float(np.mean([entry["bytes"] for entry in of_seeds]))
        for metric in METRICS:
            estimate = bootstrap_mean_interval(per_mixture(found, method, bits, stage, metric), seed=0, groups=utterances)
            row[metric] = [estimate.value, estimate.low, estimate.high]
        rows.append(row)
    return rows


def compare(bench: Bench, found: Found) -> list[dict[str, Any]]:
    """Ours against the best single method and against the best uniform one, each the best on these very mixtures."""
    utterances = [mixture.target.utterance for mixture in bench.test]
    tests = []
    for stage, bits, (kind, group) in product(STAGES, BITS, GROUPS.items()):
        rivals = {
            method: per_mixture(found, method, bits, stage, METRICS[0]) for method in group if (method, bits, stage) in found
        }
        if not rivals or (OURS, bits, stage) not in found:
            continue
        best = max(rivals, key=lambda method: rivals[method].mean())
        test = paired_permutation_test(per_mixture(found, OURS, bits, stage, METRICS[0]), rivals[best], 0, utterances)
        entry = {"stage": stage, "bits": bits, "against": kind, "method": best}
        tests.append(entry | {"difference_db": test.difference, "p_value": test.p_value, "mixtures": test.n})
    for stage, kind in product(STAGES, GROUPS):
        _correct([test for test in tests if (test["stage"], test["against"]) == (stage, kind)])
    return tests


def _correct(tests: Sequence[dict[str, Any]]) -> None:
    """Holm's correction for testing at every size (Scandinavian Journal of Statistics 6(2), 1979)."""
    largest = 0.0
    for rank, test in enumerate(sorted(tests, key=lambda test: test["p_value"])):
        largest = max(largest, min(1.0, (len(tests) - rank) * test["p_value"]))
        test["p_holm"] = largest


def report(bench: Bench, seeds: int, results: Path) -> None:
    """JSON, Markdown and a plot of what has been measured so far."""
    found = read_rows(bench, seeds)
    rows, tests = summarise(bench, found), compare(bench, found)
    full_path = bench.folder / f"full-precision-{len(bench.test)}.json"
    if not full_path.is_file():
        atomic_write_json(full_path, bench.score(float_system(bench.base.separator), Split.TEST))
    full = {metric: float(np.mean(values)) for metric, values in read_json(full_path, "figures of full precision").items()}
    made_by = {
        "command": "python experiments/method_comparison.py run && python experiments/method_comparison.py report",
        "experiment": bench.experiment.name,
        "test_mixtures": len(bench.test),
        "test_utterances": len({mixture.target.utterance for mixture in bench.test}),
        "qat": bench.experiment.qat.model_dump(mode="json"),
        "evaluations_of_our_search": EVALUATIONS,
        "provenance": dict(provenance(bench.workspace)),
        "versions": {name: version(name) for name in ("hwsearch", "torch", "numpy", "pesq")},
    }
    content = {"made_by": made_by, "full_precision": full, "rows": rows, "tests": tests}
    atomic_write_json(results / "method_comparison.json", content)
    text = _markdown(rows, tests, full)
    atomic_write_bytes(results / "method_comparison.md", text.encode())
    print(text)
    _plot(rows, full, results / "method_comparison.png")


def _markdown(rows: Sequence[dict[str, Any]], tests: Sequence[dict[str, Any]], full: Mapping[str, float]) -> str:
    lines = [f"Full precision: {full['si_snr_improvement_db']:.2f} dB, PESQ {full['pesq']:.2f}.", ""]
    for stage in STAGES:
        by_cell = {(row["method"], row["bits"]): row for row in rows if row["stage"] == stage}
        by_test = {(test["against"], test["bits"]): test for test in tests if test["stage"] == stage}
        lines += [f"**{stage}**: SI-SNR improvement, dB (PESQ; size with one scale per channel); p after Holm", ""]
        lines += [f"| method | {' | '.join(f'{bits:g} bits' for bits in BITS)} |", "|---|" + "---|" * len(BITS)]
        lines += [f"| {method} | {' | '.join(_figures(by_cell.get((method, bits))) for bits in BITS)} |" for method in METHODS]
        lines += [
            f"| ours against the best {kind} | {' | '.join(_verdict(by_test.get((kind, bits))) for bits in BITS)} |"
            for kind in GROUPS
        ]
        lines.append("")
    return "\n".join(lines)


def _figures(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    value, low, high = row["si_snr_improvement_db"]
    return f"{value:.2f} [{low:.2f}, {high:.2f}] ({row['pesq'][0]:.2f}; {row['bytes'] / 1e3:.0f} kB)"


def _verdict(test: dict[str, Any] | None) -> str:
    return "" if test is None else f"{test['difference_db']:+.2f} over {test['method']}, p = {test['p_holm']:.2g}"


def _plot(rows: Sequence[dict[str, Any]], full: Mapping[str, float], path: Path) -> None:
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    for axes, stage in zip(figure.subplots(1, 2, sharey=True), STAGES, strict=True):
        for index, method in enumerate(METHODS):
            drawn = sorted((row for row in rows if (row["stage"], row["method"]) == (stage, method)), key=lambda row: row["bits"])
            sizes, values = [row["bytes"] / 1e6 for row in drawn], [row["si_snr_improvement_db"][0] for row in drawn]
            line = axes.plot(sizes, values, marker="o", markersize=3, color=f"C{index}", label=method, linewidth=1)[0]
            line.set(linestyle="--" if method in UNIFORM else "-", linewidth=2.2 if method == OURS else 1)
        axes.axhline(full["si_snr_improvement_db"], color="0.4", linewidth=0.8, linestyle=":")
        axes.set_title(stage)
        axes.set_xlabel("file, MB")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("SI-SNR improvement, dB")
    figure.axes[0].set_ylim(bottom=0)
    figure.axes[1].legend(fontsize=7)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Parse, run or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "report"])
    parser.add_argument("--experiment", type=Path, default=HERE / "comparison.toml")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--mixtures", type=int, default=60, help="test mixtures, the first ones")
    parser.add_argument("--steps", type=int, default=50, help="of QAT")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    build(Workspace(options.runs_dir, load_experiment(options.experiment)), options.workers)
    settings = (options.experiment, options.runs_dir, options.mixtures, options.steps)
    bench = Bench(*settings)
    if options.action == "report":
        report(bench, options.seeds, options.results)
        return
    bench.estimate()
    wanted = [(settings, method, seed, bits) for seed in range(options.seeds) for method in METHODS for bits in BITS]
    with ProcessPoolExecutor(options.workers) as pool:
        for name in pool.map(prepare_seed, [(settings, seed) for seed in range(options.seeds)]):
            print(name, flush=True)
        for number, name in enumerate(pool.map(work, wanted), start=1):
            print(f"{number}/{len(wanted)}: {name}", flush=True)


if __name__ == "__main__":
    main()
