"""The reference system's Table 1 (arXiv 2111.14479) on the real-speech base: its eleven systems as the paper makes them, beside
ours at the same sizes and at smaller ones.

    python experiments/paper_table                    # everything, and continues where it was interrupted
    python experiments/paper_table report             # the table of what was measured so far

`hwsearch train-shared experiments/paper_table.toml` before it gives our systems the shared network: their widths then come from
losses measured on it, and their training starts from it.
"""

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench import Bench, Row, Settings
from figures import figures
from report import markdown, plot
from systems import Kind, read_systems, write_systems

from hwsearch.errors import UserError
from hwsearch.files.reading import file_digest
from hwsearch.files.writing import atomic_write_bytes, atomic_write_json

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results"

_bench: Bench | None = None


def measure(arguments: tuple[Settings, Row]) -> str:
    """Measure a row in a process of its own, which keeps the bench for the next one."""
    global _bench  # noqa: PLW0603 (once per process, as a pool's initialiser would)
    settings, row = arguments
    _bench = _bench or Bench(settings)
    _bench.measure(row)
    return str(row)


def run(bench: Bench, workers: int) -> None:
    """Measure all rows that are missing."""
    print("preparing data, bases, sensitivities and the differentiable search", flush=True)
    write_systems(bench.systems_path, bench.prepare(workers))
    rows = bench.rows(read_systems(bench.systems_path))
    with ProcessPoolExecutor(workers) as pool:
        for number, name in enumerate(pool.map(measure, [(bench.settings, row) for row in rows]), start=1):
            print(f"{number}/{len(rows)}: {name}", flush=True)


def report(bench: Bench, results: Path, command: str) -> None:
    """Write JSON, Markdown and a plot of what was measured so far.

    Raises:
        UserError: full precision was not measured.
    """
    systems = read_systems(bench.systems_path)
    measured = {row: scores for row in bench.rows(systems) if (scores := bench.scores(row)) is not None}
    full = next((scores for row, scores in measured.items() if row.system.kind is Kind.FULL), None)
    if full is None:
        raise UserError(f"{bench.folder}: full precision is not measured; wanted `python experiments/paper_table run` first")
    whole = next(system.file_bytes for system in systems if system.kind is Kind.FULL)
    bins = bench.workspace.experiment.evaluation.angle_bins_deg
    by_system = {system: [scores for row, scores in measured.items() if row.system == system] for system in systems}
    rows = [figures(system, trainings, full, whole, bins) for system, trainings in by_system.items() if trainings]
    made_by = _made_by(bench, command)
    atomic_write_json(results / "paper_table.json", {"made_by": made_by, "float_bytes": whole, "rows": rows})
    text = markdown(rows, made_by)
    atomic_write_bytes(results / "paper_table.md", text.encode())
    plot(rows, results / "paper_table.png")
    print(text)


def _made_by(bench: Bench, command: str) -> dict[str, Any]:
    experiment = bench.workspace.experiment
    shared = experiment.search.uses_shared
    return {
        "command": command,
        "experiment": experiment.name,
        "seed": experiment.seed,
        "training_seeds": list(range(bench.settings.seeds)),
        "mixtures": bench.settings.mixtures,
        "data": {name: workspace.experiment.data_digest() for name, workspace in bench.sets.items()},
        "steps": bench.steps,
        "qat": experiment.qat.model_dump(mode="json"),
        "quantization": experiment.quantization.model_dump(mode="json"),
        "losses_measured_on": "the shared network" if shared else "the base",
        "shared_network": file_digest(bench.workspace.shared_path) if shared else None,
        "versions": {name: version(name) for name in ("hwsearch", "torch", "numpy", "pesq", "pystoi")},
        "processor": processor(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def processor() -> str:
    """Return the name of the processor."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def main() -> None:
    """Parse, run and report."""
    parser = argparse.ArgumentParser(
        prog="paper_table", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", nargs="?", choices=["run", "report"], default="run", help="run (default) or only report")
    parser.add_argument("--experiment", type=Path, default=HERE.parent / "paper_table.toml")
    parser.add_argument("--digits", type=Path, default=HERE.parent / "real_digits_test.toml")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--mixtures", type=int, default=100, help="test mixtures of each set, the first ones")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each of our systems")
    parser.add_argument("--steps", type=int, help="most training steps of a system; default: qat.finetune_steps")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    for name in ("mixtures", "seeds", "workers", "steps"):
        if (value := getattr(options, name)) is not None and value < 1:
            parser.error(f"--{name} is {value}; wanted 1 or more")
    try:
        bench = Bench(
            Settings(options.experiment, options.digits, options.runs_dir, options.mixtures, options.seeds, options.steps)
        )
        if options.action == "run":
            run(bench, options.workers)
        chosen = {name: getattr(options, name) for name in ("mixtures", "seeds", "steps")}
        said = [f"--{name} {value}" for name, value in chosen.items() if value != parser.get_default(name)]
        report(bench, options.results, " ".join(["python experiments/paper_table", *said]))
    except UserError as error:
        print(f"paper_table: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
