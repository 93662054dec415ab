"""The table as Markdown and as a plot."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from figures import ALL, is_like_full_precision
from matplotlib.figure import Figure
from systems import Kind

Rows = Sequence[Mapping[str, Any]]

_LIKE = " ="
"""Mark of a figure that is not significantly different from full precision."""

_METRICS = {
    "SI-SNR, dB": ("si_snr_db", 2, 1.0),
    "SI-SNR improvement, dB": ("si_snr_improvement_db", 2, 1.0),
    "PESQ": ("pesq", 2, 1.0),
    "STOI": ("stoi", 3, 1.0),
    "WER on digit strings, %": ("wer", 1, 100.0),
}
"""Metric, decimals and factor by heading."""


def markdown(rows: Rows, made_by: Mapping[str, Any]) -> str:
    """The table: all angles first, then a table by angle for each metric."""
    conditions = (
        f"Test mixtures: the first {made_by['mixtures']} of each set. Brackets hold 95 % intervals by bootstrap over the target "
        "utterances. A figure with `=` is not significantly different from full precision (paired permutation test over "
        "utterances, p of 0.05 or more, not corrected for the number of tests). Ours: means of all trainings; losses of widths "
        f"measured on {made_by['losses_measured_on']}."
    )
    accounts = (
        "The reference's systems quantize weights only, leave the first and the last layer in full precision, and count no "
        "scales. Each layer has its own scale here; in the paper, the uniform systems have one for all layers. Ours quantize "
        "every tensor (activations 8 bits, trunk 16 bits), and the size is that of the packed file. A file may be smaller than "
        "its name says: 8 bits are the widest weights. `Published` is what arXiv 2111.14479 reports of its own network: SI-SNR "
        "lost in dB, and how many times smaller."
    )
    lines = [conditions, "", accounts, "", *_main_table(rows)]
    for heading, (metric, decimals, factor) in _METRICS.items():
        lines += ["", f"**{heading}, by angle**", "", *_angle_table(rows, metric, decimals, factor)]
    return "\n".join([*lines, ""])


def _main_table(rows: Rows) -> list[str]:
    headings = ["system", "mean bits", "kB", "times smaller", "trainings x steps", "SI-SNR lost, dB", *_METRICS, "published"]
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for row in rows:
        system, found = row["system"], row["angles"][ALL]
        published = "" if system["published"] is None else "{:.2f} dB, {:.2f}".format(*system["published"])
        cells = [
            system["name"],
            f"{system['average_bits']:.2f}",
            f"{system['file_bytes'] / 1e3:.0f}",
            f"{row['ratio']:.2f}",
            f"{row['trainings']} x {system['steps']}" if system["steps"] else "",
            _shown(found["si_snr_db"]["lost"], 2, 1.0) + _mark(row, found["si_snr_db"]),
            *(_cell(row, found, *shape) for shape in _METRICS.values()),
            published,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _angle_table(rows: Rows, metric: str, decimals: int, factor: float) -> list[str]:
    angles = list(rows[0]["angles"])
    counts = [rows[0]["angles"][angle]["mixtures"]["digits" if metric == "wer" else "speech"] for angle in angles]
    headings = [f"{angle} (n = {count})" for angle, count in zip(angles, counts, strict=True)]
    lines = [f"| system | {' | '.join(headings)} |", "|---" * (1 + len(angles)) + "|"]
    for row in rows:
        cells = [_cell(row, row["angles"][angle], metric, decimals, factor) for angle in angles]
        lines.append(f"| {row['system']['name']} | {' | '.join(cells)} |")
    return lines


def _cell(row: Mapping[str, Any], found: Mapping[str, Any], metric: str, decimals: int, factor: float) -> str:
    return _shown(found[metric], decimals, factor) + _mark(row, found[metric]) if metric in found else ""


def _shown(figure: Mapping[str, Any], decimals: int, factor: float) -> str:
    value, low, high = (figure[part] for part in ("value", "low", "high"))
    interval = "" if low is None else f" [{factor * low:.{decimals}f}, {factor * high:.{decimals}f}]"
    return f"{factor * value:.{decimals}f}{interval}"


def _mark(row: Mapping[str, Any], figure: Mapping[str, Any]) -> str:
    full = row["system"]["kind"] == Kind.FULL.value
    return _LIKE if not full and is_like_full_precision(figure) else ""


def plot(rows: Rows, path: Path) -> None:
    """SI-SNR lost against how many times smaller the file is."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    groups: dict[str, Callable[[Mapping[str, Any]], bool]] = {
        "reference, uniform": lambda row: row["system"]["name"].startswith("uniform"),
        "reference, mixed": lambda row: row["system"]["name"].startswith("mixed"),
        "hwsearch, every tensor quantized": lambda row: row["system"]["kind"] == Kind.OURS.value,
    }
    for colour, (label, belongs) in zip(("0.55", "C1", "C0"), groups.items(), strict=True):
        drawn = sorted(filter(belongs, rows), key=lambda row: row["ratio"])
        lost = [row["angles"][ALL]["si_snr_db"]["lost"] for row in drawn]
        values = [found["value"] for found in lost]
        ends = [[abs(found["value"] - (found[end] or found["value"])) for found in lost] for end in ("low", "high")]
        line = "-" if label.startswith("hwsearch") else "none"
        axes.errorbar(
            [row["ratio"] for row in drawn], values, ends, fmt="o", linestyle=line, color=colour, label=label, markersize=4
        )
    published = [(row["system"]["published"]) for row in rows if row["system"]["published"] is not None]
    axes.plot(
        [ratio for _, ratio in published],
        [lost for lost, _ in published],
        "x",
        color="0.75",
        label="as published (its own network)",
    )
    axes.axhline(0.0, color="0.4", linewidth=0.8, linestyle=":")
    axes.set_xlabel("times smaller than the float32 file")
    axes.set_ylabel("SI-SNR lost, dB")
    axes.set_ylim(top=6.0)
    axes.invert_yaxis()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
