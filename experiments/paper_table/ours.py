"""Our systems: every tensor quantized, widths from the exact optimum at the size of the file, and training.

The size is that of the packed file (`hwsearch.export.packed`): weight integers, scales and biases, the records with the grids of
the activations, and the normalisation of the features. It is compared with the float32 file, which holds the parameters of the
network in 4 bytes each.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from reference import float_bytes
from sensitivities import sensitivities
from systems import Kind, System

from hwsearch.experiment import Experiment, Fidelity, Split, with_search
from hwsearch.export.network import ExportedNetwork
from hwsearch.export.packed import pack
from hwsearch.files.reading import file_digest
from hwsearch.search.costs import CostBook
from hwsearch.search.exact.front import front_at
from hwsearch.search.exact.problem import allocation_problem
from hwsearch.search.identity import search_digest
from hwsearch.search.objectives import PACKED_SIZE
from hwsearch.search.priors import loss_prior
from hwsearch.search.scoring import ScorerFactory, ScoringJob, trained_name
from hwsearch.search.space import build_space
from hwsearch.sensitivity.work import WorkFactory
from hwsearch.separator.allocation import BitAllocation
from hwsearch.separator.configuration import Configuration
from hwsearch.separator.prepare import PreparedBase
from hwsearch.separator.trained import TrainedState, load_trained, trained_network
from hwsearch.separator.untrained import untrained_sites
from hwsearch.workspace import Workspace

RATIOS = {3.3: 0.25, 5.25: 0.25, 7.65: 0.5, 10.0: 1.0, 12.0: 1.0, 15.0: 1.0}
"""How many times smaller than the float32 file, and the share of all training steps: large files have little left to gain. The
first three sizes are the reference's."""

PRIORS = ("measured-noise-ratio", "output-noise-ratio")
"""Sensitivities that the losses of widths are fused from."""


def our_experiment(workspace: Workspace) -> Experiment:
    """Return the experiment of a workspace, which uses the shared network if it was trained (`hwsearch train-shared`)."""
    fidelity = "shared" if workspace.shared_path.is_file() else "post-training"
    return with_search(workspace.experiment, {"fidelity": fidelity})


class Ours:
    """Our systems on the base of a workspace, whose experiment is that of `our_experiment`.

    Args:
        workspace: its data and its calibration exist.
        pool: training mixtures.
        steps: training steps of the systems that are trained longest (`RATIOS`).
    """

    def __init__(self, workspace: Workspace, pool: Path, steps: int) -> None:
        self._workspace = workspace
        self._pool = pool
        self._steps = steps
        self.experiment = workspace.experiment
        self._space = build_space(self.experiment.search, untrained_sites(self.experiment))
        self._costs = CostBook(self.experiment, self._space)
        self._scorer = lru_cache(maxsize=1)(self._make_scorer)

    def systems(self) -> list[System]:
        """Return a system for each ratio. The smallest file takes the place of ratios that no file reaches."""
        whole = float_bytes(self.experiment)
        smallest = self._costs.charge([self._space.decode((0,) * len(self._space.free))])[0][PACKED_SIZE]
        wanted = [
            (f"hwsearch, {ratio:g} times", whole / ratio, share) for ratio, share in RATIOS.items() if whole / ratio >= smallest
        ]
        if len(wanted) < len(RATIOS):
            wanted.append(("hwsearch, smallest file", smallest, 1.0))
        found = []
        allocations = self.allocations([budget for _, budget, _ in wanted])
        for (name, _, share), allocation in zip(wanted, allocations, strict=True):
            (costs,) = self._costs.charge([Configuration(allocation)])
            steps = max(1, round(share * self._steps))
            found.append(System(Kind.OURS, name, allocation, int(costs[PACKED_SIZE]), costs["average_bits"], steps=steps))
        return found

    def allocations(self, budgets: list[float]) -> list[BitAllocation]:
        """Return the allocation of each number of bytes: the exact optimum of a sum of losses.

        The losses are measured on the shared network if there is one, that is, behind training, else on the base.
        """
        factory, folder = WorkFactory.of(self._workspace, None), self._workspace.folder / "table-sensitivities"
        tables = sensitivities(factory, PRIORS, self._space.free_sites, folder)
        prior = loss_prior(tables, self._space, self.experiment.data.mixtures.count[Split.VALIDATION])
        loss = {
            name: dict(zip(widths, row.tolist(), strict=False))
            for (name, widths), row in zip(self._space.free, prior.mean, strict=True)
        }
        problem = allocation_problem(self._space, loss, (self._costs.exact(PACKED_SIZE),))
        return [problem.allocation(indices) for indices in front_at(problem, PACKED_SIZE, budgets).indices]

    def trained_path(self, system: System, seed: int) -> Path:
        """Return the file of a trained system, whose name says all that it depends on."""
        experiment = self._seeded(seed)
        start = file_digest(self._workspace.shared_path) if experiment.search.uses_shared else None
        name = trained_name(search_digest(experiment), Configuration(system.allocation), Fidelity.FINETUNED, start, system.steps)
        return self._workspace.folder / "trained" / name

    def trained(self, base: PreparedBase, system: System, seed: int) -> TrainedState:
        """Return a system after training, which starts from the shared network or the base, and goes on after a kill."""
        path = self.trained_path(system, seed)
        if not path.is_file():
            job = ScoringJob(Configuration(system.allocation), Fidelity.FINETUNED, path, steps=system.steps)
            self._scorer(seed)(job)
        return load_trained(path, base, system.allocation)

    def _make_scorer(self, seed: int) -> Callable[[ScoringJob], Mapping[str, float]]:
        return replace(ScorerFactory.of(self._workspace, self._pool), experiment=self._seeded(seed))()

    def _seeded(self, seed: int) -> Experiment:
        return self.experiment.model_copy(update={"seed": seed})


def packed_bytes(base: PreparedBase, state: TrainedState) -> int:
    """Count the bytes of the packed file of a trained system."""
    return len(pack(ExportedNetwork(trained_network(base, state), base.separator.front_end).eval()))
