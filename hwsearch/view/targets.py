"""Costs layer by layer, the list of targets, and a fitted target, for people."""

import json
import math
import sys
from functools import partial
from pathlib import Path

from hw_models.calibration import Errors, Fit
from hw_models.confidence import Confidence
from hw_models.errors import TargetError
from hw_models.figures import significant
from hw_models.plot import draw_layers, draw_one_more_bit, draw_roofline
from hw_models.target import built_in_targets, load_target
from hwsearch.errors import UserError
from hwsearch.files.writing import atomic_write, check_writable
from hwsearch.view.tables import EVERY, Column, asked_for, fitting, print_table
from hwsearch.view.terminal import say, tell
from hwsearch.workflow.cost import Charge

PLOTS = {"layers.png": draw_layers, "roofline.png": draw_roofline, "one_more_bit.png": draw_one_more_bit}
"""Files that a cost is drawn into."""

DPI = 140
TEXT_COLUMNS = frozenset({"layer", "kind", "bits", "bound", "runs_as", "checked"})
FIRST_COLUMNS = ("layer", "latency_ms", "bound", "bits", "weight_bytes", "energy_uj", "runs_as", "utilisation")
"""Columns of the layers that are needed most. On an FPGA its resources come next."""

LAST_COLUMNS = ("kind", "checked", "macs", "cycles")
"""Columns that are needed least."""


def check_plots(folder: Path) -> None:
    """Refuse a folder that the pictures of a cost cannot be written into."""
    for name in PLOTS:
        check_writable(folder / name)


def print_cost(charge: Charge, plots: Path | None, columns: str | None = None, output_format: str = "table") -> None:
    """Print the cost of each layer and the totals, as a `table` or as exact `json`, and draw them into the folder `plots`.

    `columns` are those of the table as the command line names them, by default those that fit, the time first.

    Raises:
        UserError: an unknown column; something that cannot be drawn or written.
    """
    try:
        figures = {} if plots is None else {plots / name: draw(charge.table, charge.bits) for name, draw in PLOTS.items()}
    except TargetError as error:
        raise UserError(str(error)) from None
    if output_format == "json":
        sys.stdout.write(_json(charge) + "\n")
    else:
        _print_layers(charge, columns)
        for line in _summary(charge):
            say(line)
    for path, figure in figures.items():
        atomic_write(path, partial(figure.savefig, dpi=DPI, format="png"))
        (tell if output_format == "json" else say)(f"plot: {path}")


def _json(charge: Charge) -> str:
    """Write the costs as a JSON object. A value that is not known is null."""
    costs, sure = charge.costs, charge.confidence
    *layers, total = ({name: _known(value) for name, value in row.items()} for row in charge.rows)
    content = {
        "target": charge.target.name,
        "seconds": charge.table.workload.seconds,
        "streaming": charge.table.workload.streaming,
        "layers": layers,
        "total": {name: value for name, value in total.items() if value != ""},
        "peak_activation_bytes": int(costs.peak_activation_bytes[0]),
        "fits": bool(costs.fits[0]),
        "real_time_factor": float(costs.real_time_factor[0]),
        "checked_against": charge.target.calibration.against,
        "checked_share": sure.share,
        "mean_error_percent": sure.mean_error_percent,
        "max_error_percent": sure.max_error_percent,
        "latency_low_ms": sure.low_ms,
        "latency_high_ms": None if sure.high_ms is None else _known(sure.high_ms),
    }
    return json.dumps(content, indent=2)


def _known(value: str | float) -> str | float | None:
    """Return a value, or None for one that JSON has no number for."""
    return value if isinstance(value, str) or math.isfinite(value) else None


def print_targets() -> None:
    """Print the built-in targets with the error of their latency, if it was checked."""
    chips = [load_target(name) for name in built_in_targets()]
    columns = [
        Column("target", built_in_targets(), words=True),
        Column("family", [str(chip.family) for chip in chips], words=True),
        Column("checked by", [chip.calibration.against for chip in chips], words=True),
        Column("median", [_percent(chip.calibration.median_error_percent) for chip in chips], note="error, %"),
        Column("worst", [_percent(chip.calibration.max_error_percent) for chip in chips], note="error, %"),
    ]
    print_table(columns, "built-in targets, and how far their latency is off")
    say("more on one of them: hwsearch targets TARGET")
    say("all of them for a candidate: hwsearch targets --for RUN")


def print_target(target: str) -> None:
    """Print the memories and widths of a target, and the measurements that it was checked on.

    Raises:
        UserError: an unknown target or a wrong file.
    """
    try:
        chip = load_target(target)
    except TargetError as error:
        raise UserError(str(error)) from None
    say(f"{chip.name}: {chip.title}")
    say(f"runtime:    {chip.runtime}")
    say(f"clock:      {chip.clock.clock_hz / 1e6:g} MHz")
    for level in chip.memory:
        size = "no size stated" if level.bytes is None else f"{level.bytes:,} bytes"
        rate = "traffic inside the rates" if level.bytes_per_cycle is None else f"{level.bytes_per_cycle:g} bytes per cycle"
        say(f"memory:     {level.name}, {size}, {rate}, for {' and '.join(level.holds)}")
    other = "runs in the next wider" if chip.precisions.unsupported == "widen" else "is refused"
    say(f"precisions: {chip.precisions.in_words}; another {other}")
    say(f"fitted on:  {chip.calibration.fitted_on}")
    say(f"checked on: {chip.calibration.held_out}")
    say(f"source:     {chip.calibration.source}")


