"""The results of what is measured so far: JSON, Markdown and a plot."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from judging import METRICS, PESQ, SI_SNR, STOI
from matplotlib.figure import Figure
from methods import FROM_SHARED, METHODS, NAS, OURS, SEARCH, TABLES, UNIFORM
from numpy.typing import NDArray
from seeds import Cell, Cells, Measured, Values

from hwsearch.metrics.statistics import bootstrap_mean_interval, paired_permutation_test, wer_interval
from hwsearch.metrics.wer import WordErrors

FULL_PRECISION = "full precision"
OURS_FROM_SHARED, UNIFORM_FROM_SHARED = "shared search, from shared", "uniform, from shared"
_SINGLE = {name for name, allocated_by in FROM_SHARED.items() if allocated_by in TABLES}
TESTED = (SI_SNR, PESQ)
"""Metrics that paired tests compare."""


def summary(measured: Measured, cell: Cell) -> dict[str, Any]:
    """Means over seeds and mixtures, with 95 % intervals over the target utterances."""
    seeds = sorted(cell.figures)
    row: dict[str, Any] = {"seeds": len(seeds)}
    if cell.failed:
        row["failed"] = cell.failed
    if not seeds:
        return row
    row |= {"bytes": float(np.mean(cell.bytes)), "mean_bits": float(np.mean(cell.mean_bits))}
    for metric in METRICS:
        values, groups = _finite(measured, cell.mean(metric, seeds))
        estimate = bootstrap_mean_interval(values, 0, groups)
        row[metric] = [estimate.value, estimate.low, estimate.high]
    if cell.words:
        said = [WordErrors(*errors) for mixtures in cell.words.values() for errors in mixtures]
        groups = measured.digits * len(cell.words)
        estimate = wer_interval(said, 0, groups)
        row["wer_digits"] = [estimate.value, estimate.low, estimate.high]
    return row


def _finite(measured: Measured, *columns: Values) -> tuple[Any, ...]:
    """Return the columns where all have a value, and the target utterances there."""
    there: NDArray[np.bool_] = np.all(np.isfinite(np.stack(columns)), axis=0)
    groups = [utterance for utterance, good in zip(measured.utterances, there, strict=True) if good]
    return (*(column[there] for column in columns), groups)


def tests(measured: Measured, sizes: Sequence[float]) -> list[dict[str, Any]]:
    """Compare by paired tests, each with the best rival of a kind on these very mixtures, on the seeds that both have."""
    cells = measured.trained
    peers = tuple(sorted({method for method, _ in cells} - set(METHODS)))
    single = (*TABLES, NAS)
    kinds = (
        (OURS, "best uniform", UNIFORM),
        (OURS, "best single method", single),
        (OURS, SEARCH, (SEARCH,)),
        (OURS, "best peer", peers),
        (OURS, FULL_PRECISION, (FULL_PRECISION,)),
        (OURS_FROM_SHARED, "best uniform, from shared or not", (*UNIFORM, UNIFORM_FROM_SHARED)),
        (
            OURS_FROM_SHARED,
            "best single method, from shared or not",
            (*single, *(name for name in FROM_SHARED if name in _SINGLE)),
        ),
        (OURS_FROM_SHARED, SEARCH, (SEARCH,)),
        (OURS_FROM_SHARED, "best peer", peers),
        (OURS_FROM_SHARED, FULL_PRECISION, (FULL_PRECISION,)),
    )
    untrained = {(FULL_PRECISION, bits): measured.control[0] for bits in sizes if 0 in measured.control}
    found = []
    for metric, (ours, kind, group) in product(TESTED, kinds):
        family = [
            entry for bits in sizes if (entry := _test(measured, {**cells, **untrained}, metric, ours, group, bits)) is not None
        ]
        _correct(family)
        found += [{"metric": metric, "method": ours, "against": kind} | entry for entry in family]
    return found


def _test(measured: Measured, cells: Cells, metric: str, ours: str, group: Sequence[str], bits: float) -> dict[str, Any] | None:
    """Compare a method with the best of a group at a size; None if either is not measured."""
    mine, best = cells.get((ours, bits)), None
    if mine is None:
        return None
    for method in group:
        rival = cells.get((method, bits))
        seeds = [] if rival is None else sorted(set(mine.figures) & set(rival.figures))
        if rival is None or not seeds:
            continue
        first, second, groups = _finite(measured, mine.mean(metric, seeds), rival.mean(metric, seeds))
        if best is None or second.mean() > best[1].mean():
            best = first, second, groups, method, seeds
    if best is None:
        return None
    first, second, groups, method, seeds = best
    test = paired_permutation_test(first, second, 0, groups)
    entry = {"bits": bits, "rival": method, "seeds": len(seeds), "mixtures": test.n}
    return entry | {"difference": test.difference, "p_value": test.p_value}


def _correct(family: Sequence[dict[str, Any]]) -> None:
    """Correct p values for testing at every size (Holm, Scandinavian Journal of Statistics 6, 1979)."""
    largest = 0.0
    tested = [entry for entry in family if entry["p_value"] is not None]
    for rank, entry in enumerate(sorted(tested, key=lambda entry: entry["p_value"])):
        largest = max(largest, min(1.0, (len(tested) - rank) * entry["p_value"]))
        entry["p_holm"] = largest


def plot(rows: Sequence[Mapping[str, Any]], full: Mapping[str, Any] | None) -> Figure:
    """Draw SI-SNR improvement and PESQ against the bytes."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    methods = list(dict.fromkeys((*METHODS, *(row["method"] for row in rows))))
    for axes, metric, label in zip(figure.subplots(1, 2), (SI_SNR, PESQ), ("SI-SNR improvement, dB", "PESQ"), strict=True):
        for index, method in enumerate(methods):
            drawn = sorted((row for row in rows if row["method"] == method and metric in row), key=lambda row: row["bits"])
            sizes, values = [row["bytes"] / 1e6 for row in drawn], [row[metric][0] for row in drawn]
            (line,) = axes.plot(sizes, values, marker="o", markersize=3, color=f"C{index % 10}", label=method)
            ours = method in (OURS, OURS_FROM_SHARED)
            line.set(linestyle="--" if method in UNIFORM else ":" if index >= 10 else "-", linewidth=2.2 if ours else 1)
        if full is not None:
            axes.axhline(full[metric][0], color="0.4", linewidth=0.8, linestyle=":")
        axes.set_xlabel("file, MB")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=6)
    return figure


