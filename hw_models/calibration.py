"""Fits a target's free numbers to measurements on the chip, and reports its errors on measurements that were held out.

The latency is linear in the fitted numbers:

    rates         scale sum(max(F r, memory) + G r) + layers layer_cycles + inference_cycles, over r and inference_cycles
    other rules   scale sum(cycles by the rule) + layers layer_cycles + inference_cycles, over these three

To both, the target's `cycles_per_input` is added as it is.

F holds the MACs and outputs of each layer, G its channels and a one for the layer, each in the columns of its kernel class and
widths. The numbers are non-negative and minimise the squared relative errors of all measurements together, because a network
mixes kernel classes. Numbers that the measurements do not determine keep the proportions of the target.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
import tomli_w
from scipy.optimize import nnls
from scipy.stats import spearmanr

from hw_models.breakdown import per_layer
from hw_models.compile import CostTable, compile_target, layer_shape
from hw_models.cost import evaluate, placement_of
from hw_models.errors import TargetError
from hw_models.layer_cost import layer_time
from hw_models.measurements import Measurement, Measurements
from hw_models.rules.rates import Rate, RateCompute
from hw_models.sections import Calibration, Energy, Overheads
from hw_models.target import Target
from hw_models.work import Work
from hw_models.workload import FloatArray, IntArray

_RATES: Final = ("cycles_per_mac", "cycles_per_output", "cycles_per_channel", "layer_cycles")
_OVERLAPPING: Final = (True, True, False, False)
"""Which of `_RATES` overlap with the traffic of memory levels, as in `RateCompute.work`."""
_PRIOR_WEIGHT: Final = 0.01
"""Weight of the prior: changing a number by an amount that makes up the whole latency counts as a 1 % error of one measurement.
This is negligible for numbers that measurements determine, and decides the others."""
_DETERMINED: Final = 0.9
"""A number is reported as undetermined if the measurements decide a smaller share of it than this, and the prior the rest."""
_MAX_PASSES: Final = 50
_HELD_OUT_EVERY: Final = 3
_KEPT: Final = "; what was not fitted: "

_Refitted = TypeVar("_Refitted", Overheads, Energy)


@dataclass(frozen=True)
class Check:
    """A measurement and the prediction of the calibrated target; energies are None if the measurement states none."""

    name: str
    latency_ms: float
    predicted_ms: float
    energy_uj: float | None
    predicted_uj: float | None


@dataclass(frozen=True)
class Errors:
    """Relative errors of checks, and Spearman's rank correlation, which is None for fewer than three checks or equal values."""

    count: int
    median: float
    mean: float
    worst: float
    spearman: float | None

    @classmethod
    def of_latency(cls, checks: Sequence[Check]) -> "Errors | None":
        """Errors of the latency; None if there are no checks."""
        return cls._of([(check.predicted_ms, check.latency_ms) for check in checks])

    @classmethod
    def of_energy(cls, checks: Sequence[Check]) -> "Errors | None":
        """Errors of the energy over the checks that measured it; None if there are none."""
        pairs = [(check.predicted_uj, check.energy_uj) for check in checks]
        return cls._of([(predicted, measured) for predicted, measured in pairs if predicted is not None and measured is not None])

    @classmethod
    def _of(cls, pairs: Sequence[tuple[float, float]]) -> "Errors | None":
        if not pairs:
            return None
        predicted, measured = np.array(pairs).T
        errors = np.abs(predicted / measured - 1)
        ordered = len(pairs) > 2 and np.ptp(predicted) > 0 and np.ptp(measured) > 0
        spearman = float(spearmanr(predicted, measured).statistic) if ordered else None
        return cls(len(pairs), float(np.median(errors)), float(errors.mean()), float(errors.max()), spearman)


@dataclass(frozen=True)
class Fit:
    """A calibrated target and its errors.

    Attributes:
        target: the new target, with its sources and its `calibration` section.
        fitted: the measurements that it was fitted to.
        held_out: the other measurements.
        unmeasured: unchanged rates, which no fitted measurement runs.
        undetermined: numbers that the measurements do not determine separately; they keep their proportions.
    """

    target: Target
    fitted: tuple[Check, ...]
    held_out: tuple[Check, ...]
    unmeasured: tuple[str, ...]
    undetermined: tuple[str, ...]


