"""A Markdown table from the figures of `hwsearch evaluate --output`: per angle bin, and for a subset of mixtures.

python experiments/report_evaluation.py FIGURES.json --min-angle 45 --max-t60 0.3 --output TABLE.md
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from hwsearch.files import atomic_write_text
from hwsearch.metrics.statistics import Estimate, mean_interval, wer_interval
from hwsearch.metrics.wer import WordErrors

BINS = (0.0, 15.0, 45.0, 90.0, 180.0)
MEANS = (
    ("SI-SNR in", "mixture_si_snr_db", 2),
    ("SI-SNR", "si_snr_db", 2),
    ("improvement", "si_snr_improvement_db", 2),
    ("PESQ in", "mixture_pesq", 2),
    ("PESQ", "pesq", 2),
    ("STOI in", "mixture_stoi", 3),
    ("STOI", "stoi", 3),
)
WORDS = (("WER in %", "mixture"), ("WER %", "estimate"), ("WER clean %", "target"))

Utterance = Mapping[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figures", type=Path)
    parser.add_argument("--min-angle", type=float, default=45.0)
    parser.add_argument("--max-t60", type=float, default=0.3, help="by the T60 measured on the target's response")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    content = json.loads(options.figures.read_text(encoding="utf-8"))
    utterances: list[Utterance] = content["utterances"]
    lines = [
        "| angle | n | " + " | ".join([heading for heading, *_ in MEANS] + [heading for heading, _ in WORDS]) + " |",
        "|---" * (2 + len(MEANS) + len(WORDS)) + "|",
    ]
    for low, high in pairwise(BINS):
        chosen = [u for u in utterances if low <= u["angle_deg"] < high or u["angle_deg"] == high == BINS[-1]]
        lines.append(row(f"{low:g}-{high:g}", chosen))
    lines.append(row("all", utterances))
    moderate = [u for u in utterances if u["angle_deg"] >= options.min_angle and u["t60_measured_s"] <= options.max_t60]
    lines.append(row(f"at least {options.min_angle:g}, measured T60 at most {options.max_t60:g} s", moderate))
    made_by = content["made_by"]
    lines.append("")
    lines.append(f"{made_by['system']}; experiment {made_by['experiment']}; base {made_by['base_sha256'][:12]};")
    lines.append(f"recogniser {made_by['recogniser']}. Means with 95 % t intervals; WER with bootstrap intervals.")
    text = "\n".join(lines) + "\n"
    print(text)
    if options.output:
        atomic_write_text(options.output, text)


def row(name: str, utterances: Sequence[Utterance]) -> str:
    """One line of the table."""
    cells = [name, str(len(utterances))]
    for _, key, digits in MEANS:
        values = [u["scores"][key] for u in utterances if key in u["scores"]]
        cells.append(cell(mean_interval(values), 1.0, digits) if values else "")
    for _, key in WORDS:
        words = [WordErrors(**u["words"][key]) for u in utterances if key in u["words"]]
        cells.append(cell(wer_interval(words, seed=0), 100.0, 1) if sum(w.words for w in words) else "")
    return "| " + " | ".join(cells) + " |"


def cell(estimate: Estimate, factor: float, digits: int) -> str:
    """A value with its interval."""
    value = f"{factor * estimate.value:.{digits}f}"
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} [{factor * estimate.low:.{digits}f}, {factor * estimate.high:.{digits}f}]"


if __name__ == "__main__":
    main()
