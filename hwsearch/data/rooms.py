"""Simulated rooms: impulse responses from several source positions to the array, by the image method.

A bank of rooms is made once per data set. A room's geometry is drawn from a generator seeded by the data set, the split and
the room's number, so the bank is the same whatever the number of processes, and an interrupted bank continues.
"""

import hashlib
import io
import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError

import numpy as np
from numpy.typing import NDArray

from hwsearch.data.arrays import ARRAYS, SPEED_OF_SOUND, ArrayName, MicrophoneArray, Point
from hwsearch.data.processes import in_processes
from hwsearch.data.seeding import generator
from hwsearch.errors import UserError
from hwsearch.experiment import DataConfig, RoomConfig, Split
from hwsearch.files.writing import atomic_write_bytes

Progress = Callable[[int, int], None]
"""Called with (done, total)."""

_DIGEST_BYTES = hashlib.sha256().digest_size

WALL_MARGIN_M = 0.4
"""Sources and microphones stay this far from every wall."""

ENDED = "a process that simulates rooms was ended from outside; the same command goes on where it stopped"

MOST_IMAGES = 15_000_000
"""Images of all sources of a room that are simulated at most: about 4 GB of memory, and a minute for 15 microphones."""

RESPONSE_STEP = 2.0**-24
"""Impulse responses are rounded to multiples of this. The filter behind the image method depends on the processor in its last
bits, which are far smaller."""

_DELAY_FILTER = 81
"""Taps of pyroomacoustics' fractional-delay filter; half of them delay everything."""

_T60_DIGITS = 6
"""Decimals of a measured T60, for the same reason."""

_DRAWS = 200
"""Rooms drawn at most until array and sources fit."""

_ROOMS_TRIED = 100
"""Rooms of a split that are drawn to see whether the sources fit."""


@dataclass(frozen=True)
class Room:
    """Geometry of one room; metres, seconds and degrees.

    Attributes:
        sources: [sources][3] positions.
        doa_deg: direction of each source from the array.
    """

    index: int
    size_m: Point
    t60_s: float
    centre_m: Point
    sources_m: tuple[Point, ...]
    doa_deg: tuple[float, ...]


@dataclass(frozen=True)
class RoomBank:
    """A split's rooms with their impulse responses on disk."""

    folder: Path
    rooms: tuple[Room, ...]

    def impulse_responses(self, index: int) -> NDArray[np.float32]:
        """[sources, mics, taps] of one room.

        Raises:
            UserError: the file is missing or damaged.
        """
        path = room_file(self.folder, index)
        try:
            return _unsealed(path.read_bytes())
        except (OSError, ValueError, EOFError, SyntaxError, TokenError):  # the last two from a header that NumPy tries to repair
            raise UserError(f"{path}: unreadable impulse responses; delete the file and build the data again") from None


def rooms_folder(folder: Path, split: Split) -> Path:
    """Where a data set's folder has the rooms of a split."""
    return folder / "rooms" / split.value


def room_file(folder: Path, index: int) -> Path:
    """Where a room's impulse responses are."""
    return folder / f"room-{index:05d}.npy"


def draw_room(rng: np.random.Generator, index: int, config: RoomConfig, array: MicrophoneArray) -> Room:
    """Draw a room: size, T60, the array's place and sources at different directions around it.

    The linear array faces one half of the room; sources are at its height give or take 0.3 m, since a DOA in the horizontal
    plane is all the separator is told.

    Raises:
        UserError: no room within the limits takes array and sources (distances or angles too large for the sizes).
    """
    for _ in range(_DRAWS):
        x, y, z = (float(side) for side in rng.uniform(config.size_min_m, config.size_max_m))
        size = (x, y, z)
        t60 = float(rng.uniform(config.t60_min_s, config.t60_max_s))
        centre = (float(rng.uniform(0.35, 0.65)) * x, float(rng.uniform(0.15, 0.5)) * y, float(rng.uniform(1.0, 1.7)))
        placed = _place_sources(rng, config, array, size, centre) if _holds(size, centre, array) else None
        if placed is not None:
            sources, doas = placed
            return Room(index, _triple(size), t60, _triple(centre), tuple(_triple(s) for s in sources), tuple(doas))
    raise UserError(
        f"data.rooms: the array and {config.sources_per_room} sources {config.min_angle_deg} degrees apart, "
        f"{config.distance_min_m} to {config.distance_max_m} m away, fit in none of {_DRAWS} rooms drawn; wanted larger rooms or "
        "milder limits"
    )