def print_fit(fit: Fit, output: Path) -> None:
    """Print the errors of a fitted target, and the file that it was written to."""
    held_out = {check.name for check in fit.held_out}
    checks = (*fit.fitted, *fit.held_out)
    columns = [
        Column("measurement", [check.name for check in checks], words=True),
        Column("held out", ["yes" if check.name in held_out else "no" for check in checks], words=True),
        Column("measured", [significant(check.latency_ms) for check in checks], note="ms"),
        Column("predicted", [significant(check.predicted_ms) for check in checks], note="ms"),
        Column("error", [f"{100 * (check.predicted_ms / check.latency_ms - 1):+.1f}" for check in checks], note="%"),
    ]
    print_table(columns, "measured and predicted latency")
    for what, checks in (("fitted", fit.fitted), ("held out", fit.held_out)):
        for metric, errors in (("latency", Errors.of_latency(checks)), ("energy", Errors.of_energy(checks))):
            if errors is not None:
                say(f"{what}, {metric}: {_errors(errors)}")
    for title, names in (("not measured, left as they were", fit.unmeasured), ("not told apart", fit.undetermined)):
        if names:
            say(f"{title}: {', '.join(names)}")
    say(f"target: {output}")
    say(f"next:   hwsearch cost {output}")


def _errors(errors: Errors) -> str:
    order = "" if errors.spearman is None else f", rank correlation {errors.spearman:.3f}"
    return (
        f"{errors.count} measurements, error median {errors.median:.1%}, mean {errors.mean:.1%}, worst {errors.worst:.1%}{order}"
    )


def _print_layers(charge: Charge, asked: str | None) -> None:
    """Print the layers, without the columns that are empty.

    Raises:
        UserError: an unknown column in `asked`.
    """
    workload, rows = charge.table.workload, charge.rows
    cells = {name: [_cell(row[name]) for row in rows] for name in rows[0]}
    known = [name for name in cells if any(cells[name])]
    names = known if asked is None else asked_for(asked, known)
    if unknown := [name for name in names if name not in cells]:
        raise UserError(f"unknown column '{unknown[0]}'; wanted some of {', '.join(cells)}, or '{EVERY}'")
    shown = [Column(name, cells[name], words=name in TEXT_COLUMNS) for name in names]
    if asked is None:
        shown = fitting(
            shown, [*FIRST_COLUMNS, *(name for name in known if name not in FIRST_COLUMNS + LAST_COLUMNS), *LAST_COLUMNS]
        )
    length = f"{significant(workload.seconds, 3)} s of speech"
    if workload.streaming:
        length = f"one frame of {1e3 * workload.frame_seconds:g} ms"
    print_table(shown, f"{charge.target.name}: {length}, {workload.macs:,} MACs")


def _summary(charge: Charge) -> list[str]:
    """The totals in words."""
    table, costs, placement = charge.table, charge.costs, charge.placement
    peak = costs.peak_activation_bytes[0]
    lines = [
        f"weights:     {costs.weight_bytes[0]:,} bytes in {placement.weights.name}{_of(placement.weights.bytes)}",
        f"activations: {peak:,} bytes at most in {placement.activations.name}{_of(placement.activations.bytes)}",
        f"fits:        {'yes' if costs.fits[0] else 'no'}",
        f"time:        {significant(costs.latency_ms[0])} ms, {significant(costs.real_time_factor[0], 3)} of real time",
        f"checked:     {how_sure(charge.confidence, charge.target.calibration.against)}",
        f"work:        {costs.bit_operations[0]:,} bit operations",
    ]
    if not math.isnan(float(costs.energy_uj[0])):
        unknown = "" if table.dataflow is None else ", not known by layer"
        lines.append(f"energy:      {significant(costs.energy_uj[0])} uJ{unknown}")
    for name, counts in costs.resources.items():
        lines.append(f"{name + ':':<12} {counts[0]:,}")
    workload = table.workload
    if workload.streaming:
        delay = max(workload.delay_frames.values())
        lines.append(f"delay:       {delay} frames, {1e3 * delay * workload.frame_seconds:g} ms, that the kernels look ahead")
    return lines


def how_sure(confidence: Confidence, against: str) -> str:
    """Say which share of a latency was checked, and the error there."""
    if against == "nothing":
        return "nothing: nobody has measured this target"
    if confidence.mean_error_percent is None or confidence.max_error_percent is None:
        return "nothing: nobody has measured these layers at these widths"
    where = "on a chip" if against == "measurements" else "by a simulator"
    errors = f"mean error {confidence.mean_error_percent:.3g} %, worst {confidence.max_error_percent:.3g} %"
    return f"{share_percent(confidence.share)} % of the time, {where}: {errors}"


def share_percent(share: float) -> str:
    """Write a share of 0 to 1 in percent: 0 only for nothing, and 100 only for everything."""
    percent = round(100 * share)
    if percent == 0 and share > 0:
        return "<1"
    return ">99" if percent == 100 and share < 1 - 1e-9 else f"{percent}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _of(capacity: int | None) -> str:
    return "" if capacity is None else f" of {capacity:,}"


def _cell(value: str | float) -> str:
    """Write a cell: thousands apart, at least four digits of a fraction, nothing for an unknown value."""
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    return "" if math.isnan(value) else significant(value)