def calibrate(target: Target, measurements: Measurements, *, file: str, name: str) -> Fit:
    """Fit a target to measurements.

    If no measurement is marked `held_out`, every third is held out, chosen by a hash of its name. Measured energies determine
    `active_mw`.

    Args:
        target: the most similar chip, with the measured chip's clock, memory and widths.
        measurements: the measurements.
        file: name of the measurements file, for the `source` lines.
        name: name of the new target.

    Raises:
        TargetError: the target has nothing to fit, or cannot run a measurement, or the measurements do not fit any such target.
    """
    if target.compute.rule == "dataflow":
        raise TargetError(
            f"target '{target.name}': a dataflow circuit has no free number; its folding and its clock are its latency"
        )
    held_out = _held_out(measurements.measurements)
    used = [measurement for measurement in measurements.measurements if measurement.name not in held_out]
    if not used:
        raise TargetError(f"{file}: every measurement is held out; wanted one to fit")
    note = f"fitted to {file}, {len(used)} measurements"
    runs = [_run(target, measurement) for measurement in used]
    if isinstance(target.compute, RateCompute):
        calibrated, unmeasured, undetermined = _fit_rates(target, target.compute, runs, note)
    else:
        calibrated, undetermined = _fit_scale(target, runs, note)
        unmeasured = ()
    calibrated = _fit_energy(calibrated, used, note)
    checks = [_check(calibrated, measurement) for measurement in measurements.measurements]
    kept = tuple(check for check in checks if check.name in held_out)
    how = (
        "marked so"
        if any(measurement.held_out for measurement in measurements.measurements)
        else "every third by a hash of its name"
    )
    section = _calibration_section(f"{len(used)} measurements of {file}", how, measurements.source, kept)
    return Fit(
        target=Target.model_validate({**calibrated.model_dump(), "name": name, "calibration": section.model_dump()}),
        fitted=tuple(check for check in checks if check.name not in held_out),
        held_out=kept,
        unmeasured=unmeasured,
        undetermined=undetermined,
    )


def target_toml(target: Target) -> str:
    """Write a target as a target file; `load_target` reads it."""
    return tomli_w.dumps(target.model_dump(mode="json", exclude_none=True, exclude_defaults=True))


@dataclass(frozen=True, eq=False)
class _Run:
    """A measurement and the tables of its workload on the uncalibrated target."""

    measurement: Measurement
    table: CostTable

    @property
    def cycles(self) -> float:
        """The measured latency in cycles of the target's clock."""
        return self.measurement.latency_ms * 1e-3 * self.table.target.clock.clock_hz

    @property
    def input_cycles(self) -> float:
        """The cycles that the network's inputs are charged."""
        return self.table.target.overheads.cycles_per_input * self.table.workload.input_elements


@dataclass(frozen=True, eq=False)
class _Solution:
    """Fitted numbers `[numbers]`, and the share of each that the measurements decide: NaN if no measurement uses the number."""

    values: FloatArray
    decided: FloatArray

    def undetermined(self, labels: Sequence[str]) -> tuple[str, ...]:
        return tuple(label for label, share in zip(labels, self.decided, strict=True) if share < _DETERMINED)


def _held_out(measurements: Sequence[Measurement]) -> frozenset[str]:
    if marked := frozenset(measurement.name for measurement in measurements if measurement.held_out):
        return marked
    by_hash = sorted((measurement.name for measurement in measurements), key=lambda name: hashlib.sha256(name.encode()).digest())
    return frozenset(by_hash[_HELD_OUT_EVERY - 1 :: _HELD_OUT_EVERY])


def _run(target: Target, measurement: Measurement) -> _Run:
    try:
        run = _Run(measurement, compile_target(target, measurement.workload))
        evaluate(run.table, measurement.bits[None])
    except TargetError as error:
        raise TargetError(f"measurement '{measurement.name}': {error}") from error
    return run


def _fit_scale(target: Target, runs: Sequence[_Run], note: str) -> tuple[Target, tuple[str, ...]]:
    """Fit `scale`, `layer_cycles` and `inference_cycles`; return the target, and the numbers that are undetermined."""
    nothing = dict.fromkeys(("layer_cycles", "inference_cycles", "cycles_per_input"), 0.0)
    bare = target.overheads.model_copy(update={"scale": 1.0, **nothing})
    by_rule = [
        evaluate(compile_target(target.model_copy(update={"overheads": bare}), run.table.workload), run.measurement.bits[None])
        for run in runs
    ]
    cycles = np.array([costs.latency_ms[0] for costs in by_rule]) * 1e-3 * target.clock.clock_hz
    layers = [float(len(run.table.workload.layers)) for run in runs]
    numbers = ("scale", "layer_cycles", "inference_cycles")
    old = np.array([getattr(target.overheads, number) for number in numbers])
    measured = np.array([run.cycles for run in runs])
    wanted = measured - [run.input_cycles for run in runs]
    solution = _non_negative(np.stack([cycles, layers, np.ones(len(runs))], axis=1), wanted, measured, old)
    values = dict(zip(numbers, map(_rounded, solution.values), strict=True))
    if not values["scale"]:
        raise TargetError(
            "the measurements do not rise with the cycles of the compute rule; wanted more sizes, or steadier timing"
        )
    return target.model_copy(update={"overheads": _refitted(target.overheads, note, **values)}), solution.undetermined(numbers)


