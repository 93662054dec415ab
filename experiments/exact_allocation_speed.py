"""Times the exact allocation on the reference system's network and on random problems of 224 sites and 6 widths, on one thread.

    OMP_NUM_THREADS=1 python experiments/exact_allocation_speed.py

Prints processor seconds, the best of three (once where a way takes longer than ten seconds), and checks that the ways agree.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from hw_models.compile import compile_target
from hw_models.target import load_target
from hwsearch.experiment import load_experiment
from hwsearch.search.costs import experiment_workload
from hwsearch.search.exact.costs import peak_activation_cost, size_cost, target_cost
from hwsearch.search.exact.front import exact_front, front_at, supported_front
from hwsearch.search.exact.milp import optimum
from hwsearch.search.exact.problem import AllocationProblem, Cost, FloatArray, Widths
from hwsearch.separator.allocation import is_weight

WIDTHS = (2, 3, 4, 5, 6, 8)
BUDGETS = 32
TARGET = "bitfusion"
BLOCKS = 32
CLUSTERS = (131072.0, 1.0, 1024.0, 1536.0, 1.0, 1024.0, 131072.0)
"""Weights of a block of arXiv 2111.14479: pointwise, PReLU, norm, depthwise, PReLU, norm, pointwise."""
REPEATS, LONG_SECONDS = 3, 10.0
MILP_SECONDS = 30.0

T = TypeVar("T")


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """What it returns, and the fewest processor seconds it took."""
    seconds: list[float] = []
    while len(seconds) < REPEATS and sum(seconds) < LONG_SECONDS:
        start = time.process_time()
        result = work()
        seconds.append(time.process_time() - start)
    return result, min(seconds)


def random_loss(widths: Widths, counts: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Losses `[sites, widths]` that fall fourfold per bit, from sensitivities over four decades."""
    spread = np.exp(rng.normal(0, 1.5, (len(widths), 1)) + rng.normal(0, 0.2, (len(widths), len(WIDTHS))))
    loss: FloatArray = spread * np.sqrt(counts)[:, None] * 4.0 ** -np.array(WIDTHS)
    return loss


def paper_problem(rng: np.random.Generator) -> AllocationProblem:
    """The network of `paper.toml` with weights of 2 to 8 bits, activations of 8, on a bit-flexible accelerator."""
    workload = experiment_workload(load_experiment(Path(__file__).parent / "paper.toml"))
    widths = tuple((site, WIDTHS if is_weight(site) else (8,)) for site in workload.sites)
    table = compile_target(load_target(TARGET), workload)
    counts = [layer.weight_count for layer in workload.weight_layers] + [1] * len(workload.activation_sites)
    costs = (size_cost(workload, widths), target_cost("latency_ms", table, widths), peak_activation_cost(table, widths))
    return AllocationProblem(widths, random_loss(widths, np.array(counts, np.float64), rng), costs)


def random_problem(counts: FloatArray, rng: np.random.Generator, *, whole_bytes: bool = False) -> AllocationProblem:
    """Sites of these weight counts, all free; each takes whole bytes, or as many bits as its weights."""
    widths = tuple((f"site{i}.weight", WIDTHS) for i in range(len(counts)))
    sizes = [values[:, None] * np.array(WIDTHS) / 8 for values in (counts, rng.permutation(counts))]
    if whole_bytes:
        sizes = [np.ceil(size) for size in sizes]
    costs = tuple(Cost(name, table[None], np.zeros(1)) for name, table in zip(("size_bytes", "other"), sizes, strict=True))
    return AllocationProblem(widths, random_loss(widths, counts, rng), costs)


def report(name: str, problem: AllocationProblem, second: str) -> None:
    """Print the times of every way on one problem."""
    free = sum(len(widths) > 1 for _, widths in problem.widths)
    hull, hull_seconds = timed(lambda: supported_front(problem, "size_bytes"))
    budgets = np.linspace(hull.costs[0], hull.costs[-1], BUDGETS)
    at, at_seconds = timed(lambda: front_at(problem, "size_bytes", budgets.tolist()))
    whole, whole_seconds = timed(lambda: exact_front(problem, "size_bytes"))
    best = whole.losses[np.searchsorted(whole.costs, budgets, side="right") - 1]
    np.testing.assert_allclose(at.losses, best, rtol=1e-12)
    middle = float(budgets[BUDGETS // 2])
    one, one_seconds = timed(lambda: optimum(problem, {"size_bytes": middle}))
    np.testing.assert_allclose(one.loss, front_at(problem, "size_bytes", [middle]).losses[0], rtol=1e-9)
    limits = {"size_bytes": middle, second: float(np.quantile(problem.cost_of(second, hull.indices), 0.5))}
    both, both_seconds = timed(lambda: optimum(problem, limits, MILP_SECONDS))
    print(f"{name}: {free} free sites, {len(WIDTHS)} widths")
    print(f"  hull                     {hull_seconds:8.3f} s   {len(hull.costs)} allocations")
    print(f"  optimum at {BUDGETS} budgets    {at_seconds:8.3f} s")
    print(f"  whole front              {whole_seconds:8.3f} s   {len(whole.costs)} allocations")
    print(f"  milp, one limit          {one_seconds:8.3f} s   proven: {one.proven}")
    print(f"  milp, two limits         {both_seconds:8.3f} s   proven: {both.proven}", flush=True)


def main() -> None:
    """Time the network of `paper.toml`, the 224 clusters of arXiv 2111.14479, and random sizes."""
    rng = np.random.default_rng(0)
    report("paper.toml", paper_problem(rng), f"latency_ms[{TARGET}]")
    report("the paper's clusters", random_problem(np.tile(CLUSTERS, BLOCKS), rng, whole_bytes=True), "other")
    report("layer-like sizes", random_problem(rng.choice([1536.0, 65536.0, 65536.0], 224), rng), "other")
    report("arbitrary sizes", random_problem(8 * np.rint(rng.uniform(100, 8192, 224)), rng), "other")
    report("costs without a unit", random_problem(rng.uniform(100, 65536, 224), rng), "other")


if __name__ == "__main__":
    main()