def simulate(room: Room, array: MicrophoneArray, sample_rate: int) -> NDArray[np.float32]:
    """Impulse responses [sources, mics, taps] by the image method of pyroomacoustics.

    One absorption for all walls, by Eyring's formula (which, unlike Sabine's, has a solution for every T60); image order high
    enough for T60; the tail is cut T60 after the last direct sound, where it is 60 dB down.
    """
    import pyroomacoustics

    # Each thread adds up its own images, so the number of threads, by default that of the machine's cores, would change the sums.
    pyroomacoustics.constants.set("num_threads", 1)
    pyroomacoustics.constants.set("frac_delay_length", _DELAY_FILTER)
    absorption = eyring_absorption(room.size_m, room.t60_s)
    shoebox = pyroomacoustics.ShoeBox(
        room.size_m,
        fs=sample_rate,
        materials=pyroomacoustics.Material(absorption),
        max_order=image_order(room.size_m, room.t60_s),
    )
    for source in room.sources_m:
        shoebox.add_source(source)
    heights = np.full((array.microphones, 1), room.centre_m[2])
    shoebox.add_microphone_array(np.hstack([np.array(room.centre_m[:2]) + array.positions, heights]).T)
    shoebox.compute_rir()
    taps = response_taps(room.t60_s, max(math.dist(source, room.centre_m) for source in room.sources_m), sample_rate)
    responses = np.zeros((len(room.sources_m), array.microphones, taps), dtype=np.float32)
    for m, row in enumerate(shoebox.rir):
        for s, response in enumerate(row):
            kept = min(taps, len(response))
            responses[s, m, :kept] = np.rint(response[:kept] / RESPONSE_STEP) * RESPONSE_STEP
    return responses


def eyring_absorption(size_m: Sequence[float], t60_s: float) -> float:
    """Energy absorption of the walls for a T60: a = 1 - exp(-24 ln(10) V / (c S T60)) (Eyring, JASA 1930)."""
    x, y, z = size_m
    surface = 2 * (x * y + x * z + y * z)
    return 1.0 - math.exp(-24 * math.log(10) * x * y * z / (SPEED_OF_SOUND * surface * t60_s))


def image_order(size_m: Sequence[float], t60_s: float) -> int:
    """Reflections needed so that every image within c * T60 is there along the room's two shortest sides."""
    a, b, _ = sorted(size_m)
    return max(1, math.ceil(SPEED_OF_SOUND * t60_s * math.hypot(a, b) / (a * b) - 1))


def response_taps(t60_s: float, distance_m: float, sample_rate: int) -> int:
    """Samples of an impulse response: until T60 after the direct sound from so far away, and the simulator's own delay."""
    return math.ceil((t60_s + distance_m / SPEED_OF_SOUND) * sample_rate) + _DELAY_FILTER - 1


def check_rooms(data: DataConfig, data_digest: str) -> None:
    """Refuse rooms that cannot be simulated; no sound is simulated.

    Raises:
        UserError: a room may take too many images, or array and sources do not fit.
    """
    config = data.rooms
    order = image_order(config.size_min_m, config.t60_max_s)
    images = (4 * order**3 + 6 * order**2 + 8 * order + 3) // 3  # places within `order` reflections, in three dimensions
    if images * config.sources_per_room > MOST_IMAGES:
        size = " x ".join(f"{side:g}" for side in config.size_min_m)
        raise UserError(
            f"data.rooms: a room of {size} m with a T60 of {config.t60_max_s:g} s takes {images:,} images for each of "
            f"{config.sources_per_room} sources; wanted at most {MOST_IMAGES:,} in all: a larger size_min_m, a smaller t60_max_s "
            "or fewer sources_per_room"
        )
    for split, count in config.count.items():
        draw_rooms(data, data_digest, split, min(count, _ROOMS_TRIED))


def measure_t60(response: NDArray[np.float32], sample_rate: int) -> float | None:
    """T60 from Schroeder's backward integral: the line through -5 and -25 dB, extended to -60 (ISO 3382, T20).

    Args:
        response: [taps].
        sample_rate: Hz.

    Returns:
        Seconds, or None where the response ends or falls before a line can be laid through it.
    """
    energy = np.cumsum(response[::-1].astype(np.float64) ** 2)[::-1]
    decay_db = 10 * np.log10(np.maximum(energy / energy[0], 1e-12))
    start, end = int(np.argmax(decay_db <= -5)), int(np.argmax(decay_db <= -25))
    if end - start < 2:
        return None
    slope = np.polyfit(np.arange(start, end) / sample_rate, decay_db[start:end], 1)[0]
    return round(float(-60.0 / slope), _T60_DIGITS)


