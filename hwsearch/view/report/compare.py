"""The comparison of several runs as an HTML page."""

import html
from pathlib import Path
from typing import Any

from hwsearch.files.writing import atomic_write_text
from hwsearch.search.objectives import QUALITY
from hwsearch.view.compare import level_table, test_table, untested_lines
from hwsearch.view.report.candidates import candidate_data
from hwsearch.view.report.page import assemble, table_html
from hwsearch.view.tables import Column
from hwsearch.workflow.compare import Comparison

SCRIPTS = ("rows.js", "filter.js", "front.js", "figures.js", "front_figure.js", "compare.js")

FIRST_STYLE = 3
"""Style of the first run. The paler ones stand for scores without training."""


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Write the page of a comparison.

    Raises:
        UserError: it cannot be written there.
    """
    atomic_write_text(path, comparison_html(comparison))


def comparison_html(comparison: Comparison) -> str:
    """Render a comparison as one HTML page."""
    names = ", ".join(comparison.names)
    notes = "".join(f'<p class="warning">{html.escape(note)}</p>' for note in (*comparison.notes, *untested_lines(comparison)))
    tests = test_table(comparison)
    parts = {
        "title": html.escape(f"{names}: compared"),
        "about": html.escape(f"Runs {names}, each at its highest fidelity, by {comparison.cost}."),
        "levels": _table("The best candidate of each run at a cost: SI-SNR improvement in dB, ± 95 %", level_table(comparison)),
        "tests": notes + (_table("Second run minus first, in dB of SI-SNR on the same mixtures", tests) if tests else ""),
    }
    return assemble("compare.html", SCRIPTS, comparison_data(comparison), parts)


def comparison_data(comparison: Comparison) -> dict[str, Any]:
    """Convert a comparison to the data that the page's scripts read."""
    series = [{"name": name, "style": FIRST_STYLE + place} for place, name in enumerate(comparison.names)]
    return {
        **candidate_data(comparison.tables, series, configured=False),
        "axes": {"x": comparison.cost, "y": QUALITY},
        "comparison": list(comparison.names),
        "limits": {},
        "chosen": None,
    }


def _table(caption: str, columns: list[Column]) -> str:
    headings = [" ".join(part for part in (column.name, column.note) if part) for column in columns]
    return table_html(caption, headings, list(zip(*(column.cells for column in columns), strict=True)))
