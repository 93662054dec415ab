"""The results of what is measured so far: JSON, Markdown and a plot."""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from bench import BITS, BOTH, MODES, SIZE_ALONE, Bench
from finishing import FIGURES, figures
from matplotlib.figure import Figure
from numpy.typing import NDArray
from searching import float_bytes, searches, winners

from hwsearch.errors import UserError
from hwsearch.files.writing import atomic_write_bytes
from hwsearch.metrics.statistics import mean_interval, paired_permutation_test
from hwsearch.search.objectives import PACKED_SIZE
from hwsearch.workflow.checks import provenance

QUALITY = "si_snr_improvement_db"
SAME_SOUND_DB = 0.3
"""Loss against full precision on the test mixtures within which candidates count as of the same sound."""

Row = dict[str, Any]
Values = NDArray[np.float64]


def rows(bench: Bench, seeds: Sequence[int]) -> Iterator[Row]:
    """Yield a row for each winner that is finished."""
    for seed in seeds:
        for mode, chip in searches(bench):
            if not bench.folder("searches", f"{mode}-{chip}-{seed}", "done.json").is_file():
                continue
            for winner in winners(bench, mode, chip, seed):
                found = figures(bench, mode, winner.configuration, seed)
                if found is not None:
                    (costs,) = bench.costs[mode].charge([winner.configuration])
                    names = {"seed": seed, "mode": mode, "chip": chip, "level": winner.level, "validation_db": winner.quality}
                    widths, kept = winner.configuration.allocation.to_json(), winner.configuration.kept
                    yield names | {"costs": costs, "structure": kept, "allocation": widths, "figures": found}


def write_report(bench: Bench, seeds: Sequence[int], results: Path) -> None:
    """Write JSON, Markdown and a plot of what is measured, and print the tables.

    Raises:
        UserError: nothing is measured yet.
    """
    trained = all(bench.workspace(mode).shared_path.is_file() for mode in (BITS, BOTH))
    found = list(rows(bench, seeds)) if trained else []
    full = figures(bench, BOTH, None, 0) if trained else None
    if not found or full is None:
        raise UserError("nothing is measured; wanted `python experiments/hardware_aware run` first")
    content = {"made_by": _made_by(bench), "full_precision": full, "rows": found}
    results.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, separators=(",", ":"))
    path = results / f"{bench.loaded.name.replace('-', '_')}.json"
    atomic_write_bytes(path, (text + "\n").encode())
    said = markdown(found, _values(full), bench.chips, float_bytes(bench))
    atomic_write_bytes(path.with_suffix(".md"), said.encode())
    plot(found, _values(full), bench.chips).savefig(path.with_suffix(".png"), dpi=110)
    print(said)


def markdown(found: Sequence[Row], full: Values, chips: Sequence[str], float32_bytes: float) -> str:
    """Write the tables."""
    estimate = mean_interval(full)
    head = f"Full precision: {estimate.value:.2f} dB [{estimate.low:.2f}, {estimate.high:.2f}], n = {len(full)}.\n\n"
    chips = [chip for chip in chips if _levels(found, chip)]
    parts = [_of_chip(found, full, chip) for chip in chips]
    return head + "\n".join([*parts, _same_sound(found, full, chips), _swapped(found, full, chips), _sizes(found, float32_bytes)])


def _cell(found: Sequence[Row], mode: str, chip: str, level: float) -> list[Row]:
    return [row for row in found if (row["mode"], row["chip"], row["level"]) == (mode, chip, level)]


def _levels(found: Sequence[Row], chip: str) -> list[float]:
    return sorted({row["level"] for row in found if row["chip"] == chip})


def _values(figures_found: Mapping[str, Sequence[float | None]], name: str = QUALITY) -> Values:
    return np.array([np.nan if value is None else value for value in figures_found[name]], np.float64)


def _mean(cell: Sequence[Row], name: str = QUALITY) -> Values:
    """Return a metric of every mixture, mean over seeds."""
    mean: Values = np.mean([_values(row["figures"], name) for row in cell], axis=0)
    return mean


