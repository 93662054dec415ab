"""The report of a run as an HTML page."""

import html
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hwsearch.files.writing import atomic_write_text
from hwsearch.metrics.statistics import Estimate
from hwsearch.sensitivity.table import SensitivityTable
from hwsearch.version import VERSION
from hwsearch.view.evaluation import FIGURES, interval_text
from hwsearch.view.report.candidates import candidate_data, fidelity_series, shown_columns
from hwsearch.view.report.page import assemble
from hwsearch.view.report.sound import sound_data
from hwsearch.view.sensitivity_plot import short_names
from hwsearch.workflow.network_costs import LayerCosts
from hwsearch.workflow.report import Evaluated, Report

SCRIPTS = (
    "rows.js",
    "filter.js",
    "front.js",
    "figures.js",
    "front_figure.js",
    "candidate.js",
    "table.js",
    "player.js",
    "evidence.js",
    "report.js",
)

_FIGURES = 4
"""Significant digits of costs of layers and of sensitivities."""


def write_report(report: Report, path: Path) -> None:
    """Write the page of a report.

    Raises:
        UserError: it cannot be written there.
    """
    atomic_write_text(path, report_html(report))


def report_html(report: Report) -> str:
    """Render a report as one HTML page."""
    folder = shlex.quote(str(report.folder))
    evaluate = f"hwsearch evaluate {folder} --candidate N --output {shlex.quote(str(report.folder / 'figures-N.json'))}"
    parts = {
        "title": html.escape(f"{report.name}: what the search found"),
        "about": html.escape(_about(report)),
        "warnings": "".join(f'<p class="warning">{html.escape(warning)}</p>' for warning in report.warnings),
        "limits": html.escape(_limits(report)),
        "no_angles": "The run folder holds no evaluation. This command makes one, which the next report shows: "
        f"<code>{html.escape(evaluate)}</code>",
    }
    return assemble("report.html", SCRIPTS, report_data(report), parts)


def report_data(report: Report) -> dict[str, Any]:
    """Convert a report to the data that the page's scripts read."""
    several = len(report.tables) > 1
    return {
        **candidate_data(report.tables, [fidelity_series(table) for table in report.tables], configured=True),
        "comparison": None,
        "folder": shlex.quote(str(report.folder)),
        "limits": dict(report.limits),
        "chosen": report.chosen,
        "shownColumns": shown_columns(report.main, several=several),
        "layers": [_layers(costs) for costs in report.costs],
        "sensitivities": [_sensitivity(table) for table in report.sensitivities],
        "curves": _curves(report),
        "angles": _angles(report.evaluations),
        "sound": None if report.listening is None else sound_data(report.listening),
    }


def _about(report: Report) -> str:
    made = f"{report.made:%Y-%m-%d %H:%M} UTC, hwsearch {VERSION}"
    counts = [f"{len(table) + report.left_out.get(table.fidelity, 0):,} at '{table.fidelity.value}'" for table in report.tables]
    failed = sum(len(table.failures) for table in report.tables)
    best = sum(report.left_out.values())
    left_out = (
        f" Of these, {best:,} are left out here, none of them on the front; hwsearch pareto --all lists them." if best else ""
    )
    objectives = ", ".join(f"{objective.column} ({objective.direction.value})" for objective in report.main.objectives)
    scored = f"Candidates scored: {', '.join(counts)}; {failed} failed.{left_out}"
    return f"Run folder {report.folder}, {made}. {scored} Objectives: {objectives}."


def _limits(report: Report) -> str:
    if not report.limits:
        return ""
    limits = ", ".join(f"{column} <= {limit:.10g}" for column, limit in report.limits.items())
    return f"Shaded: beyond the limits of the experiment ({limits})."


def _layers(costs: LayerCosts) -> dict[str, Any]:
    """Give each layer its different pairs of time and energy, and each candidate their positions."""
    values: list[dict[tuple[float | None, float | None], int]] = [{} for _ in costs.layers]
    candidates: dict[str, list[int | None]] = {}
    for number, times in costs.latency_ms.items():
        places: list[int | None] = []
        for known, time, energy in zip(values, times.tolist(), costs.energy_uj[number].tolist(), strict=True):
            pair = (_rounded(time), _rounded(energy))
            places.append(None if pair[0] is None else known.setdefault(pair, len(known)))
        candidates[str(number)] = places
    return {
        "target": costs.target,
        "atOnce": costs.at_once,
        "layers": list(costs.layers),
        "values": [list(known) for known in values],
        "candidates": candidates,
    }


def _sensitivity(table: SensitivityTable) -> dict[str, Any]:
    return {
        "method": table.method,
        "unit": table.unit,
        "mixtures": table.mixtures,
        "sites": list(table.sites),
        "short": short_names(table.sites),
        "widths": list(table.widths),
        "value": [[_rounded(value) for value in row] for row in table.value.tolist()],
    }


def _curves(report: Report) -> list[dict[str, Any]]:
    styles = {series["name"]: series["style"] for series in map(fidelity_series, report.tables)}
    found = []
    for fidelity, points in (report.curves or {}).items():
        last = points[-1].hypervolume if points else 0.0
        if fidelity.value in styles and last > 0:
            found.append(
                {
                    "name": fidelity.value,
                    "style": styles[fidelity.value],
                    "candidates": [point.candidates for point in points],
                    "seconds": [_rounded(point.seconds) for point in points],
                    "share": [_rounded(point.hypervolume / last) for point in points],
                }
            )
    return found


def _angles(evaluations: Sequence[Evaluated]) -> dict[str, Any]:
    """Give the figures by angle of each system, and those of the unprocessed mixture once."""
    known = {key for each in evaluations for summary in each.summaries for key in summary.figures}
    figures = [figure for figure in FIGURES if figure[2] in known]
    systems = [_system(each.system, each, [(key, form, factor) for _, _, key, form, factor in figures]) for each in evaluations]
    if evaluations:
        unprocessed = [(key, form, factor) for _, key, _, form, factor in figures]
        systems.append(_system("unprocessed mixture", evaluations[0], unprocessed))
    return {"figures": [{"label": name} for name, *_ in figures], "systems": systems}


def _system(name: str, evaluated: Evaluated, figures: Sequence[tuple[str, str, float]]) -> dict[str, Any]:
    """Give the figures of a system by angle: each figure by its key, with its format and its factor."""
    return {
        "name": name,
        "file": str(evaluated.file),
        "bins": [
            {
                "angles": "{:g} to {:g}".format(*summary.angles_deg),
                "mixtures": summary.utterances,
                "estimates": [_estimate(summary.figures.get(key), form, factor) for key, form, factor in figures],
            }
            for summary in evaluated.summaries
        ],
    }


def _estimate(estimate: Estimate | None, text: str, factor: float) -> dict[str, Any] | None:
    if estimate is None:
        return None
    ends = [None if end is None else end * factor for end in (estimate.low, estimate.high)]
    return {"value": estimate.value * factor, "low": ends[0], "high": ends[1], "text": interval_text(estimate, text, factor)}


def _rounded(value: float) -> float | None:
    """Round to a few significant digits; None for NaN."""
    if not math.isfinite(value):
        return None
    return float(np.format_float_positional(value, _FIGURES, unique=False, fractional=False)) if value else 0.0
