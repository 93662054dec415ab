"""Finished candidates: trained from the shared network, then judged on the test mixtures."""

from bench import Bench
from searching import Winner

from hwsearch.experiment import FLOAT_BITS
from hwsearch.files.reading import read_json
from hwsearch.files.writing import atomic_write_json
from hwsearch.metrics.evaluation import MEANS, evaluate
from hwsearch.separator.allocation import uniform
from hwsearch.separator.configuration import Configuration
from hwsearch.separator.trained import load_trained, save_trained
from hwsearch.training.qat import TrainingOptions, train_quantized
from hwsearch.workflow.evaluate import candidate_system

FIGURES = tuple(name for name in MEANS if name != "si_snr_db")


def figures(bench: Bench, mode: str, configuration: Configuration | None, seed: int) -> dict[str, list[float | None]] | None:
    """Return the figures of every test mixture; None if they are missing. No configuration: full precision."""
    path = bench.folder("figures", f"{bench.key(mode, configuration, seed)}-{bench.settings.mixtures}.json")
    found: dict[str, list[float | None]] = read_json(path, "figures") if path.is_file() else {}
    return found or None


def finish(bench: Bench, winner: Winner, seed: int) -> None:
    """Train a winner and judge it. What is there already is kept."""
    if figures(bench, winner.mode, winner.configuration, seed) is not None:
        return
    key = bench.key(winner.mode, winner.configuration, seed)
    kept, allocation = bench.networks(winner.mode).at(winner.configuration.kept), winner.configuration.allocation
    path = bench.folder("trained", f"{key}.safetensors")
    if path.is_file():
        state = load_trained(path, kept.base, allocation)
    else:
        if kept.shared is None:
            raise ValueError("wanted a shared network")
        options = TrainingOptions(checkpoint=path.with_suffix(".checkpoint"))
        start, qat = kept.shared.at(allocation), bench.loaded.qat
        state = train_quantized(kept.base, allocation, bench.pool, qat, bench.settings.steps, seed, start=start, options=options)
        save_trained(path, state)
        path.with_suffix(".checkpoint").unlink(missing_ok=True)
    _write(bench, key, candidate_system(kept.base, allocation, state))


def full_precision(bench: Bench, mode: str) -> None:
    """Judge the base in full precision."""
    if figures(bench, mode, None, 0) is None:
        base = bench.networks(mode).base
        _write(bench, bench.key(mode, None, 0), candidate_system(base, uniform(base.sites, FLOAT_BITS)))


def _write(bench: Bench, key: str, system: object) -> None:
    folder = bench.workspace("both").data_folder
    results = evaluate(system, folder, bench.test, None, lambda _done, _all: None)  # type: ignore[arg-type]
    values = {name: [one.scores.get(name) for one in results] for name in FIGURES}
    atomic_write_json(bench.folder("figures", f"{key}-{bench.settings.mixtures}.json"), values)
