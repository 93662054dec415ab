"""Validates the cost models against other simulators, published figures and this machine; each tool in an environment of its own.

    python experiments/hardware_validation                  # everything: half an hour, most of it installations
    python experiments/hardware_validation vela scalesim    # some of it; the other rows of the results stay

Results go to experiments/results/hardware_validation.json and .md: for every target and metric the cases, how many are equal,
mean and worst relative error, and Spearman's rank correlation over the cases. They also go to the tables of hw_models/README.md.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from hwsearch.errors import UserError
from hwsearch.files.reading import read_json
from hwsearch.files.writing import atomic_write_bytes, atomic_write_json

# Without this folder, whose `qonnx` would hide the package.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]
sys.path.append(str(Path(__file__).resolve().parents[1]))

from tool_environment import tool_python  # noqa: E402 (found there)
from validation_table import with_tables  # noqa: E402 (likewise)

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results"
PAGE = HERE.parents[1] / "hw_models" / "README.md"
EQUAL = 1e-9
"""Relative difference up to which two numbers are equal: sums of floating-point terms in another order."""

Rows = list[dict[str, float]]


def load(name: str) -> ModuleType:
    """A validation by its name; by path, for some are called like the tool they ask."""
    path = HERE / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"validation_{name}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path}: cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def ask_tool(name: str, cases: Sequence[Mapping[str, Any]], python: Path, folder: Path) -> tuple[Rows, dict[str, str]]:
    """What the tool says of every case, and its versions."""
    folder.mkdir(parents=True, exist_ok=True)
    questions, answers = folder / "cases.json", folder / "results.json"
    questions.write_text(json.dumps(cases), encoding="utf-8")
    answers.unlink(missing_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    subprocess.run(  # noqa: S603 (nothing from outside)
        [python, HERE / "tools" / f"{name}.py", questions, answers], check=True, env=environment, cwd=folder
    )
    content = read_json(answers, "a tool's answers")
    return content["results"], content["versions"]


def compare(cases: Sequence[Mapping[str, Any]], ours: Rows, theirs: Rows) -> list[dict[str, Any]]:
    """A row for each target and metric, in the order in which they occur."""
    if not len(cases) == len(ours) == len(theirs):
        raise UserError(f"{len(cases)} cases, {len(ours)} predictions, {len(theirs)} answers; wanted as many of each")
    pairs: dict[tuple[str, str], list[tuple[str, float, float]]] = {}
    for case, mine, other in zip(cases, ours, theirs, strict=True):
        for metric in other:
            if metric in mine:
                pairs.setdefault((case["target"], metric), []).append((case["name"], mine[metric], other[metric]))
    if not pairs:
        raise UserError("no metric is in both the predictions and the answers; wanted at least one")
    return [_row(target, metric, found) for (target, metric), found in pairs.items()]


def _row(target: str, metric: str, found: Sequence[tuple[str, float, float]]) -> dict[str, Any]:
    mine, other = (np.array([pair[side] for pair in found], np.float64) for side in (1, 2))
    errors = np.where(mine == other, 0.0, (mine - other) / np.where(other == 0, 1e-300, np.abs(other)))
    worst = int(np.abs(errors).argmax())
    several = len(found) > 2 and np.ptp(mine) > 0 and np.ptp(other) > 0
    return {
        "target": target,
        "metric": metric,
        "cases": len(found),
        "equal": int((np.abs(errors) <= EQUAL).sum()),
        "mean_error_percent": 100 * float(np.abs(errors).mean()),
        "median_error_percent": 100 * float(np.median(np.abs(errors))),
        "worst_error_percent": 100 * float(errors[worst]),
        "worst_case": found[worst][0],
        "spearman": float(spearmanr(mine, other).statistic) if several else None,
    }


def validate(name: str, environments: Path) -> dict[str, Any]:
    """One validation, as an entry of the results.

    Raises:
        UserError: an environment variable that it wants is not set.
    """
    module = load(name)
    variable = getattr(module, "ENVIRONMENT", None)
    if variable is not None and not os.environ.get(variable):
        raise UserError(f"{variable} is not set; wanted the folder of the tool's sources, which no package index has")
    cases = module.cases()
    own = {"hwsearch": version("hwsearch")}
    if hasattr(module, "measured"):
        theirs, versions = module.measured(), module.versions() if hasattr(module, "versions") else {}
    else:
        installed = getattr(module, "INSTALLED_AS", name)
        python = tool_python(installed, module.REQUIREMENTS, environments, getattr(module, "ALONE", ()))
        theirs, versions = ask_tool(name, cases, python, environments / f"{name}-work")
    rows = compare(cases, module.predictions(cases), theirs)
    what = (module.__doc__ or "").splitlines()[0]
    return {"what": what, "setting": module.SETTING, "versions": own | versions, "rows": rows}


def markdown(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The results as one table for each tool."""
    lines: list[str] = []
    for name, entry in results.items():
        versions = ", ".join(f"{package} {number}" for package, number in entry["versions"].items())
        lines += [f"### {name}", "", f"{entry['what']} ({versions})", "", entry["setting"], ""]
        headings = "target | metric | cases | equal | mean error, % | worst error, % | in | rank correlation"
        lines += [f"| {headings} |", "|---" * 8 + "|"]
        for row in entry["rows"]:
            rank = "" if row["spearman"] is None else f"{row['spearman']:.3f}"
            worst = "" if row["equal"] == row["cases"] else f"{row['worst_error_percent']:+.2f} | {row['worst_case']}"
            figures = f"{row['mean_error_percent']:.2f} | {worst or ' | '} | {rank}"
            lines.append(f"| {row['target']} | {row['metric']} | {row['cases']} | {row['equal']} | {figures} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Run what is asked for, and write after each tool."""
    names = sorted(path.stem for path in HERE.glob("*.py") if not path.stem.startswith("_"))
    parser = argparse.ArgumentParser(
        prog="hardware_validation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tools", nargs="*", metavar="TOOL", help=f"{', '.join(names)}; all when none is named")
    parser.add_argument("--environments", type=Path, default=Path("runs") / "validation")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if unknown := [name for name in options.tools if name not in names]:
        parser.error(f"no validation '{unknown[0]}'; wanted one of {', '.join(names)}")
    path = options.results / "hardware_validation.json"
    results: dict[str, Any] = read_json(path, "results of validations") if path.is_file() else {}
    failed = False
    for name in options.tools or names:
        try:
            results[name] = validate(name, options.environments.resolve())
        except (UserError, subprocess.CalledProcessError) as error:
            print(f"{name}: left out, {error}", file=sys.stderr)
            failed = True
            continue
        results = dict(sorted(results.items()))
        atomic_write_json(path, results)
        atomic_write_bytes(path.with_suffix(".md"), markdown(results).encode())
        print(markdown({name: results[name]}), flush=True)
    if options.results == RESULTS:
        atomic_write_bytes(PAGE, with_tables(PAGE.read_text("utf-8"), results).encode())
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
