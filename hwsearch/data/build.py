"""The data set of an experiment: rooms for every split, and fixed mixtures.

Each mixture is a pure function of the data digest, its split and its number, so the files do not depend on the number of
processes. A journal lists every finished mixture, so that an interrupted build can be continued.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from hwsearch.data.corpus import read_corpora, speakers_also_recorded
from hwsearch.data.dataset import SOUND_BYTES, Mixture, format_mixture, manifest_path, open_dataset, parse_mixture
from hwsearch.data.feasible import check_disk, check_recordings
from hwsearch.data.noise import check_noise, read_noise
from hwsearch.data.plan import Plan, draw_plans, write_mixture
from hwsearch.data.processes import each_result
from hwsearch.data.recorded import check_directions, check_headers, conversion_notes, read_recorded
from hwsearch.data.recorded_plan import RecordedPlan, plan_recorded, write_recorded
from hwsearch.data.rooms import Progress, RoomBank, build_bank, check_rooms, draw_rooms, rooms_folder
from hwsearch.data.source import Source
from hwsearch.errors import UserError
from hwsearch.experiment import Experiment, Split
from hwsearch.files.reading import file_digest, read_json
from hwsearch.files.writing import atomic_write_json, atomic_write_text

DATA_FORMAT = 2
"""Increased whenever the same experiment and speech give other data."""


AnyPlan = Plan | RecordedPlan
"""The plan of a mixture that is made, or of one that exists."""


@dataclass(frozen=True)
class Checked:
    """What a check of an experiment's data has found.

    Attributes:
        corpora: the speech, which need not be synthesised yet.
        plans: the plans of all mixtures, in the order of the manifests.
        notes: lines for people, such as which recordings are resampled.
    """

    corpora: Source
    plans: Sequence[AnyPlan]
    notes: tuple[str, ...]


def build_data(experiment: Experiment, folder: Path, cache: Path, processes: int, progress: Progress) -> tuple[str, ...]:
    """Build the missing rooms and mixtures of an experiment.

    A mixture is kept if its files match their hashes in the manifest or the journal, and the corpora still have its recordings.

    Args:
        experiment: the data section and the seed determine the data.
        folder: the data set's own folder.
        cache: folder of synthetic speech.
        processes: number of processes.
        progress: called with the number of finished rooms and mixtures, and that of all.

    Returns:
        The notes of `Checked`.

    Raises:
        UserError: as `check_data`, or a recording cannot be used.
    """
    data, name = experiment.data, experiment.data_digest()
    checked = check_data(experiment, folder, cache)
    plans = checked.plans
    checked.corpora.synthesise()
    _claim(folder, name)
    total = sum(data.rooms.count.values()) + len(plans)
    done = 0
    for split in _in_order(data.rooms.count):
        build_bank(data, name, split, rooms_folder(folder, split), processes, _shifted(progress, done, total))
        done += data.rooms.count[split]
    whole = _write_missing(folder, plans, processes, _shifted(progress, done, total))
    for split in Split:
        lines = [format_mixture(whole[plan.id]) + "\n" for plan in plans if plan.split is split]
        if lines:
            atomic_write_text(manifest_path(folder, split), "".join(lines))
    _journal(folder).unlink(missing_ok=True)
    return checked.notes


def check_data(experiment: Experiment, folder: Path, cache: Path) -> Checked:
    """Check what `build_data` needs: the experiment, the disk, and headers of recordings; nothing is written.

    Raises:
        UserError: unusable rooms, corpora or recordings, a split with mixtures but no rooms, recorded mixtures without directions
            for a network that uses them, too little space on the disk, or `folder` holds another or a damaged data set.
    """
    data, name = experiment.data, experiment.data_digest()
    for split in data.mixtures.count:
        if split not in data.rooms.count:
            raise UserError(f"data.rooms.count: no '{split.value}'; data.mixtures.count wants mixtures of that split")
    check_rooms(data, name)
    _check_claim(folder, name)
    recorded = read_recorded(data)
    check_directions(experiment, recorded.mixtures)
    headers = [(mixture, check_headers(mixture, data)) for mixture in recorded.mixtures]
    written = [header for mixture, header in headers if mixture.split is not Split.TRAIN]
    check_disk(data, folder, sum(header.resampled(data.sample_rate) for header in written))
    corpora, noises = read_corpora(data, experiment.seed, cache), read_noise(data, experiment.seed)
    plans: list[AnyPlan] = []
    for split in Split:
        if split is not Split.TRAIN:  # training reads the recordings themselves
            plans += plan_recorded(data, recorded.mixtures, split)
        if split in data.mixtures.count:
            bank = RoomBank(rooms_folder(folder, split), draw_rooms(data, name, split))
            plans += draw_plans(data, name, split, corpora.speech[split], bank, noises.get(split))
    there = _made(folder, plans)
    mixed = [plan.speech for plan in plans if isinstance(plan, Plan) and plan.id not in there]
    # Training mixes all speech of a split.
    trained = [
        corpora.speech[split]
        for split in data.rooms.count
        if split not in data.mixtures.count and not rooms_folder(folder, split).is_dir()
    ]
    notes = recorded.notes + conversion_notes(headers, data.sample_rate) + check_noise(data, experiment.seed)
    used = {split: speech for split, speech in corpora.speech.items() if split in data.rooms.count}
    notes += speakers_also_recorded(used, recorded.mixtures)
    return Checked(corpora, plans, notes + check_recordings(chain(*mixed, *trained), data.sample_rate))


def _journal(folder: Path) -> Path:
    return folder / ".journal.jsonl"


def _write_missing(folder: Path, plans: Sequence[AnyPlan], processes: int, progress: Progress) -> dict[str, Mixture]:
    """Write the planned mixtures that are missing or damaged, and return all mixtures by id."""
    whole = {name: mixture for name, mixture in _made(folder, plans).items() if _is_whole(folder, mixture)}
    progress(len(whole), len(plans))
    missing = [plan for plan in plans if plan.id not in whole]
    if missing:
        with _journal(folder).open("a", encoding="utf-8") as stream:
            # A kill may have left half a line.
            stream.write("\n")
            jobs = [(plan, folder) for plan in missing]
            with closing(each_result(_write, jobs, processes)) as written:
                for mixture in written:
                    stream.write(format_mixture(mixture) + "\n")
                    stream.flush()
                    os.fsync(stream.fileno())
                    whole[mixture.id] = mixture
                    progress(len(whole), len(plans))
    return whole


def _write(plan: AnyPlan, folder: Path) -> Mixture:
    return write_recorded(plan, folder) if isinstance(plan, RecordedPlan) else write_mixture(plan, folder)


def _made(folder: Path, plans: Sequence[AnyPlan]) -> dict[str, Mixture]:
    """Mixtures in manifests and journal that agree with their plans, by id."""
    manifests = [open_dataset(folder, split) for split in Split if manifest_path(folder, split).is_file()]
    listed = {mixture.id: mixture for mixture in chain(*manifests, _read_lines(_journal(folder)))}
    return {plan.id: plan.with_words(listed[plan.id]) for plan in plans if plan.id in listed and plan.has_made(listed[plan.id])}


def _read_lines(path: Path) -> Iterator[Mixture]:
    """Read the mixtures of a journal, without lines that a kill has cut."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError):
            yield parse_mixture(line)


