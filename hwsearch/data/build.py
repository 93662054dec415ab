"""The data set of an experiment: rooms for every split, and fixed mixtures written once.

Each mixture is a pure function of the data digest, its split and its number, so the files are the same
whatever the number of processes. A journal takes every mixture that is whole; an interrupted build goes on
behind it.
"""

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from hwsearch.data.corpus import check_corpora, load_corpora
from hwsearch.data.dataset import Mixture, format_mixture, manifest_path, parse_mixture
from hwsearch.data.plan import Plan, draw_plans, write_mixture
from hwsearch.data.processes import in_processes
from hwsearch.data.rooms import Progress, RoomBank, build_bank
from hwsearch.errors import UserError
from hwsearch.experiment import DataConfig, Experiment, Split
from hwsearch.files import atomic_write_json, atomic_write_text, digest, file_digest, read_json

ENDED = "a process that mixes was ended from outside; the same command goes on where it stopped"


@dataclass(frozen=True)
class DataSet:
    """A data set that is whole.

    Attributes:
        folder: where it is; `hwsearch.data.dataset.load_mixture` reads from it.
        banks: the rooms of each split.
        mixtures: the fixed mixtures of each split that has any.
    """

    folder: Path
    banks: dict[Split, RoomBank]
    mixtures: dict[Split, tuple[Mixture, ...]]


def check_data(data: DataConfig) -> None:
    """Refuse what `build_data` would, as far as it shows without any work.

    Raises:
        UserError: a split with mixtures but no rooms, or what `check_corpora` refuses.
    """
    for split in data.mixtures.count:
        if split not in data.rooms.count:
            raise UserError(f"data.rooms.count: no '{split.value}'; data.mixtures.count wants mixtures of that split")
    check_corpora(data)


def build_data(experiment: Experiment, folder: Path, corpora: Path, processes: int, progress: Progress) -> DataSet:
    """Build what is not yet in `folder`: rooms and mixtures of every split that the experiment asks them for.

    Files that match their hash in the manifest or the journal are kept; others are made again.

    Args:
        experiment: its data section and seed decide everything.
        folder: the data set's own folder.
        corpora: folder in which synthetic speech is kept.
        processes: how many work at once.
        progress: told how many of all rooms and mixtures are there.

    Raises:
        UserError: unusable corpora or rooms, a split with mixtures but no rooms, or `folder` holds another
            data set.
    """
    data, name = experiment.data, experiment.data_digest()
    check_data(data)
    speech = load_corpora(data, experiment.seed, corpora)
    _claim(folder, name, digest([[u.to_dict() for u in speech[split]] for split in Split]))
    total = sum(data.rooms.count.values()) + sum(data.mixtures.count.values())
    done = 0
    banks = {}
    for split in _in_order(data.rooms.count):
        bank_folder = folder / "rooms" / split.value
        banks[split] = build_bank(data, name, split, bank_folder, processes, _shifted(progress, done, total))
        done += data.rooms.count[split]
    plans = [
        plan for split in _in_order(data.mixtures.count) for plan in draw_plans(data, name, split, speech[split], banks[split])
    ]
    whole = _write_missing(folder, plans, processes, _shifted(progress, done, total))
    mixtures = {}
    for split in _in_order(data.mixtures.count):
        mixtures[split] = tuple(whole[plan.id] for plan in plans if plan.split is split)
        lines = (format_mixture(mixture) + "\n" for mixture in mixtures[split])
        atomic_write_text(manifest_path(folder, split), "".join(lines))
    _journal(folder).unlink(missing_ok=True)
    return DataSet(folder, banks, mixtures)


def _journal(folder: Path) -> Path:
    return folder / ".journal.jsonl"


def _write_missing(folder: Path, plans: Sequence[Plan], processes: int, progress: Progress) -> dict[str, Mixture]:
    """Write the planned mixtures that are not whole yet; all mixtures by their id."""
    wanted = {plan.id for plan in plans}
    records = (*(manifest_path(folder, split) for split in Split), _journal(folder))
    whole = {
        mixture.id: mixture
        for record in records
        for mixture in _read_lines(record)
        if mixture.id in wanted and _is_whole(folder, mixture)
    }
    progress(len(whole), len(plans))
    missing = [plan for plan in plans if plan.id not in whole]
    if missing:
        with _journal(folder).open("a", encoding="utf-8") as stream:
            # A kill may have left half a line.
            stream.write("\n")
            with closing(_write_all(missing, folder, processes)) as written:
                for mixture in written:
                    stream.write(format_mixture(mixture) + "\n")
                    stream.flush()
                    os.fsync(stream.fileno())
                    whole[mixture.id] = mixture
                    progress(len(whole), len(plans))
    return whole


def _write_all(plans: Sequence[Plan], folder: Path, processes: int) -> Generator[Mixture]:
    """Write mixtures and give each as soon as it is whole, in any order."""
    if processes <= 1 or len(plans) < 2:
        for plan in plans:
            yield write_mixture(plan, folder)
        return
    with closing(in_processes(write_mixture, [(plan, folder) for plan in plans], processes, ENDED)) as mixtures:
        yield from mixtures


def _read_lines(path: Path) -> Iterator[Mixture]:
    """Mixtures of a manifest or journal; lines cut short by a kill count as not written."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError):
            yield parse_mixture(line)


def _is_whole(folder: Path, mixture: Mixture) -> bool:
    files = ((mixture.mixture_path, mixture.mixture_sha256), (mixture.target_path, mixture.target_sha256))
    return all((folder / path).is_file() and file_digest(folder / path) == sha256 for path, sha256 in files)


def _claim(folder: Path, name: str, speech: str) -> None:
    """Write down whose data `folder` holds, or check that it is this very data set's."""
    path = folder / "data.json"
    mine = {"data": name, "speech": speech}
    if not path.is_file():
        atomic_write_json(path, mine)
        return
    there = read_json(path, "the name of a data set")
    if not isinstance(there, dict) or there.get("data") != name:
        raise UserError(f"{folder}: holds the data of another experiment; wanted an empty folder or this experiment's own")
    if there != mine:
        raise UserError(
            f"{folder}: made from a speech corpus that has since gained, lost or renamed utterances; delete "
            "the folder to build it from the corpus as it is"
        )


def _in_order(counts: dict[Split, int]) -> list[Split]:
    return [split for split in Split if split in counts]


def _shifted(progress: Progress, done: int, total: int) -> Progress:
    return lambda here, _: progress(done + here, total)
