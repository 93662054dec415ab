"""The judge: every choice is trained for the same number of steps and separates the same test mixtures."""

from collections.abc import Callable
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from bench import ONE_SCALE, POST_TRAINING, Bench, Choice, Settings
from numpy.typing import NDArray

from hwsearch.data.dataset import Mixture, load_mixture, open_dataset
from hwsearch.experiment import Split, load_experiment
from hwsearch.files.writing import atomic_write_json
from hwsearch.metrics.errors import MetricUnavailable
from hwsearch.metrics.evaluation import System, make_recogniser
from hwsearch.metrics.perceptual import pesq_score, stoi_score
from hwsearch.metrics.recognisers.recogniser import Recogniser, heard_errors
from hwsearch.metrics.si_snr import si_snr
from hwsearch.process.interrupts import checkpoint
from hwsearch.search.mixture_batches import SILENT_DB
from hwsearch.separator.trained import TrainedState, load_trained, save_trained
from hwsearch.training.qat import TrainingDivergedError, TrainingOptions, train_quantized
from hwsearch.workflow.evaluate import candidate_system
from hwsearch.workspace import Workspace

SI_SNR, PESQ, STOI = "si_snr_improvement_db", "pesq", "stoi"
METRICS = (SI_SNR, PESQ, STOI)
DIGITS = Path(__file__).resolve().parents[1] / "real_digits_test.toml"
FAILED = "failed"


def figures_path(bench: Bench, key: str) -> Path:
    """Return the file with the metrics of every test mixture."""
    return bench.folder / "figures" / f"{key}-{bench.settings.mixtures}.json"


def words_path(bench: Bench, key: str) -> Path:
    """Return the file with the word errors of every mixture of digits."""
    return bench.folder / "words" / f"{key}-{bench.settings.digits}.json"


def is_judged(bench: Bench, key: str) -> bool:
    """Whether all figures of a choice are there."""
    return figures_path(bench, key).is_file() and (not bench.settings.digits or words_path(bench, key).is_file())


def judge(bench: Bench, choice: Choice, seed: int, steps: int) -> None:
    """Train a choice and write its figures. What is there already is kept."""
    key = bench.key(choice, seed, steps)
    if is_judged(bench, key):
        return
    try:
        state = trained(bench, choice, seed, steps)
    except TrainingDivergedError as error:
        atomic_write_json(figures_path(bench, key), {FAILED: str(error)})
        if bench.settings.digits:
            atomic_write_json(words_path(bench, key), {FAILED: str(error)})
        return
    system = candidate_system(bench.base(choice.scales), choice.allocation, state)
    if not figures_path(bench, key).is_file():
        atomic_write_json(figures_path(bench, key), figures(system, bench.data_folder, bench.test))
    if bench.settings.digits:
        atomic_write_json(words_path(bench, key), digits_of(bench.settings).errors(system))


def trained(bench: Bench, choice: Choice, seed: int, steps: int) -> TrainedState:
    """Train a choice, go on where a kill has interrupted its training, or read its weights."""
    if not steps:
        return bench.initial(choice)
    base = bench.base(choice.scales)
    path = bench.folder / "trained" / f"{bench.key(choice, seed, steps)}.safetensors"
    if path.is_file():
        return load_trained(path, base, choice.allocation)
    options = TrainingOptions(checkpoint=path.with_suffix(".checkpoint"))
    qat = bench.experiment.qat
    start = None if choice.scales != ONE_SCALE and choice.start == POST_TRAINING else bench.initial(choice)
    state = train_quantized(base, choice.allocation, bench.pool, qat, steps, seed, start=start, options=options)
    save_trained(path, state)
    path.with_suffix(".checkpoint").unlink(missing_ok=True)
    return state


def figures(system: System, folder: Path, mixtures: list[Mixture]) -> dict[str, list[float | None]]:
    """Measure a system on every mixture. PESQ and STOI have no value for silence."""
    found: dict[str, list[float | None]] = {metric: [] for metric in METRICS}
    for mixture in mixtures:
        checkpoint()
        sound, target = load_mixture(folder, mixture)
        estimate = system(sound, mixture.target.doa_deg)
        reached = float(si_snr(estimate, target)) if np.any(estimate) else SILENT_DB
        found[SI_SNR].append(reached - float(si_snr(sound[0], target)))
        found[PESQ].append(_available(pesq_score, estimate, target, mixture.sample_rate))
        found[STOI].append(_available(stoi_score, estimate, target, mixture.sample_rate))
    return found


def _available(
    metric: Callable[[NDArray[np.float32], NDArray[np.float32], int], float],
    estimate: NDArray[np.float32],
    target: NDArray[np.float32],
    rate: int,
) -> float | None:
    try:
        return float(metric(estimate, target, rate))
    except MetricUnavailable:
        return None


class Digits:
    """Mixtures of spoken digits, and the recogniser that counts word errors."""

    def __init__(self, settings: Settings) -> None:
        self.workspace = Workspace(settings.runs, load_experiment(DIGITS))
        self._count = settings.digits

    @cached_property
    def mixtures(self) -> list[Mixture]:
        """The mixtures, which must have been made."""
        return list(open_dataset(self.workspace.data_folder, Split.TEST)[: self._count])

    @cached_property
    def _recogniser(self) -> Recogniser | None:
        return make_recogniser(self.workspace.experiment.evaluation, self.mixtures)

    def errors(self, system: System) -> dict[str, Any]:
        """Return substitutions, deletions, insertions and reference words of every mixture."""
        found = []
        for mixture in self.mixtures:
            checkpoint()
            sound, _ = load_mixture(self.workspace.data_folder, mixture)
            estimate = system(sound, mixture.target.doa_deg)
            errors = heard_errors(self._recogniser, mixture.target.transcript, estimate, mixture.sample_rate)
            if errors is None:
                raise ValueError(f"mixture '{mixture.id}' has no transcript that the recogniser can write")
            found.append([errors.substitutions, errors.deletions, errors.insertions, errors.words])
        return {"errors": found}


@lru_cache(maxsize=1)
def digits_of(settings: Settings) -> Digits:
    """Return the digits of this process."""
    return Digits(settings)
