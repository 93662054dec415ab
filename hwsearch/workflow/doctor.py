"""What is right and wrong with the installation, with this machine, and with an experiment on it."""

import importlib
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, metadata, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from hwsearch.data.feasible import free_bytes, most_bytes
from hwsearch.errors import UserError
from hwsearch.experiment import Experiment, TrainingConfig, load_experiment
from hwsearch.files.writing import check_folder
from hwsearch.process.cores import available_cores
from hwsearch.process.machine import available_bytes, core_quota, memory_bytes
from hwsearch.workspace import Workspace

_PACKAGE = "hwsearch"
_COMPILERS = ("cc", "gcc", "clang")
_THREADS = "OMP_NUM_THREADS"
_LEAST_MEMORY, _ENOUGH_MEMORY = 1e9, 3e9
_LEAST_DISK, _ENOUGH_DISK = 0.5e9, 5e9
_EXTRAS = {
    "storage": "shared studies in PostgreSQL",
    "asr": "the recogniser 'pocketsphinx-closed'",
    "tflite": "exports to TensorFlow Lite",
    "lhotse": "speech in the manifests of lhotse or of Kaldi",
    "sofa": "recorded rooms in SOFA files",
    "dashboard": "'hwsearch dashboard'",
    "notebook": "the notebook in experiments",
}
"""What extras are for. That of the tests is left out."""


class State(StrEnum):
    """How something is."""

    OK = "ok"
    WARNING = "warning"
    WRONG = "wrong"


@dataclass(frozen=True)
class Finding:
    """What was found.

    Attributes:
        state: how it is.
        topic: a word for it.
        said: what is there, in words.
        advice: what to do; empty if there is nothing to do.
    """

    state: State
    topic: str
    said: str
    advice: str = ""


def examine_machine(runs: Path) -> Iterator[Finding]:
    """Examine the installation and this machine. Each finding comes as soon as it is known.

    Args:
        runs: the folder of all runs, which need not exist.
    """
    for examine in (_python, _packages, _extras, _compiler, _cores, _memory):
        yield from examine()
    yield _disk(runs)
    yield _tried("kernels", _kernels)
    yield _tried("Ray", _ray)


def examine_experiment(file: Path, runs: Path, workers: int) -> Iterator[Finding]:
    """Examine what an experiment needs on this machine: disk, memory and time. Nothing is written.

    Args:
        file: the experiment file.
        runs: the folder of all runs.
        workers: number of workers on this machine; with 0 one process does all.
    """
    try:
        experiment = load_experiment(file)
    except UserError as error:
        yield Finding(State.WRONG, "experiment", str(error), "mend the file; 'hwsearch explain KEY' says what a key takes")
        return
    yield Finding(State.OK, "experiment", f"'{experiment.name}' can be read")
    workspace = Workspace(runs, experiment)
    yield _data(workspace)
    yield from _search(workspace, workers)


def _python() -> Iterator[Finding]:
    wanted = SpecifierSet("".join(metadata(_PACKAGE).get_all("Requires-Python") or ()))
    found = platform.python_version()
    if found in wanted:
        yield Finding(State.OK, "Python", f"{platform.python_implementation()} {found}")
    else:
        yield Finding(State.WRONG, "Python", f"{found}; wanted {wanted}", "make the virtual environment anew with that version")


def _packages() -> Iterator[Finding]:
    needed = [each for each in _requirements() if each.marker is None or each.marker.evaluate({"extra": ""})]
    wrong = [said for said in map(_missed, needed) if said]
    for said in wrong:
        yield Finding(State.WRONG, "packages", said, "install anew: pip install -e .")
    if not wrong:
        yield Finding(State.OK, "packages", f"{len(needed)} dependencies have versions within their bounds")