def _fit_rates(
    target: Target, rule: RateCompute, runs: Sequence[_Run], note: str
) -> tuple[Target, tuple[str, ...], tuple[str, ...]]:
    """Fit the rates and `inference_cycles`; return the target, the unmeasured rates, and the undetermined numbers."""
    solution = _rate_values(target, rule, runs)
    table = solution.values[:-1].reshape(len(rule.rates), len(_RATES))
    seen = [not np.isnan(row).all() for row in solution.decided[:-1].reshape(table.shape)]
    rates = []
    for rate, row, is_seen in zip(rule.rates, table, seen, strict=True):
        values = dict(zip(_RATES, map(_rounded, row), strict=True))
        if is_seen and rate.kernel == "conv" and not values["cycles_per_mac"]:
            raise TargetError(f"measurements of {_label(rate)} do not rise with its MACs; wanted more shapes, or steadier timing")
        rates.append(rate.model_copy(update={**values, "source": note}) if is_seen else rate)
    labels = [f"{_label(rate)} {number}" for rate in rule.rates for number in _RATES] + ["inference_cycles"]
    update = {
        "compute": rule.model_copy(update={"rates": tuple(rates), "source": f"{note}; each rate names its own source"}),
        "overheads": _refitted(target.overheads, note, inference_cycles=_rounded(solution.values[-1])),
    }
    unmeasured = tuple(_label(rate) for rate, is_seen in zip(rule.rates, seen, strict=True) if not is_seen)
    return target.model_copy(update=update), unmeasured, solution.undetermined(labels)


def _rate_values(target: Target, rule: RateCompute, runs: Sequence[_Run]) -> _Solution:
    """Fit every number of every rate in the order of the rule, then `inference_cycles`.

    A layer waits for arithmetic or for memory, whichever takes longer. If it is known which, the latency is linear. Fits and this
    choice alternate, beginning with arithmetic for all layers.
    """
    features, memory, owner = _layer_features(target, rule, runs)
    hides = np.tile(_OVERLAPPING, len(rule.rates))
    measured, inputs = (np.array([getattr(run, name) for run in runs]) for name in ("cycles", "input_cycles"))
    overheads = target.overheads
    old = np.array([*(getattr(rate, number) for rate in rule.rates for number in _RATES), overheads.inference_cycles])
    waits, values = np.zeros(len(owner), bool), old
    for _ in range(_MAX_PASSES):
        rows = np.where(waits[:, None] & hides, 0.0, features)
        given = overheads.scale * np.where(waits | (not overheads.transfers_overlap), memory, 0.0) + overheads.layer_cycles
        columns = np.ones((len(runs), len(old)))
        columns[:, :-1] = [overheads.scale * rows[owner == run].sum(axis=0) for run in range(len(runs))]
        wanted = measured - inputs - [given[owner == run].sum() for run in range(len(runs))]
        solution = _non_negative(columns, wanted, measured, old)
        values = np.where(np.isnan(solution.decided), values, solution.values)  # hidden by memory: the last value stays
        before = waits
        waits = (memory > features[:, hides] @ values[:-1][hides]) & overheads.transfers_overlap
        if (waits == before).all():
            break
    return _Solution(values, solution.decided)


def _layer_features(target: Target, rule: RateCompute, runs: Sequence[_Run]) -> tuple[FloatArray, FloatArray, IntArray]:
    """Lay out the linear problem, with a row for every layer of every run.

    Returns:
        The factor of each number of the rates `[layers, numbers]`, cycles of memory traffic `[layers]`, and the run of each layer
        `[layers]`.
    """
    bare = target.overheads.model_copy(update={"scale": 1.0, "layer_cycles": 0.0})
    silent = target.model_copy(update={"overheads": bare})
    features, memory, owner = [], [], []
    for number, run in enumerate(runs):
        bits, workload = run.measurement.bits, run.table.workload
        placement = placement_of(run.table, bits)
        for layer, cost in zip(workload.layers, per_layer(run.table, bits), strict=True):
            shape = layer_shape(target, workload, layer)
            row = np.zeros((len(rule.rates), len(_RATES)))
            at = rule.rate_index(shape, cost.executed.activation_bits, cost.executed.weight_bits)
            row[at] = [shape.macs, shape.outputs, shape.out_channels, 1]
            features.append(row.ravel())
            memory.append(layer_time(silent, shape, cost.executed, Work(compute=0.0), cost.weight_bytes, placement).total)
            owner.append(number)
    return np.array(features), np.array(memory), np.array(owner)