def markdown(content: Mapping[str, Any], sizes: Sequence[float]) -> str:
    """Write the tables."""
    made_by, control = next(iter(content["made_by"].values())), content["full_precision"]
    lines = [f"After {made_by['steps']} training steps, on {made_by['test_mixtures']} test mixtures; 95 % intervals.", ""]
    lines += ["| full precision, trained for | SI-SNR improvement, dB | PESQ | STOI | seeds |", "|---|---|---|---|---|"]
    for steps, row in control.items():
        cells = " | ".join(f"{row[metric][0]:.3f} [{row[metric][1]:.3f}, {row[metric][2]:.3f}]" for metric in METRICS)
        lines.append(f"| {steps} steps | {cells} | {row['seeds']} |")
    rising = sorted(sizes)
    heads = " | ".join(f"{bits:g} bits" for bits in rising)
    by_cell = {(row["method"], row["bits"]): row for row in content["rows"]}
    methods = list(dict.fromkeys((*METHODS, *(row["method"] for row in content["rows"]))))
    named = {SI_SNR: "SI-SNR improvement, dB (file in kB; seeds)", PESQ: "PESQ", STOI: "STOI", "wer_digits": "WER on digits, %"}
    for metric, name in named.items():
        if not any(metric in row for row in content["rows"]):
            continue
        lines += ["", f"**{name}**", "", f"| method | {heads} |", "|---" * (len(rising) + 1) + "|"]
        lines += [f"| {one} | {' | '.join(_cell(by_cell.get((one, bits)), metric) for bits in rising)} |" for one in methods]
    untrained = {(row["method"], row["bits"]): row for row in content["untrained"]}
    if untrained:
        lines += ["", "**With no training of their own: SI-SNR improvement, dB (file in kB; seeds)**", ""]
        lines += [f"| allocation, weights | {heads} |", "|---" * (len(rising) + 1) + "|"]
        for one in dict.fromkeys(method for method, _ in untrained):
            lines.append(f"| {one} | {' | '.join(_cell(untrained.get((one, bits)), SI_SNR) for bits in rising)} |")
    lines += ["", "**Differences in SI-SNR improvement, dB; p after Holm's correction over the sizes**", ""]
    lines += [f"| compared | {heads} |", "|---" * (len(rising) + 1) + "|"]
    found = {(test["method"], test["against"], test["bits"]): test for test in content["tests"] if test["metric"] == SI_SNR}
    for method, against in dict.fromkeys((method, against) for method, against, _ in found):
        cells = " | ".join(_verdict(found.get((method, against, bits))) for bits in rising)
        lines.append(f"| {method}, less {against} | {cells} |")
    return "\n".join(lines) + "\n"


def _cell(row: Mapping[str, Any] | None, metric: str) -> str:
    if row is None or metric not in row:
        return "diverged" if row is not None and row.get("failed") else ""
    value, low, high = row[metric]
    match metric:
        case "wer_digits":
            return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
        case "stoi":
            return f"{value:.3f} [{low:.3f}, {high:.3f}]"
        case "pesq":
            return f"{value:.2f} [{low:.2f}, {high:.2f}]"
    return f"{value:.2f} [{low:.2f}, {high:.2f}] ({row['bytes'] / 1e3:.0f}; {row['seeds']})"


def _verdict(test: Mapping[str, Any] | None) -> str:
    if test is None:
        return ""
    chance = f"p = {test['p_holm']:.2g}" if "p_holm" in test else "not tested"
    return f"{test['difference']:+.3f} to {test['rival']}, {chance} ({test['seeds']} seeds)"


def contents(measured: Measured, sizes: Sequence[float]) -> dict[str, Any]:
    """Summarise all that is measured."""
    rows, untrained = (
        [{"method": method, "bits": bits} | summary(measured, cell) for (method, bits), cell in found.items()]
        for found in (measured.trained, measured.untrained)
    )
    return {
        "full_precision": {str(steps): summary(measured, cell) for steps, cell in measured.control.items()},
        "rows": rows,
        "untrained": untrained,
        "tests": tests(measured, sizes),
    }
