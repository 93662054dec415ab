"""Rooms whose impulse responses were recorded: their list, checks of their headers, and the responses themselves."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hw_models.reading import no_file
from hwsearch.data.arrays import microphone_array
from hwsearch.data.audio import decode, open_recording, refuse_silent
from hwsearch.data.csv_rows import Columns, read_rows
from hwsearch.data.direction import angle_between, fit_array
from hwsearch.data.mixture_csv import read_direction
from hwsearch.data.recorded import content_digest, resampled
from hwsearch.data.sofa import MOST_MEASUREMENTS, SofaFile, open_sofa
from hwsearch.errors import UserError
from hwsearch.experiment import DataConfig, Split
from hwsearch.files.reading import digest

LONGEST_S = 10.0
"""Longest impulse response in seconds."""

LARGEST_BYTES = 2**28
"""Largest size of a room's responses, which are read for every mixture: 64 places of six microphones, 10 s at 16 kHz."""

SOFA = ".sofa"

_COLUMNS = Columns(("rir", "doa_deg", "room", "split"), (), "a CSV list of impulse responses")

_BEFORE_S = 0.005
"""Time kept before the first direct sound of a room."""

_SAMPLE_BYTES = 4

_DIRECT = 0.1
"""Share of a response's peak that the direct sound reaches."""


@dataclass(frozen=True)
class Response:
    """Impulse responses from one place to all microphones.

    Attributes:
        where: the line of the list, for error messages.
        path: a sound file with a channel for each microphone, or a SOFA file.
        measurement: number of the measurement in a SOFA file, counted from 0; 0 in a sound file.
        doa_deg: direction of the place.
    """

    where: str
    path: Path
    measurement: int
    doa_deg: float


@dataclass(frozen=True)
class RecordedRoom:
    """A room with impulse responses from several places.

    Attributes:
        pairs: places of two speakers, as numbers of responses, that lie far enough apart.
    """

    name: str
    split: Split
    responses: tuple[Response, ...]
    pairs: tuple[tuple[int, int], ...]


def read_recorded_rooms(data: DataConfig) -> tuple[RecordedRoom, ...]:
    """Read the list of recorded rooms, and choose those that the experiment uses: the first ones of each split.

    Raises:
        UserError: the list is unusable, a file is missing or no SOFA file, a room is in two splits, a split that the experiment
            names has no room, or a room has no two places as far apart as `data.rooms.min_angle_deg`.
    """
    path = data.rooms.recorded
    if path is None:
        return ()
    found: dict[str, list[Response]] = {}
    homes: dict[str, Split] = {}
    for line, row in read_rows(path, _COLUMNS):
        where = f"{path}:{line}"
        if not row["rir"] or not row["room"]:
            raise UserError(f"{where}: no {'room' if row['rir'] else 'rir'}")
        if row["split"] not in list(Split):
            raise UserError(f"{where}: split is {row['split']!r}; wanted 'train', 'validation' or 'test'")
        if homes.setdefault(row["room"], Split(row["split"])) is not Split(row["split"]):
            raise UserError(f"{where}: room {row['room']} is in two splits; wanted one, so that test rooms are new")
        found.setdefault(row["room"], []).extend(_responses(path.parent / row["rir"], row["doa_deg"], where, data))
    chosen: list[RecordedRoom] = []
    for split in Split:
        names = [name for name in found if homes[name] is split]
        if split in data.rooms.count and not names:
            raise UserError(f"{path}: no {split.value} room in it; data.rooms.count wants some")
        if not data.rooms.count or split in data.rooms.count:
            chosen += [_room(name, split, found[name], data) for name in names[: data.rooms.count.get(split)]]
    if not chosen:
        raise UserError(f"{path}: no room in it; wanted a line for each impulse response after the header")
    return tuple(chosen)


def rooms_digest(rooms: Sequence[RecordedRoom]) -> str:
    """Hash what the list says of rooms, and the content of their files, wherever they lie."""
    said = [
        [room.name, room.split.value, *([one.doa_deg, one.measurement, content_digest(one.path)] for one in room.responses)]
        for room in rooms
    ]
    return digest(said)


def check_recorded_rooms(data: DataConfig) -> None:
    """Check the list of recorded rooms, and the headers of its files.

    Raises:
        UserError: as `read_recorded_rooms`; the content has changed since the experiment was read; or a file is unusable, has
            another number of channels than the array, is too long, or is in two splits; or a room takes more than
            `LARGEST_BYTES`.
    """
    rooms = read_recorded_rooms(data)
    if data.rooms.sha256 is not None and rooms and rooms_digest(rooms) != data.rooms.sha256:
        raise UserError(
            f"{data.rooms.recorded}: the list or its files have changed since they had the content {data.rooms.sha256[:16]}; "
            "wanted the same content, or the experiment's file with another name"
        )
    array = microphone_array(data.array)
    microphones = array.microphones
    headers: dict[Path, tuple[int, float]] = {}
    for response in (response for room in rooms for response in room.responses):
        if response.path not in headers:
            headers[response.path] = _header(response)
        channels, seconds = headers[response.path]
        if channels != microphones:
            raise UserError(
                f"{response.where}: {response.path}: {channels} channel{'s' * (channels != 1)}; data.array {array} has "
                f"{microphones} microphone{'s' * (microphones != 1)}: wanted a response for each"
            )
        if seconds > LONGEST_S:
            raise UserError(f"{response.where}: {response.path}: lasts {seconds:g} s; wanted at most {LONGEST_S:g} s")
    _check_apart(rooms)
    for room in rooms:
        seconds = max(headers[response.path][1] for response in room.responses)
        size = round(_SAMPLE_BYTES * microphones * len(room.responses) * seconds * data.sample_rate)
        if size > LARGEST_BYTES:
            raise UserError(
                f"{room.responses[0].where}: room {room.name}: {len(room.responses)} places of {seconds:g} s take "
                f"{size / 2**20:.0f} MiB; wanted at most {LARGEST_BYTES / 2**20:g}: fewer places, or shorter responses"
            )