def _extras() -> Iterator[Finding]:
    unknown = []
    for extra, use in _EXTRAS.items():
        needed = [each for each in _requirements() if each.marker is not None and each.marker.evaluate({"extra": extra})]
        own = [each for each in needed if not each.marker or not each.marker.evaluate({"extra": ""})]
        if not own:
            unknown.append(f"'{extra}'")
            continue
        there = not any(map(_missed, own))
        said = f"'{extra}' is installed" if there else f"'{extra}' is not installed; it is needed only for {use}"
        yield Finding(State.OK, "extras", said, "" if there else f"if you want that: pip install 'hwsearch[{extra}]'")
    if unknown:
        said = f"the package was installed before there were {', '.join(unknown)}"
        yield Finding(State.WARNING, "extras", said, "install anew: pip install -e .")


def _requirements() -> list[Requirement]:
    return [Requirement(each) for each in metadata(_PACKAGE).get_all("Requires-Dist") or ()]


def _missed(requirement: Requirement) -> str | None:
    """Say how a requirement is not met, or nothing."""
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return f"{requirement.name} is not installed; wanted {requirement.specifier or 'any version'}"
    if requirement.specifier.contains(found, prereleases=True):
        return None
    return f"{requirement.name} is {found}; wanted {requirement.specifier}"


def _compiler() -> Iterator[Finding]:
    found = next((path for path in map(shutil.which, _COMPILERS) if path), None)
    try:
        importlib.import_module("pesq")
    except ImportError as error:
        advice = "pip install --force-reinstall pesq" if found else "install gcc, then pip install --force-reinstall pesq"
        yield Finding(State.WRONG, "C compiler", f"the extension that computes PESQ does not load ({error})", advice)
        return
    compiler = f"{found} is there" if found else "there is none, and none is needed any more"
    yield Finding(State.OK, "C compiler", f"{compiler}: the extension that computes PESQ is built")


def _cores() -> Iterator[Finding]:
    cores, quota, threads = available_cores(), core_quota(), os.environ.get(_THREADS)
    setting = f"{_THREADS} is {threads}" if threads else f"{_THREADS} is not set"
    said = f"{cores} core{'s' * (cores != 1)} for this process; {setting}"
    if quota is not None and quota < cores:
        said = f"{said}; the container gives the time of {quota:.3g}"
    if threads is not None and not threads.isdigit():
        yield Finding(State.WRONG, "cores", said, f"set {_THREADS} to a whole number, or do not set it")
    elif threads is not None and int(threads) > cores:
        yield Finding(State.WARNING, "cores", said, f"threads beyond the cores slow each other down: set {_THREADS} to {cores}")
    elif min(cores, quota or cores) < 2:
        yield Finding(State.WARNING, "cores", said, "one process does all work fastest here: --workers 0 --processes 1")
    else:
        yield Finding(State.OK, "cores", said)


def _memory() -> Iterator[Finding]:
    free, whole = available_bytes(), memory_bytes()
    said = f"{free / 1e9:.1f} GB of {whole / 1e9:.1f} GB are free"
    if free < _LEAST_MEMORY:
        yield Finding(State.WRONG, "memory", said, f"end other programs: a search wants {_ENOUGH_MEMORY / 1e9:.0f} GB")
    elif free < _ENOUGH_MEMORY:
        yield Finding(State.WARNING, "memory", said, "take few workers, or --workers 0")
    else:
        yield Finding(State.OK, "memory", said)


def _disk(runs: Path) -> Finding:
    try:
        check_folder(runs)
    except UserError as error:
        return Finding(State.WRONG, "disk", str(error), "take another --runs-dir")
    free = free_bytes(runs)
    said = f"{free / 1e9:.1f} GB are free where {runs} is or would be"
    if free < _LEAST_DISK:
        return Finding(State.WRONG, "disk", said, "make room, or take another --runs-dir")
    if free < _ENOUGH_DISK:
        return Finding(
            State.WARNING, "disk", said, "an experiment of some size takes more: make room, or take another --runs-dir"
        )
    return Finding(State.OK, "disk", said)


def _kernels() -> Finding:
    from hwsearch.export.saturation import kernels_saturate

    if kernels_saturate():
        said = "this processor has no VNNI instructions. Scoring and exported files are slower here, and as exact"
        return Finding(State.WARNING, "kernels", said, "nothing to do; do not export --for vnni for this machine")
    return Finding(State.OK, "kernels", "the 8-bit kernels of this processor add in 32 bits (as VNNI does): exact and fast")


