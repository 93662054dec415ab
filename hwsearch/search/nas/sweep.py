"""A sweep over cost weights: jobs for an executor, and a file that keeps their results."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError

from hw_models.wording import first_mistake
from hwsearch.errors import UserError
from hwsearch.executor import Executor, Factory, run_jobs
from hwsearch.files.reading import digest, file_digest
from hwsearch.files.seals import read_sealed_cache, write_sealed_json
from hwsearch.search.exact.problem import AllocationProblem, Cost
from hwsearch.search.nas.job import nas_job
from hwsearch.search.nas.network import make_options
from hwsearch.search.nas.result import NasResult
from hwsearch.separator.base import base_digest
from hwsearch.separator.factory import BaseFactory
from hwsearch.separator.prepare import calibration_digest
from hwsearch.training.pool import load_pool

NAS_FILE = "nas.json"
"""In the run folder."""

_FORMAT = 1
_MEND = "delete it and it is made again"
_RESULTS = TypeAdapter(list[NasResult])

MakeExecutor = Callable[[Factory[float, NasResult]], Executor[float, NasResult]]

Progress = Callable[[int, int], None]
"""Called with (cost weights done, all of them)."""


@dataclass(frozen=True)
class NasFactory(BaseFactory):
    """Builds the function that runs one cost weight, in the process that will use it."""

    pool: Path
    """The file of training examples."""
    problem: AllocationProblem = field(kw_only=True)
    """Sites, widths and groups. Its loss is not used."""
    cost: Cost = field(kw_only=True)
    """An additive cost for the same widths, from `nas_cost`."""

    def __call__(self) -> Callable[[float], NasResult]:
        """Load the base and quantize it at every width, once for all cost weights.

        Raises:
            UserError: an unusable base, data set, pool or device, or a pool of another base.
        """
        torch.set_num_threads(1)
        base = self.prepared()
        pool = load_pool(self.pool)
        if pool.base_sha256 != base.base_sha256:
            raise UserError(f"{self.pool}: training mixtures of another base; delete it and it is made again")
        options = make_options(base, self.problem)

        def work(cost_weight: float) -> NasResult:
            return nas_job(options, self.cost, self.experiment.nas, pool, cost_weight, self.experiment.seed)

        return work

    def key(self) -> str:
        """Hash everything that a result depends on. The other cost weights are no part of it.

        Raises:
            UserError: the base, calibration or pool is missing.
        """
        if not self.pool.is_file():
            raise UserError(f"{self.pool}: no such file; wanted training mixtures made by 'hwsearch'")
        return digest(
            {
                "format": _FORMAT,
                "nas": self.experiment.nas.model_dump(mode="json", exclude={"cost_weights", "cost"}),
                "quantization": self.experiment.quantization.model_dump(mode="json"),
                "seed": self.experiment.seed,
                "base": base_digest(self.base),
                "calibration": calibration_digest(self.calibration),
                "pool": file_digest(self.pool),
                "widths": self.problem.widths,
                "groups": self.problem.groups,
                "cost": [self.cost.name, self.cost.tables.tolist(), self.cost.constants.tolist()],
            }
        )


def ensure_nas(
    factory: NasFactory, path: Path, make_executor: MakeExecutor, progress: Progress = lambda _done, _all: None
) -> list[NasResult]:
    """Return the results of all `nas.cost_weights`, in their order. Results that `path` holds are not computed again.

    Args:
        factory: what is searched.
        path: the file of results, written after each cost weight. Results of other settings, bases or data are replaced.
        make_executor: opens the executor; only called if a result is missing.
        progress: called after every cost weight.

    Raises:
        UserError: an unusable base, pool or file, or a cost weight that failed; names it.
    """
    wanted = factory.experiment.nas.cost_weights
    key = factory.key()
    found = _read(path, key, factory.problem)
    missing = [weight for weight in dict.fromkeys(wanted) if weight not in found]
    progress(len(set(wanted)) - len(missing), len(set(wanted)))
    if missing:
        with make_executor(factory) as executor:
            for outcome in run_jobs(executor, missing):
                if outcome.result is None:
                    raise UserError(f"nas: cost weight {missing[outcome.key]:g} failed: {outcome.error}")
                found[outcome.result.cost_weight] = outcome.result
                _write(path, key, found)
                progress(sum(weight in found for weight in set(wanted)), len(set(wanted)))
    return [found[weight] for weight in wanted]


def _read(path: Path, key: str, problem: AllocationProblem) -> dict[float, NasResult]:
    """Results by cost weight; none if the file is missing or belongs to other settings."""
    content = read_sealed_cache(path, "results of a differentiable search", _MEND)
    if content is None or content.get("key") != key:
        return {}
    try:
        results = _RESULTS.validate_json(json.dumps(content.get("results")))
    except ValidationError as error:
        raise UserError(f"{path}: {first_mistake(error).said}; {_MEND}") from None
    if not all(result.belongs_to(problem) for result in results):
        raise UserError(f"{path}: holds results of another space; {_MEND}")
    return {result.cost_weight: result for result in results}


def _write(path: Path, key: str, found: dict[float, NasResult]) -> None:
    results = [found[weight].model_dump(mode="json") for weight in sorted(found)]
    write_sealed_json(path, {"key": key, "results": results})