def _is_whole(folder: Path, mixture: Mixture) -> bool:
    files = ((mixture.mixture_path, mixture.mixture_sha256), (mixture.target_path, mixture.target_sha256))
    return all(_holds(folder / path, sha256) for path, sha256 in files)


def _holds(path: Path, sha256: str) -> bool:
    return path.is_file() and path.stat().st_size <= SOUND_BYTES and file_digest(path) == sha256


def _claim(folder: Path, name: str) -> None:
    """Record which data set `folder` holds."""
    if not _claim_path(folder).is_file():
        atomic_write_json(_claim_path(folder), {"data": name, "format": DATA_FORMAT})


def _check_claim(folder: Path, name: str) -> None:
    """Raise `UserError` if `folder` holds another data set."""
    path = _claim_path(folder)
    if not path.is_file():
        return
    there = read_json(path, "the name of a data set")
    if not isinstance(there, dict) or there.get("data") != name:
        raise UserError(f"{folder}: holds the data of another experiment; wanted an empty folder or this experiment's own")
    if there.get("format") != DATA_FORMAT:
        raise UserError(
            f"{folder}: made by another version of hwsearch, whose data differ; delete the folder to build them again, or name "
            "another --runs-dir"
        )


def _claim_path(folder: Path) -> Path:
    return folder / "data.json"


def _in_order(counts: dict[Split, int]) -> list[Split]:
    return [split for split in Split if split in counts]


def _shifted(progress: Progress, done: int, total: int) -> Progress:
    return lambda here, _: progress(done + here, total)