def _ray() -> Finding:
    from hwsearch.executor import start_seconds

    return Finding(State.OK, "Ray", f"starts in {start_seconds():.0f} s")


def _tried(topic: str, examine: Callable[[], Finding]) -> Finding:
    """Examine; what cannot be examined is wrong."""
    try:
        return examine()
    except UserError as error:
        return Finding(State.WRONG, topic, str(error), "until that is mended: --workers 0" if topic == "Ray" else "")
    except ImportError as error:
        return Finding(
            State.WRONG, topic, f"a package does not load ({error})", "install anew: pip install --force-reinstall -e ."
        )


def _data(workspace: Workspace) -> Finding:
    bytes_wanted, free = most_bytes(workspace.experiment.data), free_bytes(workspace.data_folder)
    said = f"rooms and mixtures take up to {bytes_wanted / 1e9:.2f} GB in {workspace.data_folder}"
    if bytes_wanted > free and not workspace.data_folder.is_dir():
        advice = "take smaller counts in [data.rooms] and [data.mixtures], or another --runs-dir"
        return Finding(State.WRONG, "data", f"{said}; {free / 1e9:.2f} GB are free", advice)
    return Finding(State.OK, "data", said)


def _search(workspace: Workspace, workers: int) -> Iterator[Finding]:
    from hwsearch.workflow.dry_run import dry_run
    from hwsearch.workflow.training import needs_training

    try:
        plan = dry_run(workspace, workers, may_train=True)
    except UserError as error:
        yield Finding(State.WRONG, "search", str(error), "mend that; a search would be refused for it")
        return
    yield Finding(State.OK, "search", f"{plan.rungs[0].candidates} candidates would be scored, on {workers or 'no'} Ray workers")
    if needs_training(workspace):
        yield _training(workspace.experiment)
    if plan.seconds is None or plan.memory_bytes is None or plan.disk_bytes is None:
        advice = f"'hwsearch data build'{' and train' if needs_training(workspace) else ''} first, and ask again"
        yield Finding(State.OK, "scoring", "time and memory are measured once data and base are there", advice)
        return
    beside = " beside what is missing yet" if plan.missing else ""
    yield Finding(
        State.OK, "scoring", f"takes about {_minutes(plan.seconds)}{beside}, and {plan.disk_bytes / 1e6:.0f} MB of disk"
    )
    free, wanted = available_bytes(), plan.memory_bytes
    said = f"workers take about {wanted / 1e9:.1f} GB of memory; {free / 1e9:.1f} GB are free"
    if wanted > free:
        yield Finding(State.WRONG, "scoring", said, "take fewer --workers, or 0")
    else:
        yield Finding(State.OK, "scoring", said)


def _training(experiment: Experiment) -> Finding:
    """Measure a step of the training of the base."""
    from hwsearch.data.arrays import microphone_array
    from hwsearch.separator.separator import build_separator
    from hwsearch.training.fit import step_seconds

    data = experiment.data
    steps = experiment.training.epochs * experiment.training.steps_per_epoch

    def seconds(config: TrainingConfig) -> float:
        separator = build_separator(experiment.separator, microphone_array(data.array), data.sample_rate)
        return steps * step_seconds(separator, config, data.sample_rate)

    config = experiment.training
    whole = seconds(config)
    said = f"the training of the base takes at most {steps} steps, about {_minutes(whole)} on the processor, beside the mixing"
    if config.precision == "bfloat16":
        plain = seconds(config.model_copy(update={"precision": "float32"}))
        if plain < whole:
            advice = f"set training.precision = 'float32': about {_minutes(plain)}"
            return Finding(State.WARNING, "training", f"{said}: this processor is slow at bfloat16", advice)
    if whole > 86_400:
        return Finding(
            State.WARNING, "training", said, "take fewer training.epochs, a smaller network, or a GPU (workers.device)"
        )
    return Finding(State.OK, "training", said)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