def build_bank(data: DataConfig, data_digest: str, split: Split, folder: Path, processes: int, progress: Progress) -> RoomBank:
    """Simulate a split's rooms that are not on disk yet; every process has one thread."""
    rooms = draw_rooms(data, data_digest, split)
    missing = [room for room in rooms if not room_file(folder, room.index).is_file()]
    progress(len(rooms) - len(missing), len(rooms))
    if processes <= 1 or len(missing) < 2:
        for done, room in enumerate(missing, start=1):
            _simulate_to_file(room, data.array, data.sample_rate, folder)
            progress(len(rooms) - len(missing) + done, len(rooms))
    else:
        jobs = [(room, data.array, data.sample_rate, folder) for room in missing]
        with closing(in_processes(_simulate_to_file, jobs, processes, ENDED)) as simulated:
            for done, _ in enumerate(simulated, start=1):
                progress(len(rooms) - len(missing) + done, len(rooms))
    return RoomBank(folder, rooms)


def draw_rooms(data: DataConfig, data_digest: str, split: Split, count: int | None = None) -> tuple[Room, ...]:
    """The geometry of a split's rooms, or of its first `count`; no sound is simulated.

    Raises:
        UserError: array and sources do not fit.
    """
    array = ARRAYS[data.array]
    return tuple(
        draw_room(generator(data_digest, "room", split, index), index, data.rooms, array)
        for index in range(data.rooms.count.get(split, 0) if count is None else count)
    )


def _simulate_to_file(room: Room, array: ArrayName, sample_rate: int, folder: Path) -> None:
    responses = simulate(room, ARRAYS[array], sample_rate)
    stream = io.BytesIO()
    np.save(stream, responses, allow_pickle=False)
    content = stream.getvalue()
    atomic_write_bytes(room_file(folder, room.index), content + hashlib.sha256(content).digest())


def _unsealed(content: bytes) -> NDArray[np.float32]:
    """The impulse responses in a room's file: an array with the SHA-256 of it behind, which earlier versions did not write.

    Raises:
        ValueError: no array, or one that changed since it was written.
        EOFError: nothing there.
    """
    digest = hashlib.sha256(content[:-_DIGEST_BYTES]).digest()
    content = content.removesuffix(digest)
    stream = io.BytesIO(content)
    responses: NDArray[np.float32] = np.load(stream, allow_pickle=False)
    if stream.tell() != len(content):
        raise ValueError("the digest behind it is of something else")
    return responses


def _holds(size: Point, centre: Point, array: MicrophoneArray) -> bool:
    """Whether all microphones of an array at `centre` are far enough from the walls."""
    places = [(centre[0] + x, centre[1] + y, centre[2]) for x, y in array.positions.tolist()]
    return all(_clear_of_walls(place, size) for place in places)


def _clear_of_walls(place: Point, size: Point) -> bool:
    return all(WALL_MARGIN_M < along < side - WALL_MARGIN_M for along, side in zip(place, size, strict=True))


def _place_sources(
    rng: np.random.Generator, config: RoomConfig, array: MicrophoneArray, size: Point, centre: Point
) -> tuple[list[Point], list[float]] | None:
    sources: list[Point] = []
    doas: list[float] = []
    for _ in range(60 * config.sources_per_room):
        doa = float(rng.uniform(0.0, array.max_doa_deg))
        distance = float(rng.uniform(config.distance_min_m, config.distance_max_m))
        angle = math.radians(doa)
        east, north, up = distance * math.cos(angle), distance * math.sin(angle), float(rng.uniform(-0.3, 0.3))
        position = (centre[0] + east, centre[1] + north, centre[2] + up)
        if _clear_of_walls(position, size) and all(angle_between(doa, other) >= config.min_angle_deg for other in doas):
            sources.append(position)
            doas.append(doa)
        if len(sources) == config.sources_per_room:
            return sources, doas
    return None


def angle_between(first_deg: float, second_deg: float) -> float:
    """Angle between two directions, 0 to 180 degrees."""
    difference = abs(first_deg - second_deg) % 360.0
    return min(difference, 360.0 - difference)


def _triple(values: Point) -> Point:
    x, y, z = (round(value, 4) for value in values)
    return x, y, z
