"""Rooms: impulse responses from several source positions to the array, by the image method or from recordings.

A bank of rooms is made once per data set. The data set, the split and the room's number are the seed of its geometry, so the bank
does not depend on the number of processes, and an interrupted bank can be continued.
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
from hwsearch.data.direction import angle_between
from hwsearch.data.processes import each_result
from hwsearch.data.recorded_rooms import Response, check_recorded_rooms, load_responses, read_recorded_rooms
from hwsearch.data.seeding import generator
from hwsearch.errors import UserError
from hwsearch.experiment import DataConfig, RoomConfig, Split
from hwsearch.files.writing import atomic_write_bytes

Progress = Callable[[int, int], None]
"""Called with (done, total)."""

_DIGEST_BYTES = hashlib.sha256().digest_size

WALL_MARGIN_M = 0.4
"""Smallest distance of sources and microphones from every wall."""

MOST_IMAGES = 15_000_000
"""Largest number of images of all sources of a room: about 4 GB of memory, and a minute with 15 microphones."""

RESPONSE_STEP = 2.0**-24
"""Impulse responses are rounded to multiples of this. The last bits of the simulator's filter depend on the processor, and are
far smaller."""

_DELAY_FILTER = 81
"""Taps of pyroomacoustics' fractional-delay filter, which delays everything by half of them."""

_T60_DIGITS = 6
"""Decimals of a measured T60, rounded for the same reason as `RESPONSE_STEP`."""

_DRAWS = 200
"""Largest number of rooms drawn until array and sources fit."""

_ROOMS_TRIED = 100
"""Number of rooms of a split in which the sources are checked to fit."""


@dataclass(frozen=True)
class Room:
    """Geometry of one room; metres, seconds and degrees. Of a recorded room, only the directions are known.

    Attributes:
        index: number in its bank.
        sources_m: positions of the sources.
        doa_deg: direction of each source from the array.
        recorded: where the responses of a recorded room come from.
        pairs: pairs of sources that a mixture may use; empty if it may use any two.
    """

    index: int
    size_m: Point | None
    t60_s: float | None
    centre_m: Point | None
    sources_m: tuple[Point, ...] | None
    doa_deg: tuple[float, ...]
    recorded: tuple[Response, ...] = ()
    pairs: tuple[tuple[int, int], ...] = ()

    def draw_sources(self, rng: np.random.Generator) -> tuple[int, int]:
        """Draw the sources of a target and an interferer."""
        if self.pairs:
            return self.pairs[int(rng.integers(len(self.pairs)))]
        source, other = (int(i) for i in rng.choice(len(self.doa_deg), size=2, replace=False))
        return source, other


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
    """Folder of a split's rooms in a data set."""
    return folder / "rooms" / split.value


def room_file(folder: Path, index: int) -> Path:
    """File of a room's impulse responses."""
    return folder / f"room-{index:05d}.npy"


def draw_room(rng: np.random.Generator, index: int, config: RoomConfig, array: MicrophoneArray) -> Room:
    """Draw a room: size, T60, the array's position and sources in different directions around it.

    A linear array faces one half of the room. Sources are within 0.3 m of the array's height, because the separator gets only the
    DOA in the horizontal plane.

    Raises:
        UserError: array and sources fit in no room within the limits.
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

    All walls have the same absorption, by Eyring's formula, which has a solution for every T60, unlike Sabine's. Responses end
    T60 after the last direct sound, 60 dB below it.
    """
    import pyroomacoustics

    # Each thread adds up its own images, so more threads would change the sums. The default is the number of cores.
    pyroomacoustics.constants.set("num_threads", 1)
    pyroomacoustics.constants.set("frac_delay_length", _DELAY_FILTER)
    if room.size_m is None or room.t60_s is None or room.centre_m is None or room.sources_m is None:
        raise ValueError("a recorded room is not simulated")
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
    """Number of reflections that reach every image within c * T60 along the room's two shortest sides."""
    a, b, _ = sorted(size_m)
    return max(1, math.ceil(SPEED_OF_SOUND * t60_s * math.hypot(a, b) / (a * b) - 1))


