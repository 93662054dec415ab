"""How sure a latency is: the share of it from layers that were compared with a reference, and the error found there."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hw_models.breakdown import LayerCost, per_layer
from hw_models.calibration import Check, Errors
from hw_models.compile import CostTable, compile_target
from hw_models.cost import evaluate, inference_overhead
from hw_models.measurements import Measurement
from hw_models.sections import Evidence
from hw_models.target import Target
from hw_models.workload import IntArray

INFERENCE = "inference"
"""The kind of what an inference takes around its layers."""

TELLING_SHARE = 0.1
"""A measurement tells about a kind of layers that takes at least this share of its time. Its error says little of the others."""

INTERVAL_SHARE = 0.5
"""Least share of a latency that must have been compared for an interval. Below, it would be narrow for want of facts."""


@dataclass(frozen=True)
class Confidence:
    """How sure the latency of one allocation is.

    Attributes:
        share: share of the latency from compared layers, 0 to 1. On an FPGA, where layers run at once, the share of the sum over
            the layers.
        mean_error_percent: mean error of the comparisons, weighted by the time they speak for; None if nothing was compared.
        max_error_percent: the largest error in any of these comparisons.
        low_ms: what the latency would be if all compared layers were too slow by the largest error; None if less than
            `INTERVAL_SHARE` of it was compared.
        high_ms: the same if they were too fast; infinite for an error of 100 % or more. Layers that nobody compared count as
            modelled in both.
        checked: for each layer, in execution order, whether it is one that was compared.
    """

    share: float
    mean_error_percent: float | None
    max_error_percent: float | None
    low_ms: float | None
    high_ms: float | None
    checked: tuple[bool, ...]


def confidence(table: CostTable, bits_row: IntArray) -> Confidence:
    """Say how sure the latency of one allocation `[sites]` is.

    Raises:
        TargetError: a wrong shape or width, or a width the target refuses; names the layer.
    """
    layers, target = per_layer(table, bits_row), table.target
    evidence = [_evidence(target, layer) for layer in layers]
    around = _of_inference(target)
    spoken = [(one, layer.cycles) for one, layer in zip(evidence, layers, strict=True)]
    if table.dataflow is None:
        spoken.append((around, inference_overhead(table)))
    checked = tuple(one is not None for one in evidence)
    whole = sum(cycles for _, cycles in spoken)
    known = [(one, cycles) for one, cycles in spoken if one is not None and cycles > 0]
    if not known:
        return Confidence(0.0, None, None, None, None, checked)
    time = np.array([cycles for _, cycles in known])
    share = float(time.sum()) / whole
    mean = float(np.average([one.mean_error_percent for one, _ in known], weights=time))
    largest = max(one.max_error_percent for one, _ in known)
    if share < INTERVAL_SHARE:
        return Confidence(share, mean, largest, None, None, checked)
    latency = float(evaluate(table, bits_row[None]).latency_ms[0])
    compared, rest, error = share * latency, (1 - share) * latency, largest / 100
    high = rest + compared / (1 - error) if error < 1 else np.inf
    return Confidence(share, mean, largest, rest + compared / (1 + error), high, checked)


def evidence_of(target: Target, measurements: Sequence[Measurement], checks: Sequence[Check]) -> tuple[Evidence, ...]:
    """Return the evidence that held-out measurements give for a target: an entry for each kind of layers and pair of widths.

    A measurement counts for what takes at least `TELLING_SHARE` of its time.

    Args:
        target: the fitted target.
        measurements: at least those of the checks.
        checks: measured and predicted latencies that the target was not fitted to.
    """
    by_name = {check.name: check for check in checks}
    found: dict[tuple[str, tuple[int, int]], list[Check]] = {}
    parts: dict[tuple[str, tuple[int, int]], list[int]] = {}
    for measurement in measurements:
        if measurement.name not in by_name:
            continue
        layers = per_layer(compile_target(target, measurement.workload), measurement.bits)
        whole = sum(layer.cycles for layer in layers)
        for key in dict.fromkeys(map(_key, layers)):
            if sum(layer.cycles for layer in layers if _key(layer) == key) >= TELLING_SHARE * whole:
                found.setdefault(key, []).append(by_name[measurement.name])
                parts.setdefault(key, []).append(len(layers))
    return tuple(_entry(target, *key, checks, parts[key]) for key, checks in sorted(found.items()))


def _entry(target: Target, kind: str, pair: tuple[int, int], checks: Sequence[Check], parts: Sequence[int]) -> Evidence:
    errors = Errors.of_latency(checks)
    if errors is None:
        raise AssertionError("an entry without a measurement")
    return Evidence.model_validate(
        {
            "kinds": (kind,),
            "pairs": (pair,),
            "compared": "layers" if max(parts) == 1 else "networks",
            "cases": errors.count,
            "mean_error_percent": round(100 * errors.mean, 1),
            "max_error_percent": round(100 * errors.worst, 1),
            "source": f"held-out measurements: {target.calibration.source}",
        }
    )


def _key(layer: LayerCost) -> tuple[str, tuple[int, int]]:
    return str(layer.kind), (layer.executed.activation_bits, layer.executed.weight_bits)


def _evidence(target: Target, layer: LayerCost) -> Evidence | None:
    """Return the entry that speaks for a layer, if any; there is one at most."""
    kind, pair = _key(layer)
    return next((one for one in target.calibration.evidence if one.covers(kind, pair, layer.bound)), None)


def _of_inference(target: Target) -> Evidence | None:
    return next((one for one in target.calibration.evidence if INFERENCE in one.kinds), None)