def _check_apart(rooms: Sequence[RecordedRoom]) -> None:
    """Raise `UserError` for responses, known by their content, that are in rooms of two splits."""
    homes: dict[str, tuple[RecordedRoom, Response]] = {}
    for room in rooms:
        for response in room.responses:
            other, there = homes.setdefault(content_digest(response.path), (room, response))
            if other.split is not room.split:
                raise UserError(
                    f"{response.where}: {response.path} is in the {room.split.value} split and, by {there.where}, in the "
                    f"{other.split.value} split; wanted one, so that test rooms are new"
                )


def load_responses(responses: Sequence[Response], sample_rate: int) -> NDArray[np.float32]:
    """Read the impulse responses [places, mics, taps] of a room at `sample_rate` Hz.

    Time before the first direct sound of the room is cut to 5 ms, the same for all responses. Shorter ones are padded.

    Raises:
        UserError: a file cannot be decoded, or one of its channels is silent.
    """
    parts = [_load(response, sample_rate) for response in responses]
    whole = np.zeros((len(parts), len(parts[0]), max(part.shape[1] for part in parts)), np.float32)
    for place, part in zip(whole, parts, strict=True):
        place[:, : part.shape[1]] = part
    loud = np.abs(whole) >= _DIRECT * np.abs(whole).max(axis=2, keepdims=True)
    direct = int(loud.argmax(axis=2).min())
    return np.ascontiguousarray(whole[:, :, max(0, direct - round(_BEFORE_S * sample_rate)) :])


def _responses(path: Path, doa_deg: str, where: str, data: DataConfig) -> list[Response]:
    """The responses of a line: one, or all measurements of a SOFA file that states the directions."""
    if (reason := no_file(path)) is not None:
        raise UserError(f"{where}: {path}: {reason}; wanted impulse responses")
    if path.suffix.lower() != SOFA:
        if not doa_deg:
            raise UserError(f"{where}: no doa_deg; wanted the direction of the place, in degrees")
        return [Response(where, path, 0, read_direction(doa_deg, where, data))]
    file = open_sofa(path)
    if doa_deg:
        if len(file.sources) != 1:
            raise UserError(f"{where}: {path}: {len(file.sources)} measurements, and one doa_deg; wanted an empty doa_deg")
        return [Response(where, path, 0, read_direction(doa_deg, where, data))]
    return [Response(where, path, number, doa) for number, doa in enumerate(_directions(file, where, data))]


def _directions(file: SofaFile, where: str, data: DataConfig) -> list[float]:
    array = microphone_array(data.array)
    if len(file.receivers) != array.microphones:
        raise UserError(
            f"{where}: {file.path}: {len(file.receivers)} receivers; data.array {array} has {array.microphones} "
            "microphones: wanted a response for each"
        )
    turned = fit_array(array, file.receivers[:, :2])
    if turned is None:
        raise UserError(f"{where}: {file.path}: all its receivers lie in one place, so directions are unknown; wanted a doa_deg")
    return [turned.doa_deg(source[:2]) for source in file.sources]


def _room(name: str, split: Split, responses: Sequence[Response], data: DataConfig) -> RecordedRoom:
    if len(responses) > MOST_MEASUREMENTS:
        raise UserError(f"{responses[0].where}: room {name} has {len(responses)} places; wanted at most {MOST_MEASUREMENTS}")
    places = range(len(responses))
    least = data.rooms.min_angle_deg
    pairs = tuple(
        (one, other)
        for one in places
        for other in places
        if one != other and angle_between(responses[one].doa_deg, responses[other].doa_deg) >= least
    )
    if not pairs:
        raise UserError(
            f"{responses[0].where}: room {name} has no two places {least:g} degrees apart, as data.rooms.min_angle_deg wants; "
            "wanted places for two speakers"
        )
    return RecordedRoom(name, split, tuple(responses), pairs)


def _header(response: Response) -> tuple[int, float]:
    """Channels and seconds."""
    if response.path.suffix.lower() == SOFA:
        file = open_sofa(response.path)
        return file.channels, file.taps / file.sample_rate
    recording = open_recording(response.path)
    return recording.channels, recording.seconds


def _load(response: Response, sample_rate: int) -> NDArray[np.float32]:
    if response.path.suffix.lower() == SOFA:
        file = open_sofa(response.path)
        sound, rate = file.load(response.measurement), file.sample_rate
    else:
        sound, rate = decode(response.path)
    for channel, peak in enumerate(np.abs(sound).max(axis=1).tolist(), start=1):
        refuse_silent(response.path, peak, f" in channel {channel}")
    return resampled(sound, rate, sample_rate)