def response_taps(t60_s: float, distance_m: float, sample_rate: int) -> int:
    """Samples of an impulse response until T60 after the direct sound from a distance, with the simulator's delay."""
    return math.ceil((t60_s + distance_m / SPEED_OF_SOUND) * sample_rate) + _DELAY_FILTER - 1


def check_rooms(data: DataConfig, data_digest: str) -> None:
    """Raise `UserError` if a room could take too many images, array and sources do not fit, or recorded rooms are unusable.

    Nothing is simulated.
    """
    config = data.rooms
    if config.recorded is not None:
        check_recorded_rooms(data)
        return
    order = image_order(config.size_min_m, config.t60_max_s)
    images = (4 * order**3 + 6 * order**2 + 8 * order + 3) // 3  # lattice points within `order` steps in 3-D
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
    """T60 in seconds of a response [taps], from Schroeder's backward integral.

    The line through the decay from -5 to -25 dB is extended to -60 dB (ISO 3382, T20).

    Returns:
        None if the response ends or decays too early to fit a line.
    """
    energy = np.cumsum(response[::-1].astype(np.float64) ** 2)[::-1]
    decay_db = 10 * np.log10(np.maximum(energy / energy[0], 1e-12))
    start, end = int(np.argmax(decay_db <= -5)), int(np.argmax(decay_db <= -25))
    if end - start < 2:
        return None
    slope = np.polyfit(np.arange(start, end) / sample_rate, decay_db[start:end], 1)[0]
    return round(float(-60.0 / slope), _T60_DIGITS)


def build_bank(data: DataConfig, data_digest: str, split: Split, folder: Path, processes: int, progress: Progress) -> RoomBank:
    """Simulate a split's rooms that are not on disk yet, with one thread in each process; or convert recorded ones."""
    rooms = draw_rooms(data, data_digest, split)
    missing = [room for room in rooms if not room_file(folder, room.index).is_file()]
    there = len(rooms) - len(missing)
    progress(there, len(rooms))
    jobs = [(room, data.array, data.sample_rate, folder) for room in missing]
    with closing(each_result(_make_file, jobs, processes)) as simulated:
        for done, _ in enumerate(simulated, start=there + 1):
            progress(done, len(rooms))
    return RoomBank(folder, rooms)


def draw_rooms(data: DataConfig, data_digest: str, split: Split, count: int | None = None) -> tuple[Room, ...]:
    """Draw the geometry of a split's rooms, or of its first `count`; or read the list of its recorded rooms.

    Raises:
        UserError: array and sources do not fit, or the list is unusable.
    """
    if data.rooms.recorded is not None:
        found = [room for room in read_recorded_rooms(data) if room.split is split]
        return tuple(
            Room(index, None, None, None, None, tuple(one.doa_deg for one in room.responses), room.responses, room.pairs)
            for index, room in enumerate(found)
        )
    array = ARRAYS[data.array]
    return tuple(
        draw_room(generator(data_digest, "room", split, index), index, data.rooms, array)
        for index in range(data.rooms.count.get(split, 0) if count is None else count)
    )


def _make_file(room: Room, array: ArrayName, sample_rate: int, folder: Path) -> None:
    known = room.recorded
    responses = load_responses(known, sample_rate) if known else simulate(room, ARRAYS[array], sample_rate)
    stream = io.BytesIO()
    np.save(stream, responses, allow_pickle=False)
    content = stream.getvalue()
    atomic_write_bytes(room_file(folder, room.index), content + hashlib.sha256(content).digest())


def _unsealed(content: bytes) -> NDArray[np.float32]:
    """The array in a room's file; the SHA-256 of its bytes follows them. Raises `ValueError` if they do not match."""
    saved, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    if hashlib.sha256(saved).digest() != digest:
        raise ValueError("changed since it was written")
    responses: NDArray[np.float32] = np.load(io.BytesIO(saved), allow_pickle=False)
    return responses


def _holds(size: Point, centre: Point, array: MicrophoneArray) -> bool:
    """Whether all microphones of an array at `centre` are far enough from the walls."""
    return all(_clear_of_walls((centre[0] + x, centre[1] + y, centre[2]), size) for x, y in array.positions.tolist())


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


def _triple(values: Point) -> Point:
    x, y, z = (round(value, 4) for value in values)
    return x, y, z
