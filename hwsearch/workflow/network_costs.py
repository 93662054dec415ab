"""Time and energy of every layer of many candidates on the targets of their experiment."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hw_models.breakdown import layer_times
from hw_models.workload import bits_matrix
from hwsearch.search.costs import compile_alike, experiment_workload
from hwsearch.workflow.runs import Run

MOST_STRUCTURES = 40
"""Targets are compiled for so many structures at most. Each takes about a tenth of a second."""


@dataclass(frozen=True, eq=False)
class LayerCosts:
    """Costs of the layers of candidates on one target.

    Attributes:
        target: name of the chip.
        at_once: whether all layers run at once, as on an FPGA, so that their times do not add up.
        layers: names of the layers of the whole network, in execution order.
        latency_ms: by candidate, [layers]; NaN where a layer is left out, and everywhere if the target refuses the candidate.
        energy_uj: the same; NaN also if the target states no energy.
    """

    target: str
    at_once: bool
    layers: tuple[str, ...]
    latency_ms: dict[int, NDArray[np.float64]]
    energy_uj: dict[int, NDArray[np.float64]]


def network_costs(run: Run, candidates: Sequence[int]) -> list[LayerCosts]:
    """Compute the costs of the layers of candidates on every target of the experiment.

    Where structure is searched, candidates beyond the first `MOST_STRUCTURES` structures get none.

    Raises:
        UserError: a candidate is not in the run, or a target file has changed to a wrong one.
    """
    experiment = run.workspace.experiment
    by_structure: dict[tuple[tuple[str, int], ...], list[int]] = {}
    for candidate in candidates:
        by_structure.setdefault(run.configuration(candidate).structure, []).append(candidate)
    whole = tuple(layer.name for layer in experiment_workload(experiment).layers)
    found: dict[str, LayerCosts] = {}
    structures = list(by_structure)[:MOST_STRUCTURES]
    workloads = [experiment_workload(experiment, dict(structure) or None) for structure in structures]
    compiled = compile_alike(experiment, workloads)
    for structure, workload, tables in zip(structures, workloads, compiled, strict=True):
        numbers = by_structure[structure]
        widths = [run.configuration(number).allocation.by_site for number in numbers]
        bits = bits_matrix(workload, [{site: each[site] for site in workload.sites} for each in widths])
        places = [whole.index(layer.name) for layer in workload.layers]
        for name, table in tables.items():
            costs = found.setdefault(name, LayerCosts(name, table.dataflow is not None, whole, {}, {}))
            times = layer_times(table, bits)
            for kept, values in ((costs.latency_ms, times.latency_ms), (costs.energy_uj, times.energy_uj)):
                kept.update(zip(numbers, _at(places, values, len(whole)), strict=True))
    return list(found.values())


def _at(places: Sequence[int], values: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Put [candidates, kept layers] into the places of the whole network, [candidates, layers], with NaN elsewhere."""
    found = np.full((len(values), size), np.nan)
    found[:, places] = values
    return found
