"""What people see of chips: costs layer by layer, the targets there are, a fitted target."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from rich.markup import escape
from rich.table import Table

from hw_models.calibration import Errors, Fit
from hw_models.errors import TargetError
from hw_models.figures import significant
from hw_models.plot import draw_layers, draw_one_more_bit, draw_roofline
from hw_models.report import Row
from hw_models.target import built_in_targets, load_target
from hw_models.workload import Workload
from hwsearch.errors import UserError
from hwsearch.files import atomic_write, check_writable
from hwsearch.view.terminal import number, say, wide
from hwsearch.workflow.cost import Charge

PLOTS = {"layers.png": draw_layers, "roofline.png": draw_roofline, "one_more_bit.png": draw_one_more_bit}
"""Files that a cost is drawn into."""

DPI = 140
MOST_LETTERS = 60
"""Longest name of a runtime in the list of targets; the rest is cut off."""
TEXT_COLUMNS = frozenset({"layer", "kind", "bits", "bound", "runs_as"})


def check_plots(folder: Path) -> None:
    """Refuse a folder that the pictures of a cost cannot be written into.

    Raises:
        UserError: as said.
    """
    for name in PLOTS:
        check_writable(folder / name)


def print_cost(charge: Charge, plots: Path | None) -> None:
    """Print the cost of each layer and the totals, and draw them.

    Args:
        charge: what is shown.
        plots: folder for the pictures.

    Raises:
        UserError: something that cannot be drawn or written.
    """
    try:
        figures = {} if plots is None else {plots / name: draw(charge.table, charge.bits) for name, draw in PLOTS.items()}
    except TargetError as error:
        raise UserError(str(error)) from None
    wide().print(_cost_table(charge.target.name, charge.table.workload, charge.rows))
    for line in _summary(charge):
        say(line)
    for path, figure in figures.items():
        atomic_write(path, partial(figure.savefig, dpi=DPI, format="png"))
        say(f"plot: {path}")


def print_targets() -> None:
    """The built-in targets: family, runtime, and the error of their latency where it was checked."""
    table = Table("target", "family", "runtime", "clock MHz", "latency checked against", "error: median %", "worst %")
    for name in built_in_targets():
        chip = load_target(name)
        errors = (chip.calibration.median_error_percent, chip.calibration.max_error_percent)
        shown = ["" if value is None else f"{value:g}" for value in errors]
        clock = f"{chip.clock.clock_hz / 1e6:g}"
        table.add_row(name, str(chip.family), _short(chip.runtime), clock, chip.calibration.against, *shown)
    wide().print(table)
    say("On what a target was fitted and checked: hwsearch targets TARGET")


def print_target(target: str) -> None:
    """One target: its memories, its widths, and how far to trust it.

    Raises:
        UserError: an unknown target or a wrong file.
    """
    try:
        chip = load_target(target)
    except TargetError as error:
        raise UserError(str(error)) from None
    say(f"{chip.name}: {chip.title}")
    say(f"runtime:    {chip.runtime}")
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
    """Print how far a fitted target is to be trusted, and where it was written."""
    held_out = {check.name for check in fit.held_out}
    table = Table("measurement", "held out", "measured ms", "predicted ms", "error %")
    for check in (*fit.fitted, *fit.held_out):
        deviation = 100 * (check.predicted_ms / check.latency_ms - 1)
        row = (significant(check.latency_ms), significant(check.predicted_ms), f"{deviation:+.1f}")
        table.add_row(escape(check.name), "yes" if check.name in held_out else "", *row)
    wide().print(table)
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


def _cost_table(name: str, workload: Workload, rows: Sequence[Row]) -> Table:
    """Rows of `cost_rows` for the terminal, without the columns of which nothing is known."""
    length = f"{significant(workload.seconds, 3)} s of speech"
    if workload.streaming:
        length = f"one frame of {1e3 * workload.frame_seconds:g} ms"
    shown = Table(title=f"{name}: {length}, {workload.macs:,} MACs")
    columns = [column for column in rows[0] if any(not _absent(row[column]) for row in rows)]
    for column in columns:
        shown.add_column(column, justify="left" if column in TEXT_COLUMNS else "right")
    for row in rows:
        shown.add_row(*(number(row[column]) for column in columns), end_section=row is rows[-2])
    return shown


def _summary(charge: Charge) -> list[str]:
    """The totals in words."""
    table, costs, placement = charge.table, charge.costs, charge.placement
    peak = costs.peak_activation_bytes[0]
    lines = [
        f"weights:     {costs.weight_bytes[0]:,} bytes in {placement.weights.name}{_of(placement.weights.bytes)}",
        f"activations: {peak:,} bytes at most in {placement.activations.name}{_of(placement.activations.bytes)}",
        f"fits:        {'yes' if costs.fits[0] else 'no'}",
        f"time:        {significant(costs.latency_ms[0])} ms, {significant(costs.real_time_factor[0], 3)} of real time",
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


def _short(text: str) -> str:
    return text if len(text) <= MOST_LETTERS else text[: MOST_LETTERS - 1].rstrip() + "…"


def _of(capacity: int | None) -> str:
    return "" if capacity is None else f" of {capacity:,}"


def _absent(value: str | float) -> bool:
    return value == "" if isinstance(value, str) else bool(np.isnan(value))
