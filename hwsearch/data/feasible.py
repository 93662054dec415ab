"""Checks before a data set is made: space on the disk, and headers of recordings."""

import math
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from hwsearch.data.arrays import ARRAYS
from hwsearch.data.audio import Recording, open_recording
from hwsearch.data.espeak import PREFIX as ESPEAK
from hwsearch.data.rooms import response_taps
from hwsearch.data.utterance import SHORTEST_SPEECH_S, Utterance, check_channel
from hwsearch.errors import UserError
from hwsearch.experiment import DataConfig

_SAMPLE_BYTES = 4

_TOLERANCE_S = 0.05
"""How far a part may exceed its recording, by the rounding of times in manifests."""


def check_disk(data: DataConfig, folder: Path, recorded_samples: int = 0) -> None:
    """Raise `UserError` if rooms and mixtures may take more than the free space of the disk and the space that `folder` takes.

    Recorded mixtures of the data set have `recorded_samples` samples in each channel.
    """
    microphones = ARRAYS[data.array].microphones
    rooms, mixtures = sum(data.rooms.count.values()), sum(data.mixtures.count.values())
    # Sources are up to 0.3 m above or below the array.
    taps = response_taps(data.rooms.t60_max_s, math.hypot(data.rooms.distance_max_m, 0.3), data.sample_rate)
    responses = rooms * data.rooms.sources_per_room * microphones * taps
    samples = (microphones + 1) * (mixtures * math.ceil(data.mixtures.seconds * data.sample_rate) + recorded_samples)
    wanted = _SAMPLE_BYTES * (responses + samples)
    disk = folder.absolute()
    while not disk.is_dir():
        disk = disk.parent
    free = shutil.disk_usage(disk).free
    if wanted <= free:
        return
    free += sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if wanted > free:
        hours = recorded_samples / data.sample_rate / 3600
        recorded = f", and {hours:.1f} h of recorded mixtures" if recorded_samples else ""
        raise UserError(
            f"data: {rooms} rooms and {mixtures} mixtures of up to {data.mixtures.seconds:g} s{recorded} take up to "
            f"{wanted / 1e9:,.1f} GB; {disk} has {free / 1e9:,.1f} GB free: wanted smaller counts, or another --runs-dir"
        )


def check_recordings(utterances: Iterable[Utterance], sample_rate: int) -> tuple[str, ...]:
    """Check recordings by their headers; synthesised speech need not exist yet.

    Returns:
        How they are converted to one channel at `sample_rate` Hz: a line for each rate and number of channels of a corpus.

    Raises:
        UserError: a recording is unusable.
    """
    headers: dict[Path, Recording] = {}
    converted: Counter[tuple[str, str]] = Counter()
    for utterance in dict.fromkeys(utterances):
        if utterance.id.startswith(ESPEAK):
            continue
        for path in (utterance.root / path for path in utterance.paths):
            if path not in headers:
                headers[path] = open_recording(path)
                converted.update((str(utterance.root), how) for how in _conversions(headers[path], utterance, sample_rate))
            check_channel(utterance.channel, headers[path])
        _check_length(utterance, [headers[utterance.root / path] for path in utterance.paths])
    return tuple(f"{root}: {count} recording{'s' * (count != 1)} {how}" for (root, how), count in sorted(converted.items()))


def _conversions(recording: Recording, utterance: Utterance, sample_rate: int) -> Iterator[str]:
    if recording.sample_rate != sample_rate:
        yield f"of {recording.sample_rate} Hz: resampled to {sample_rate} Hz"
    if recording.channels > 1:
        taken = "averaged" if utterance.channel is None else f"channel {utterance.channel} is taken"
        yield f"of {recording.channels} channels: {taken}"


def _check_length(utterance: Utterance, recordings: Sequence[Recording]) -> None:
    path, length = recordings[0].path, sum(recording.seconds for recording in recordings)
    if utterance.span is not None:
        first, last = utterance.span
        if last > length + _TOLERANCE_S:
            raise UserError(f"{path}: lasts {length:g} s; {utterance.id} ends at {last:g} s: wanted a part of the recording")
        length = min(last, length) - first
    if length < SHORTEST_SPEECH_S:
        raise UserError(f"{path}: lasts {length:g} s; wanted speech of at least {SHORTEST_SPEECH_S:g} s")
