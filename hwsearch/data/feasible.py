"""Checks before a data set is made: space on the disk, and headers of recordings."""

import math
import shutil
from collections.abc import Iterable
from pathlib import Path

from hwsearch.data.arrays import microphone_array
from hwsearch.data.audio import open_recording
from hwsearch.data.espeak import PREFIX as ESPEAK
from hwsearch.data.rooms import response_taps
from hwsearch.data.utterance import SHORTEST_SPEECH_S, Utterance
from hwsearch.errors import UserError
from hwsearch.experiment import DataConfig

_SAMPLE_BYTES = 4


def most_bytes(data: DataConfig) -> int:
    """Return the bytes that rooms and mixtures take at most."""
    microphones = microphone_array(data.array).microphones
    rooms, mixtures = sum(data.rooms.count.values()), sum(data.mixtures.count.values())
    # Sources are up to 0.3 m above or below the array.
    taps = response_taps(data.rooms.t60_max_s, math.hypot(data.rooms.distance_max_m, 0.3), data.sample_rate)
    responses = rooms * data.rooms.sources_per_room * microphones * taps
    samples = mixtures * (microphones + 1) * math.ceil(data.mixtures.seconds * data.sample_rate)
    return _SAMPLE_BYTES * (responses + samples)


def free_bytes(folder: Path) -> int:
    """Return the free space of the disk on which a folder is or would be."""
    return shutil.disk_usage(disk_of(folder)).free


def disk_of(folder: Path) -> Path:
    """Return the nearest folder above that is there, or the folder itself."""
    disk = folder.absolute()
    while not disk.is_dir():
        disk = disk.parent
    return disk


def check_disk(data: DataConfig, folder: Path) -> None:
    """Raise `UserError` if rooms and mixtures may take more than the free space of the disk and the space that `folder` takes."""
    rooms, mixtures = sum(data.rooms.count.values()), sum(data.mixtures.count.values())
    wanted, disk, free = most_bytes(data), disk_of(folder), free_bytes(folder)
    if wanted <= free:
        return
    free += sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if wanted > free:
        raise UserError(
            f"data: {rooms} rooms and {mixtures} mixtures of up to {data.mixtures.seconds:g} s take up to {wanted / 1e9:,.1f} "
            f"GB; {disk} has {free / 1e9:,.1f} GB free: wanted smaller counts, or another --runs-dir"
        )


def check_recordings(utterances: Iterable[Utterance]) -> None:
    """Raise `UserError` for recordings that are unusable by their headers; synthesised speech need not exist yet."""
    seconds: dict[Path, float] = {}
    for utterance in dict.fromkeys(utterances):
        if utterance.id.startswith(ESPEAK):
            continue
        paths = [utterance.root / path for path in utterance.paths]
        for path in paths:
            if path not in seconds:
                seconds[path] = open_recording(path).seconds
        length = sum(seconds[path] for path in paths)
        if length < SHORTEST_SPEECH_S:
            raise UserError(f"{paths[0]}: lasts {length:g} s; wanted speech of at least {SHORTEST_SPEECH_S:g} s")
