"""One candidate on all targets, for the choice of a chip."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

from hw_models.errors import TargetError
from hw_models.shortage import shortage
from hw_models.target import Target, built_in_targets, load_target
from hw_models.workload import Workload
from hwsearch.errors import UserError
from hwsearch.search.costs import experiment_workload
from hwsearch.search.objectives import SIZE
from hwsearch.separator.allocation import BitAllocation
from hwsearch.workflow.choose import choose_candidate
from hwsearch.workflow.cost import Charge, charge_workload
from hwsearch.workflow.runs import read_run


@dataclass(frozen=True)
class OnTarget:
    """What a candidate costs on one target; None where the target cannot run it, or where nobody knows.

    Times and energies are for a second of sound.

    Attributes:
        candidate: its number.
        size_bytes: the size of its ONNX file.
        target: name of the target.
        checked_against: what the target's latency was compared with: `measurements`, `simulator` or `nothing`.
        latency_ms: the modelled time.
        latency_low_ms: the time if what was checked is too slow by the largest error that was found; None also if less than
            half of it was checked.
        latency_high_ms: the time if it is too fast by as much.
        checked_share: share of the time from layers that were compared with the reference, 0 to 1.
        mean_error_percent: the mean error there.
        max_error_percent: the largest error there.
        energy_uj: the modelled energy.
        weight_bytes: what the weights take on the chip.
        peak_activation_bytes: the most that activations take at once.
        fits: whether weights and activations fit.
        real_time_factor: share of real time; above 1, the chip does not keep up.
        streaming_real_time_factor: the same frame by frame; None also if the network looks ahead, so that it cannot stream.
        streaming_fits: whether it fits frame by frame; None likewise.
        note: why it does not fit or cannot run; else empty.
    """

    candidate: int
    size_bytes: int
    target: str
    checked_against: str
    latency_ms: float | None = None
    latency_low_ms: float | None = None
    latency_high_ms: float | None = None
    checked_share: float | None = None
    mean_error_percent: float | None = None
    max_error_percent: float | None = None
    energy_uj: float | None = None
    weight_bytes: int | None = None
    peak_activation_bytes: int | None = None
    fits: bool | None = None
    real_time_factor: float | None = None
    streaming_real_time_factor: float | None = None
    streaming_fits: bool | None = None
    note: str = ""


@dataclass(frozen=True)
class AllTargets:
    """A candidate on all targets, the fastest first; those that cannot run it come last.

    Attributes:
        run: name of the experiment.
        candidate: number of the candidate.
        size_bytes: the size of its ONNX file.
        ahead_ms: how far the kernels of the network look ahead; 0 if it can stream.
        rows: one for each target.
    """

    run: str
    candidate: int
    size_bytes: int
    ahead_ms: float
    rows: tuple[OnTarget, ...]


def on_all_targets(folder: Path, candidate: int | None) -> AllTargets:
    """Charge a candidate to all built-in targets and to those of its experiment.

    Args:
        folder: the run folder.
        candidate: its number; None for the one that `hwsearch run` exports.

    Raises:
        UserError: the run or a target file of its experiment cannot be read, or there is no such candidate.
    """
    run = read_run(folder)
    chosen = choose_candidate(run).candidate if candidate is None else candidate
    configuration, experiment = run.configuration(chosen), run.workspace.experiment
    size = int(run.table.columns[SIZE][run.row(chosen)])
    workload = experiment_workload(experiment, configuration.kept or None)
    rows = [
        _on_target(chip, workload, configuration.allocation, OnTarget(chosen, size, chip.name, chip.calibration.against))
        for chip in _targets(experiment.search.targets)
    ]
    rows.sort(key=lambda row: (row.latency_ms is None, row.latency_ms, row.target))
    ahead = 0.0 if workload.causal else 1e3 * max(workload.delay_frames.values()) * workload.frame_seconds
    return AllTargets(experiment.name, chosen, size, ahead, tuple(rows))


def _targets(own: tuple[str, ...]) -> list[Target]:
    """Load the built-in targets and those of an experiment. Of two with one name, that of the experiment counts."""
    try:
        chips = {chip.name: chip for chip in map(load_target, (*built_in_targets(), *own))}
    except TargetError as error:
        raise UserError(str(error)) from None
    return list(chips.values())


def _on_target(chip: Target, workload: Workload, allocation: BitAllocation, row: OnTarget) -> OnTarget:
    """Fill in the row of one target."""
    try:
        whole = charge_workload(chip, workload, allocation)
        live = charge_workload(chip, workload.streamed(), allocation) if workload.causal else None
    except TargetError as error:
        return replace(row, note=str(error))
    sure, costs, seconds = whole.confidence, whole.costs, workload.seconds
    return replace(
        row,
        latency_ms=float(costs.latency_ms[0]) / seconds,
        latency_low_ms=_each_second(sure.low_ms, seconds),
        latency_high_ms=_each_second(sure.high_ms, seconds),
        checked_share=sure.share,
        mean_error_percent=sure.mean_error_percent,
        max_error_percent=sure.max_error_percent,
        energy_uj=_each_second(float(costs.energy_uj[0]), seconds),
        weight_bytes=int(costs.weight_bytes[0]),
        peak_activation_bytes=int(costs.peak_activation_bytes[0]),
        fits=bool(costs.fits[0]),
        real_time_factor=float(costs.real_time_factor[0]),
        streaming_real_time_factor=None if live is None else float(live.costs.real_time_factor[0]),
        streaming_fits=None if live is None else bool(live.costs.fits[0]),
        note=_note(whole, live),
    )


def _note(whole: Charge, live: Charge | None) -> str:
    """Say why a network does not fit, and whether it fits frame by frame; empty if it fits."""
    missing = shortage(whole.table, whole.bits)
    if missing and live is not None and live.costs.fits[0]:
        return f"{missing}; it fits frame by frame"
    return missing


def _each_second(value: float | None, seconds: float) -> float | None:
    """Divide what an inference takes by the seconds of its sound; None if it is not known, or has no bound."""
    return None if value is None or not math.isfinite(value) else value / seconds
