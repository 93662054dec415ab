"""What allocations cost on an experiment's targets, as columns of the record."""

from collections.abc import Sequence

import numpy as np

from hw_models.compile import CostTable, compile_target
from hw_models.cost import evaluate, runnable
from hw_models.errors import TargetError
from hw_models.packed import average_weight_bits, packed_size_bytes
from hw_models.target import load_target
from hw_models.workload import Workload, bits_matrix
from hwsearch.data.arrays import ARRAYS
from hwsearch.errors import UserError
from hwsearch.experiment import Experiment
from hwsearch.search.driver import Cost
from hwsearch.search.objectives import SIZE
from hwsearch.separator.allocation import BitAllocation, weight_sites
from hwsearch.separator.features import feature_count
from hwsearch.separator.workload import build_workload


def experiment_workload(experiment: Experiment) -> Workload:
    """The layer shapes of one inference of `search.utterance_seconds`."""
    config, rate = experiment.separator, experiment.data.sample_rate
    bins = config.n_fft // 2 + 1
    return build_workload(
        config,
        features=feature_count(ARRAYS[experiment.data.array], bins, config.ipd, beam=config.beam),
        frames=round(experiment.search.utterance_seconds * rate) // config.hop_length + 1,
        sample_rate=rate,
        per_channel=experiment.quantization.weight_scale == "per_channel",
    )


def compile_targets(experiment: Experiment, workload: Workload) -> dict[str, CostTable]:
    """Cost tables by the target's name.

    Raises:
        UserError: an unknown target or a wrong target file.
    """
    try:
        tables = [compile_target(load_target(name), workload) for name in experiment.search.targets]
    except TargetError as error:
        raise UserError(str(error)) from None
    return {table.target.name: table for table in tables}


def make_cost(experiment: Experiment) -> Cost:
    """A function from allocations to `size_bytes`, `average_bits`, `tcn_average_bits` and, for each target,
    `latency_ms[target]`, `weight_bytes[target]` and `peak_activation_bytes[target]`.

    A target that cannot run an allocation at all (floating point on an integer machine) gives NaN.

    Raises:
        UserError: an unknown target or a wrong target file.
    """
    workload = experiment_workload(experiment)
    tables = compile_targets(experiment, workload)
    tcn = [site for site in weight_sites(experiment.separator) if site.startswith("blocks.")]

    def cost(allocations: Sequence[BitAllocation]) -> list[dict[str, float]]:
        bits = bits_matrix(workload, [allocation.by_site for allocation in allocations])
        columns: dict[str, np.ndarray] = {
            SIZE: packed_size_bytes(workload, bits),
            "average_bits": average_weight_bits(workload, bits),
            "tcn_average_bits": average_weight_bits(workload, bits, tcn),
        }
        for name, table in tables.items():
            can = runnable(table, bits)
            costs = evaluate(table, bits[can])
            for metric in ("latency_ms", "weight_bytes", "peak_activation_bytes"):
                values = np.full(len(bits), np.nan)
                values[can] = getattr(costs, metric)
                columns[f"{metric}[{name}]"] = values
        return [{name: float(values[row]) for name, values in columns.items()} for row in range(len(bits))]

    return cost
