"""Which bit-widths are best: every method within the same bytes, judged on real speech after the same training.

    python experiments/method_comparison run --workers 2           # goes on where it was interrupted
    python experiments/method_comparison correlations --workers 2  # how well cheap fidelities rank allocations
    python experiments/method_comparison report                    # what is there so far

The figures of each seed are kept in a file of their own (`results/method_comparison/seed-0.json`). `run --seeds 1` adds another.

Test mixtures are of speakers, sentences and rooms that neither training nor search heard. Methods choose on validation mixtures.
The bytes at n bits are those of the packed file with all weights at n bits, one scale per channel, and depthwise weights at 8
bits; between two widths they are interpolated. Activations have 8 bits and the trunk 16. Every choice is trained from the rounded
base for the same number of steps, and its last state is judged.

The methods:

- `uniform, one scale`: the reference system's way (arXiv 2111.14479). The weights of all layers share one scale, norms apart, and
  are rounded to the nearest integers. Training adapts the scale of each channel.
- `uniform, per layer`, `uniform, per channel`: one scale for each layer or output channel.
- `uniform, small at 8`: one scale per channel, depthwise weights at 8 bits. Between two widths, uniform allocations have the
  narrower one.
- `curvature`, `kl`, `output noise`: the exact optimum under these sensitivities of the rounded base.
- `recoverability`: the exact optimum under the output noise of the shared network.
- `nas`: of the two largest candidates of the differentiable search that fit, the better one without training.
- `post-training search`, `shared search`: prior-corrected searches on the rounded base and on the shared network. The whole
  validation set chooses among the best candidates at the size, and the optima under the losses that the search has learnt.
- `uniform, from shared`, `output noise, from shared`, ...: the allocations of `uniform, small at 8` and of other methods, trained
  from the shared network instead.
- The peers in `results/peers.json`, if it is there.

Beside them, `uniform, small at 8` and the allocations of both searches are judged with no training of their own: with the weights
of the rounded base, and with those of the shared network.
"""

import argparse
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import correlations
import report
import running
from bench import Bench, Settings, bench_of
from methods import SIZES
from seeds import read_seeds, write_seed

from hwsearch.errors import UserError
from hwsearch.files.writing import atomic_write_bytes, atomic_write_json
from hwsearch.process.interrupts import interrupts_heard, stop_code
from hwsearch.workflow.checks import provenance

HERE = Path(__file__).resolve().parent
CONTROL_STEPS = (0, 100, 300, 1000)


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="method_comparison", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["run", "correlations", "report"])
    parser.add_argument("--experiment", type=Path, default=HERE.parent / "comparison.toml")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("--results", type=Path, default=HERE.parent / "results")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--steps", type=int, help="training steps of each choice; default: qat.finetune_steps")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sizes", type=float, nargs="+", default=SIZES, help="mean widths, the first ones first")
    parser.add_argument("--mixtures", type=int, default=60, help="test mixtures, the first ones")
    parser.add_argument("--digits", type=int, default=0, help="mixtures of real_digits_test.toml whose word errors are counted")
    parser.add_argument("--control-steps", type=int, nargs="*", default=CONTROL_STEPS, help="trainings of full precision")
    parser.add_argument("--evaluations", type=int, default=200, help="candidates of each search")
    parser.add_argument("--search-mixtures", type=int, default=48, help="validation mixtures that searches score on")
    parser.add_argument("--allocations", type=int, default=24, help="of the correlations")
    parser.add_argument("--validation-mixtures", type=int, default=48, help="of the correlations")
    parser.add_argument("--reference-steps", type=int, default=1000, help="of the correlations")
    return parser.parse_args()


def write_report(bench: Bench, options: argparse.Namespace) -> None:
    """Keep what this run folder holds of each seed, then write and print the tables of all seeds."""
    sizes, folder = tuple(options.sizes), options.results / "method_comparison"
    for seed in options.seeds:
        write_seed(bench, seed, sizes, options.control_steps, made_by(bench, options), folder)
    measured = read_seeds(folder)
    content = {"made_by": measured.made_by} | report.contents(measured, sizes)
    atomic_write_json(options.results / "method_comparison.json", content)
    atomic_write_bytes(options.results / "method_comparison.md", report.markdown(content, sizes).encode())
    report.plot(content["rows"], content["full_precision"].get("0")).savefig(options.results / "method_comparison.png", dpi=110)
    print(report.markdown(content, sizes))


def write_correlations(settings: Settings, options: argparse.Namespace) -> None:
    """Write and print the rank correlations."""
    content = correlations.report(settings, options.allocations, options.validation_mixtures, options.reference_steps)
    atomic_write_json(options.results / "rank_correlations.json", content)
    atomic_write_bytes(options.results / "rank_correlations.md", correlations.table(content).encode())
    print(correlations.table(content))


def made_by(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    """What the figures depend on."""
    experiment = bench.experiment
    return {
        "command": "python experiments/method_comparison run",
        "experiment": experiment.name,
        "seed": experiment.seed,
        "steps": bench.steps,
        "test_mixtures": len(bench.test),
        "test_utterances": len({mixture.target.utterance for mixture in bench.test}),
        "digits_mixtures": options.digits,
        "evaluations_of_each_search": options.evaluations,
        "validation_mixtures_of_each_search": options.search_mixtures,
        "qat": experiment.qat.model_dump(mode="json"),
        "shared": experiment.shared.model_dump(mode="json"),
        "quantization": experiment.quantization.model_dump(mode="json"),
        "provenance": dict(provenance(bench.workspace)),
        "versions": {name: version(name) for name in ("hwsearch", "torch", "numpy", "scipy", "pesq", "pystoi")},
        "processor": processor(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def processor() -> str:
    """The processor's name, where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    """Parse and act."""
    options = parsed()
    settings = Settings(
        experiment=options.experiment,
        runs=options.runs_dir,
        steps=options.steps,
        mixtures=options.mixtures,
        digits=options.digits,
        evaluations=options.evaluations,
        searched_on=options.search_mixtures,
    )
    with interrupts_heard():
        try:
            match options.action:
                case "run":
                    running.run(settings, options.seeds, tuple(options.sizes), options.control_steps, options.workers)
                case "correlations":
                    counts = options.allocations, options.validation_mixtures, options.reference_steps
                    correlations.run(settings, *counts, options.workers)
                    write_correlations(settings, options)
                    return
            write_report(bench_of(settings), options)
        except UserError as error:
            raise SystemExit(f"method_comparison: {error}") from None
        except KeyboardInterrupt:
            raise SystemExit(stop_code()) from None


if __name__ == "__main__":
    main()