def _non_negative(columns: FloatArray, wanted: FloatArray, measured: FloatArray, old: FloatArray) -> _Solution:
    """Numbers x >= 0 with `columns @ x` near `wanted`, with errors relative to `measured` and a prior on the old proportions.

    Least squares with a Tikhonov term towards `factor * old`, where the factor is fitted first. The coordinates are such that one
    unit of every number makes up the latency. The share that the measurements decide is the diagonal of the resolution matrix
    (A'A + w^2 I)^-1 A'A.
    """
    relative, goal = columns / measured[:, None], wanted / measured
    size = np.sqrt((relative**2).mean(axis=0))
    seen = size > 0
    scaled = relative[:, seen] / size[seen]
    before = relative @ old
    factor = max(float(before @ goal / (before @ before)), 0.0) if before.any() else 1.0
    prior = _PRIOR_WEIGHT * np.eye(seen.sum())
    x, _ = nnls(np.vstack([scaled, prior]), np.concatenate([goal, prior @ (factor * old[seen] * size[seen])]))
    gram = scaled.T @ scaled
    values, decided = old.copy(), np.full(len(old), np.nan)
    values[seen] = x / size[seen]
    decided[seen] = np.diag(np.linalg.solve(gram + prior**2, gram))
    return _Solution(values, decided)


def _fit_energy(target: Target, measurements: Sequence[Measurement], note: str) -> Target:
    """Set `active_mw` to the median that the measured energies, if any, imply."""
    metered = [measurement for measurement in measurements if measurement.energy_uj is not None]
    if not metered:
        return target
    energy = Energy(active_mw=0.0, source=note) if target.energy is None else target.energy
    without = target.model_copy(update={"energy": energy.model_copy(update={"active_mw": 0.0})})
    powers = []
    for measurement in metered:
        costs = evaluate(compile_target(without, measurement.workload), measurement.bits[None])
        powers.append((float(measurement.energy_uj or 0.0) - costs.energy_uj[0]) / measurement.latency_ms)  # uJ / ms = mW
    power = float(np.median(powers))
    if power < 0:
        raise TargetError("energy: the target's multiply-accumulates and traffic alone take more than was measured; wanted less")
    return target.model_copy(update={"energy": _refitted(energy, note, active_mw=_rounded(power))})


def _check(target: Target, measurement: Measurement) -> Check:
    costs = evaluate(_run(target, measurement).table, measurement.bits[None])
    metered = measurement.energy_uj is not None and target.energy is not None
    return Check(
        name=measurement.name,
        latency_ms=measurement.latency_ms,
        predicted_ms=float(costs.latency_ms[0]),
        energy_uj=measurement.energy_uj,
        predicted_uj=float(costs.energy_uj[0]) if metered else None,
    )


def _calibration_section(fitted_on: str, how: str, source: str, held_out: Sequence[Check]) -> Calibration:
    errors = Errors.of_latency(held_out)
    if errors is None:
        return Calibration(against="nothing", fitted_on=fitted_on, held_out="nothing: too few measurements", source=source)
    rank = "" if errors.spearman is None else f"; rank correlation {errors.spearman:.3f}"
    return Calibration(
        against="measurements",
        fitted_on=fitted_on,
        held_out=f"{errors.count} other measurements of the file, {how}; mean error {errors.mean:.1%}{rank}",
        median_error_percent=round(100 * errors.median, 1),
        max_error_percent=round(100 * errors.worst, 1),
        source=source,
    )


def _refitted(section: _Refitted, note: str, **values: Any) -> _Refitted:
    """A section with new values, and a source that also names that of the other values."""
    kept = section.source.rpartition(_KEPT)[2]
    source = note if kept.startswith("fitted to ") else f"{note}{_KEPT}{kept}"
    return section.model_copy(update={**values, "source": source})


def _label(rate: Rate) -> str:
    weights = f"w{rate.weight_bits}" if rate.weight_bits else ""
    return f"{rate.kernel} a{rate.activation_bits}{weights}"


def _rounded(value: float) -> float:
    """Round to four significant digits, more than measurements have."""
    return float(f"{value:.4g}")