def _cost(cell: Sequence[Row], column: str) -> float:
    return float(np.mean([row["costs"][column] for row in cell]))


def _of_chip(found: Sequence[Row], full: Values, chip: str) -> str:
    lines = [
        f"**{chip}: the fastest candidate at each loss on validation, finished**\n",
        "| searched | allowed | SI-SNR improvement | less full precision | PESQ | STOI | latency ms | energy uJ | kB | seeds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for level in _levels(found, chip):
        for mode in MODES:
            if cell := _cell(found, mode, chip, level):
                values = _mean(cell)
                low = mean_interval(values)
                test = paired_permutation_test(values, full, 0)
                other = [float(np.nanmean(_mean(cell, name))) for name in FIGURES if name != QUALITY]
                energy = f"energy_uj[{chip}]"
                charged = f"{_cost(cell, energy):.0f}" if energy in cell[0]["costs"] else ""
                lines.append(
                    f"| {mode} | {level:g} dB | {low.value:.2f} [{low.low:.2f}, {low.high:.2f}] | {test.difference:+.2f}, "
                    f"p = {test.p_value:.2g} | {other[0]:.2f} | {other[1]:.3f} | {_cost(cell, f'latency_ms[{chip}]'):.4g} | "
                    f"{charged} | {_cost(cell, PACKED_SIZE) / 1000:.0f} | {len(cell)} |"
                )
    return "\n".join(lines) + "\n"


def _best(found: Sequence[Row], full: Values, chip: str, mode: str) -> list[Row] | None:
    """Return the fastest finished candidates of the same sound as full precision; None if there are none."""
    cells = [_cell(found, mode, chip, level) for level in _levels(found, chip)]
    near = [cell for cell in cells if cell and float((full - _mean(cell)).mean()) <= SAME_SOUND_DB]
    return min(near, key=lambda cell: _cost(cell, f"latency_ms[{chip}]")) if near else None


def _same_sound(found: Sequence[Row], full: Values, chips: Sequence[str]) -> str:
    lines = [
        f"**Same sound (within {SAME_SOUND_DB} dB of full precision on test): how much faster and smaller**\n",
        "| chip | searched | loss | latency ms | times faster than bits alone | kB | times smaller | SI-SNR less bits alone |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for chip in chips:
        bits = _best(found, full, chip, BITS)
        for mode in MODES:
            cell = _best(found, full, chip, mode)
            if cell is None:
                ran = any(row["mode"] == mode for row in found if row["chip"] == chip)
                lines += [f"| {chip} | {mode} | none within | | | | | |"] if ran else []
                continue
            latency, size = _cost(cell, f"latency_ms[{chip}]"), _cost(cell, PACKED_SIZE)
            against = ["", "", ""]
            if bits is not None and mode != BITS:
                test = paired_permutation_test(_mean(cell), _mean(bits), 0)
                faster, smaller = _cost(bits, f"latency_ms[{chip}]") / latency, _cost(bits, PACKED_SIZE) / size
                against = [f"{faster:.2f}", f"{smaller:.2f}", f"{test.difference:+.2f}, p = {test.p_value:.2g}"]
            loss = float((full - _mean(cell)).mean())
            cells = [chip, mode, f"{loss:.2f} dB", f"{latency:.4g}", against[0], f"{size / 1000:.0f}", *against[1:]]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _swapped(found: Sequence[Row], full: Values, chips: Sequence[str]) -> str:
    lines = [
        "**Winners on other chips: latency of one chip's fastest candidate of the same sound, over that of the chip's own**\n",
        "| winner of | " + " | ".join(f"on {chip}" for chip in chips) + " |",
        "|---" * (len(chips) + 1) + "|",
    ]
    own = {chip: _best(found, full, chip, BOTH) for chip in chips}
    for chip, cell in own.items():
        if cell is None:
            continue
        ratios = []
        for other in chips:
            theirs = own[other]
            column = f"latency_ms[{other}]"
            ratios.append("" if theirs is None else f"{_cost(cell, column) / _cost(theirs, column):.3f}")
        lines.append(f"| {chip} | " + " | ".join(ratios) + " |")
    return "\n".join(lines) + "\n"


def _sizes(found: Sequence[Row], float32_bytes: float) -> str:
    lines = [
        "**At equal bytes: both together less bits alone**\n",
        "| times smaller than float32 | bits alone | both | difference, p after Holm's correction |",
        "|---|---|---|---|",
    ]
    if not _levels(found, SIZE_ALONE):
        return ""
    compared = []
    for ratio in _levels(found, SIZE_ALONE):
        bits, both = (_cell(found, mode, SIZE_ALONE, ratio) for mode in (BITS, BOTH))
        if bits and both:
            seeds = {row["seed"] for row in bits} & {row["seed"] for row in both}
            pair = [_mean([row for row in cell if row["seed"] in seeds]) for cell in (bits, both)]
            compared.append((ratio, bits, both, pair, paired_permutation_test(pair[1], pair[0], 0)))
    corrected = _holm([test.p_value or 1.0 for *_, test in compared])
    for (ratio, bits, both, pair, test), p_value in zip(compared, corrected, strict=True):
        sizes = [_cost(cell, PACKED_SIZE) / 1000 for cell in (bits, both)]
        lines.append(
            f"| {ratio:g} ({float32_bytes / ratio / 1000:.0f} kB) | {pair[0].mean():.2f} dB, {sizes[0]:.0f} kB | "
            f"{pair[1].mean():.2f} dB, {sizes[1]:.0f} kB | {test.difference:+.2f}, p = {p_value:.2g} |"
        )
    return "\n".join(lines) + "\n"


def _holm(p_values: Sequence[float]) -> list[float]:
    """Correct p values (Holm, Scandinavian Journal of Statistics 6, 1979)."""
    order, largest = np.argsort(p_values), 0.0
    found = [0.0] * len(p_values)
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        found[place] = largest
    return found


def plot(found: Sequence[Row], full: Values, chips: Sequence[str]) -> Figure:
    """Draw quality on test against latency, a panel for each chip."""
    figure = Figure(figsize=(4.2 * len(chips), 3.6), layout="constrained")
    panels = figure.subplots(1, len(chips), sharey=True, squeeze=False)[0]
    for axes, chip in zip(panels, chips, strict=True):
        for mode, marker in zip(MODES, "so^", strict=True):
            cells = [cell for level in _levels(found, chip) if (cell := _cell(found, mode, chip, level))]
            points = [(_cost(cell, f"latency_ms[{chip}]"), float(_mean(cell).mean())) for cell in cells]
            if points:
                axes.plot(*zip(*sorted(points), strict=True), marker=marker, label=mode)
        axes.axhline(float(full.mean()), color="0.4", linestyle="--", linewidth=1)
        axes.set_title(chip, fontsize=10)
        axes.set_xlabel("latency (ms)")
        axes.grid(visible=True, color="0.9")
    panels[0].set_ylabel("SI-SNR improvement (dB)")
    drawn = next((axes for axes in panels if axes.get_lines()[1:]), None)
    if drawn is not None:
        drawn.legend(frameon=False)
    return figure


def _made_by(bench: Bench) -> dict[str, Any]:
    experiment, settings = bench.loaded, bench.settings
    return {
        "command": "python experiments/hardware_aware run",
        "experiment": experiment.name,
        "steps": settings.steps,
        "test_mixtures": len(bench.test),
        "evaluations_of_each_search": settings.evaluations,
        "shared": experiment.shared.model_dump(mode="json"),
        "qat": experiment.qat.model_dump(mode="json"),
        "structure": experiment.search.structure,
        "provenance": {mode: dict(provenance(bench.workspace(mode))) for mode in (BITS, BOTH)},
        "versions": {name: version(name) for name in ("hwsearch", "torch", "numpy", "pesq", "pystoi")},
        "date": datetime.now(UTC).date().isoformat(),
    }
