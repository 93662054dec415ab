"""The tables of hw_models/README.md that say how exact the models are, made from the results of `hardware_validation`."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

START, END = "<!-- made by experiments/hardware_validation -->\n", "<!-- end -->\n"

FITTED, HELD_OUT = "fitted_", "held_out_"
"""How a metric's name begins if the model was made with a look at these cases, or without one.

Of a group that has metrics that begin with `held_out_`, the others count as fitted.
"""

Row = Mapping[str, Any]
Results = Mapping[str, Mapping[str, Any]]


def tables(results: Results) -> str:
    """Return what was compared and under which setting, then the errors: first of what was held out, then of what was fitted."""
    lines = ["| results | setting |", "|---|---|"]
    lines += [f"| `{name}` ({_versions(entry)}) | {entry['setting']} |" for name, entry in results.items()]
    for fitted, title in (
        (False, "Held out: no number of the model was fitted to these."),
        (True, "Fitted to these, or made by them:"),
    ):
        heading = "results | targets | what | cases | equal | error: mean, worst | rank correlation"
        lines += ["", title, "", f"| {heading} |", "|---" * 7 + "|"]
        for name, entry in results.items():
            lines += [f"| `{name}` | {line} |" for line in _lines(_by_target_and_metric(entry["rows"], fitted=fitted))]
    return "\n".join(lines) + "\n"


def with_tables(page: str, results: Results) -> str:
    """Return the page with its tables replaced.

    Raises:
        ValueError: the page has no place for them.
    """
    before, middle, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not (middle and end):
        raise ValueError(f"the page has no lines {START.strip()!r} and {END.strip()!r}; wanted both, in this order")
    return f"{before}{START}\n{tables(results)}\n{END}{after}"


def _versions(entry: Mapping[str, Any]) -> str:
    named = {tool: number for tool, number in entry["versions"].items() if tool not in {"hwsearch", "numpy", "python", "pandas"}}
    # A commit's name is long, and its first digits suffice.
    return (
        ", ".join(f"{tool} {number[:7] if len(number) == 40 else number}" for tool, number in named.items())
        or "published figures"
    )


def _by_target_and_metric(rows: Sequence[Row], *, fitted: bool) -> dict[tuple[str, str], list[Row]]:
    """Return the rows that are fitted, or those that are not, by the family of their targets and by metric."""
    some_held_out = any(row["metric"].startswith(HELD_OUT) for row in rows)
    of_metric: dict[str, list[Row]] = {}
    for row in rows:
        name = row["metric"]
        if fitted == (name.startswith(FITTED) or (some_held_out and not name.startswith(HELD_OUT))):
            # A chain's layers are counted together, whatever their place.
            words = re.sub(r"_\d+$", "", name.removeprefix(FITTED).removeprefix(HELD_OUT)).replace("_", " ")
            of_metric.setdefault(words, []).append(row)
    found: dict[tuple[str, str], list[Row]] = {}
    for metric, some in of_metric.items():
        targets = {row["target"] for row in some}
        for row in some:
            family = row["target"].partition("-")[0]
            several = sum(target.startswith(f"{family}-") for target in targets) > 1
            found.setdefault((f"{family}-*" if several else row["target"], metric), []).append(row)
    return found


def _lines(found: Mapping[tuple[str, str], Sequence[Row]]) -> list[str]:
    """Return a line for each error; metrics of which all cases are equal share one."""
    metrics: dict[tuple[str, str], list[str]] = {}
    for (targets, metric), rows in found.items():
        metrics.setdefault((f"`{targets}`", _figures(metric, rows)), []).append(metric)
    return [f"{targets} | {', '.join(names)} | {figures}" for (targets, figures), names in metrics.items()]


def _figures(metric: str, rows: Sequence[Row]) -> str:
    cases, equal = (sum(row[count] for row in rows) for count in ("cases", "equal"))
    if equal == cases:
        return f"{cases} | {equal} | 0 | 1"
    ranks = [row["spearman"] for row in rows if row["spearman"] is not None]
    mean = sum(row["mean_error_percent"] * row["cases"] for row in rows) / cases
    worst = max((row["worst_error_percent"] for row in rows), key=abs)
    error = f"{mean:{_digits(mean)}} %, {worst:+{_digits(worst)}} %{_factor(metric, rows)}"
    return f"{cases} | {equal} | {error} | {f'{min(ranks):.3f}' if ranks else ''}"


def _digits(percent: float) -> str:
    return ".0f" if abs(percent) >= 10 else ".2g"


def _factor(metric: str, rows: Sequence[Row]) -> str:
    """Return the factor that an energy is off by at worst: its error in percent is unlike above and below."""
    if not metric.startswith("energy"):
        return ""
    ratios = [1 + row["worst_error_percent"] / 100 for row in rows]
    return f", a factor of {max(max(ratio, 1 / ratio) for ratio in ratios):.2f}"
