"""How fast an exported file runs on this machine, beside the float32 network in PyTorch and beside what `hw_models` expects."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from hw_models.compile import compile_target
from hw_models.cost import evaluate_runnable
from hw_models.errors import TargetError
from hw_models.target import load_target
from hw_models.workload import bits_matrix
from hwsearch.export.network import ExportedNetwork
from hwsearch.network.run import run
from hwsearch.process.interrupts import checkpoint
from hwsearch.separator.rounded_weights import one_thread
from hwsearch.separator.workload import build_workload

ROUNDS = 5
"""Times that file and float32 network run, in turns, after one run of each that does not count."""


@dataclass(frozen=True)
class SpeedReport:
    """Speed on one thread of this machine, from features to mask; those of a TensorFlow Lite file are quantized before.

    A real-time factor is the processor time that a second of sound takes, in seconds: below 1, the network keeps up.

    Attributes:
        frames: number of frames in each run.
        real_time_factor: of the file, the median of `ROUNDS` runs.
        float32_real_time_factor: of the float32 network in PyTorch, likewise.
        times_as_fast: median over the rounds of float32's time divided by the file's.
        modelled_target: the target of `hw_models` that has this runtime and these kernels; none if there is none.
        modelled_real_time_factor: what `hw_models` expects there; none without a target, or if it does not run the network.
    """

    frames: int
    real_time_factor: float
    float32_real_time_factor: float
    times_as_fast: float
    modelled_target: str | None = None
    modelled_real_time_factor: float | None = None


def measure_speed(
    call: Callable[[], object], network: ExportedNetwork, features: Tensor, target: str | None = None
) -> SpeedReport:
    """Time a file and the float32 network in turns, and say what `hw_models` expects of the file.

    Args:
        call: runs the file on `features`, on the calling thread.
        network: the network of the file.
        features: raw features, [1, features, frames].
        target: the built-in target that has this runtime and these kernels.
    """
    master = network.network.master_copy()
    (source,) = master.inputs
    seconds = _seconds_of_sound(network, features.shape[-1])
    with one_thread(), torch.inference_mode():
        calls = call, lambda: run(master, {source: network.normalise(features)})
        for each in calls:
            each()
        rounds = [[_processor_seconds(each) for each in calls] for _ in range(ROUNDS)]
    own, float32 = (median(times) / seconds for times in zip(*rounds, strict=True))
    ratio = median(slow / fast for fast, slow in rounds)
    modelled = None if target is None else _modelled_seconds(network, features.shape[-1], target)
    return SpeedReport(features.shape[-1], own, float32, ratio, target, None if modelled is None else modelled / seconds)


def _seconds_of_sound(network: ExportedNetwork, frames: int) -> float:
    return frames * network.front_end.frame_samples / network.front_end.sample_rate


def _processor_seconds(call: Callable[[], object]) -> float:
    checkpoint()
    begun = time.thread_time()
    call()
    return time.thread_time() - begun


def _modelled_seconds(network: ExportedNetwork, frames: int, target: str) -> float | None:
    """Return the seconds that a target takes, or none if it does not run the widths of the network."""
    quantized = network.network
    graph, weights = quantized.graph, quantized.quantized_weights().values()
    workload = build_workload(
        graph,
        quantized.graph_sites,
        dict.fromkeys(graph.inputs, network.features),
        frames,
        _seconds_of_sound(network, 1),
        "separator",
        per_channel=any(weight is not None and weight.scale.numel() > 1 for weight in weights),
    )
    try:
        table = compile_target(load_target(target), workload)
    except TargetError:
        return None  # the target cannot run a layer at any width
    can, costs = evaluate_runnable(table, bits_matrix(workload, [quantized.allocation.by_site]))
    return float(costs.latency_ms[0]) / 1000 if can[0] else None
