"""A Markdown table from the figures of `hwsearch evaluate --output`: per angle bin, and for a subset of mixtures.

python experiments/report_evaluation.py FIGURES.json --min-angle 45 --max-t60 0.3 --output TABLE.md
"""

import argparse
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from hwsearch.files.writing import atomic_write_text
from hwsearch.metrics.evaluation import UtteranceScores, figures_of, read_figures
from hwsearch.metrics.statistics import Estimate

BINS = (0.0, 15.0, 45.0, 90.0, 180.0)
COLUMNS = (
    ("SI-SNR in", "mixture_si_snr_db", 1.0, 2),
    ("SI-SNR", "si_snr_db", 1.0, 2),
    ("improvement", "si_snr_improvement_db", 1.0, 2),
    ("PESQ in", "mixture_pesq", 1.0, 2),
    ("PESQ", "pesq", 1.0, 2),
    ("STOI in", "mixture_stoi", 1.0, 3),
    ("STOI", "stoi", 1.0, 3),
    ("WER in %", "mixture_wer", 100.0, 1),
    ("WER %", "wer", 100.0, 1),
    ("WER clean %", "target_wer", 100.0, 1),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figures", type=Path)
    parser.add_argument("--min-angle", type=float, default=45.0)
    parser.add_argument("--max-t60", type=float, default=0.3, help="by the T60 measured on the target's response")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    results = read_figures(options.figures)
    lines = [
        "| angle | n | " + " | ".join(heading for heading, *_ in COLUMNS) + " |",
        "|---" * (2 + len(COLUMNS)) + "|",
    ]
    for low, high in pairwise(BINS):
        lines.append(
            row(f"{low:g}-{high:g}", [r for r in results if low <= r.angle_deg < high or r.angle_deg == high == BINS[-1]])
        )
    lines.append(row("all", results))
    moderate = [
        r
        for r in results
        if r.angle_deg >= options.min_angle and r.t60_measured_s is not None and r.t60_measured_s <= options.max_t60
    ]
    lines.append(row(f"at least {options.min_angle:g}, measured T60 at most {options.max_t60:g} s", moderate))
    made_by = json.loads(options.figures.read_text(encoding="utf-8"))["made_by"]
    lines.append("")
    lines.append(f"{made_by['system']}; experiment {made_by['experiment']}; base {made_by['base_sha256'][:12]};")
    lines.append(f"recogniser {made_by['recogniser']}. 95 % intervals: bootstrap over target utterances.")
    text = "\n".join(lines) + "\n"
    print(text)
    if options.output:
        atomic_write_text(options.output, text)


def row(name: str, results: Sequence[UtteranceScores]) -> str:
    """One line of the table."""
    figures = figures_of(results, seed=0) if results else {}
    cells = [cell(figures[key], factor, digits) if key in figures else "" for _, key, factor, digits in COLUMNS]
    return "| " + " | ".join([name, str(len(results)), *cells]) + " |"


def cell(estimate: Estimate, factor: float, digits: int) -> str:
    """A value with its interval."""
    value = f"{factor * estimate.value:.{digits}f}"
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} [{factor * estimate.low:.{digits}f}, {factor * estimate.high:.{digits}f}]"


if __name__ == "__main__":
    main()
