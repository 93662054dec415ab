"""What allocations cost on an experiment's targets, as columns of the record."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from hw_models.compile import CostTable, compile_target
from hw_models.cost import evaluate_runnable
from hw_models.errors import TargetError
from hw_models.packed import average_weight_bits, packed_size_bytes
from hw_models.target import load_target
from hw_models.workload import Workload, bits_matrix
from hwsearch.data.arrays import ARRAYS
from hwsearch.errors import UserError
from hwsearch.experiment import Experiment
from hwsearch.files.reading import digest
from hwsearch.search.driver import Cost
from hwsearch.search.objectives import SIZE
from hwsearch.separator.allocation import BitAllocation
from hwsearch.separator.separator import build_front_end
from hwsearch.separator.untrained import UntrainedNetwork, untrained_network

_KEPT = 16
"""Number of workloads that a process keeps in its cache."""


def experiment_workload(experiment: Experiment) -> Workload:
    """Return the layer shapes of one inference: over `search.utterance_seconds`, or over one frame with `search.streaming`."""
    rate = experiment.data.sample_rate
    front_end = build_front_end(experiment.separator.spectral, ARRAYS[experiment.data.array], rate)
    frames = front_end.frames(round(experiment.search.utterance_seconds * rate))
    per_channel = experiment.quantization.weight_scale == "per_channel"
    workload = _workload(untrained_network(experiment), frames, front_end.frame_samples / rate, per_channel=per_channel)
    return workload.streamed() if experiment.search.streaming else workload


@lru_cache(maxsize=_KEPT)
def _workload(network: UntrainedNetwork, frames: int, frame_seconds: float, *, per_channel: bool) -> Workload:
    return network.workload(frames, frame_seconds, per_channel=per_channel)


def inner_weight_sites(workload: Workload) -> tuple[str, ...]:
    """Return the weight sites between the first and the last layer. Papers leave these two out of the average width of a TCN.

    A network that has only these two layers gives all its weight sites.
    """
    return workload.weight_sites[1:-1] or workload.weight_sites


def compile_targets(experiment: Experiment, workload: Workload) -> dict[str, CostTable]:
    """Compile the cost table of each target, by the target's name.

    Raises:
        UserError: an unknown target or a wrong target file.
    """
    try:
        tables = [compile_target(load_target(name), workload) for name in experiment.search.targets]
    except TargetError as error:
        raise UserError(str(error)) from None
    names = [table.target.name for table in tables]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise UserError(f"search.targets: two targets are called '{repeated[0]}'; wanted a name of its own in each file")
    return dict(zip(names, tables, strict=True))


def target_digests(experiment: Experiment) -> dict[str, str]:
    """Hash the content of each target file, by the target's name.

    Raises:
        UserError: an unknown target or a wrong target file.
    """
    try:
        targets = [load_target(name) for name in experiment.search.targets]
    except TargetError as error:
        raise UserError(str(error)) from None
    return {target.name: digest(target.model_dump(mode="json")) for target in targets}


def make_cost(experiment: Experiment) -> Cost:
    """Make the function that computes the costs of allocations.

    It gives `size_bytes`, `average_bits`, `tcn_average_bits` and, for each target, `latency_ms[target]`, the other
    `CostTable.metrics` and `fits[target]`. `fits` is 1 if weights and activations fit into the memory that the target states for
    them, else 0.

    A target that cannot run an allocation at all (floating point on an integer machine) gives NaN.

    Raises:
        UserError: an unknown target or a wrong target file.
    """
    workload = experiment_workload(experiment)
    tables = compile_targets(experiment, workload)
    inner = inner_weight_sites(workload)

    def cost(allocations: Sequence[BitAllocation]) -> list[dict[str, float]]:
        bits = bits_matrix(workload, [allocation.by_site for allocation in allocations])
        columns: dict[str, np.ndarray] = {
            SIZE: packed_size_bytes(workload, bits),
            "average_bits": average_weight_bits(workload, bits),
            "tcn_average_bits": average_weight_bits(workload, bits, inner),
        }
        for name, table in tables.items():
            can, costs = evaluate_runnable(table, bits)
            fits = np.full(len(bits), np.nan)
            fits[can] = costs.fits
            columns[f"fits[{name}]"] = fits
            for metric in table.metrics:
                values = np.full(len(bits), np.nan)
                values[can] = costs.column(metric)
                columns[f"{metric}[{name}]"] = values
        return [{name: float(values[row]) for name, values in columns.items()} for row in range(len(bits))]

    return cost
