from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyroomacoustics
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from hwsearch.data.arrays import ARRAYS, SPEED_OF_SOUND
from hwsearch.data.rooms import (
    MOST_IMAGES,
    RoomBank,
    angle_between,
    build_bank,
    check_rooms,
    draw_room,
    draw_rooms,
    image_order,
    measure_t60,
    simulate,
)
from hwsearch.errors import UserError
from hwsearch.experiment import ArrayName, CorpusConfig, DataConfig, MixtureConfig, RoomConfig, Split

ROOMS = RoomConfig(count={Split.TEST: 3}, t60_max_s=0.15, sources_per_room=3)
DATA = DataConfig(
    array="linear4",
    corpora=(CorpusConfig(kind="espeak", splits={Split.TEST: 1.0}),),
    rooms=ROOMS,
    mixtures=MixtureConfig(count={Split.TEST: 1}),
)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), name=st.sampled_from(sorted(ARRAYS)))
def test_drawn_rooms_keep_every_limit(seed: int, name: str) -> None:
    config = RoomConfig(count={}, sources_per_room=4)
    room = draw_room(np.random.default_rng(seed), 0, config, ARRAYS[name])
    assert np.all(np.array(room.size_m) >= config.size_min_m)
    assert np.all(np.array(room.size_m) <= config.size_max_m)
    assert config.t60_min_s <= room.t60_s <= config.t60_max_s
    centre = np.array(room.centre_m)
    for source, doa in zip(room.sources_m, room.doa_deg, strict=True):
        assert np.all(np.array(source) > 0.39)
        assert np.all(np.array(source) < np.array(room.size_m) - 0.39)
        offset = np.array(source) - centre
        assert np.rad2deg(np.arctan2(offset[1], offset[0])) % 360 == pytest.approx(doa, abs=0.05)
    angles = [angle_between(a, b) for i, a in enumerate(room.doa_deg) for b in room.doa_deg[:i]]
    assert min(angles) >= config.min_angle_deg


def test_direct_sound_arrives_when_and_as_strong_as_distance_says() -> None:
    array = ARRAYS["linear6"]
    room = draw_rooms(DATA, "x", Split.TEST)[0]
    responses = simulate(room, array, 16000)
    for s, source in enumerate(room.sources_m):
        for m, (x, y) in enumerate(array.positions):
            microphone = np.array(room.centre_m) + np.array([x, y, 0.0])
            distance = np.linalg.norm(np.array(source) - microphone)
            arrival = int(np.argmax(np.abs(responses[s, m]))) - 40  # the simulator's filter delays by 40 samples
            assert arrival == pytest.approx(distance / SPEED_OF_SOUND * 16000, abs=1.5)


def test_longer_reverberation_is_measured_longer() -> None:
    """The image method's own T60 lies within 35 % of the one asked for, and follows its order."""
    room = draw_rooms(DATA, "x", Split.TEST)[1]
    measured = []
    for t60 in (0.12, 0.2, 0.3):
        response = simulate(type(room)(**{**vars(room), "t60_s": t60}), ARRAYS["linear4"], 8000)[0, 0]
        measured.append(measure_t60(response, 8000))
        assert measured[-1] == pytest.approx(t60, rel=0.35)
    assert measured == sorted(measured)


def test_t60_of_an_exponential_decay_is_exact() -> None:
    rng = np.random.default_rng(0)
    time = np.arange(16000) / 8000
    decay = rng.standard_normal(16000) * 10 ** (-3 * time / 0.4)
    assert measure_t60(decay.astype(np.float32), 8000) == pytest.approx(0.4, rel=0.05)


def test_a_room_is_the_same_on_a_machine_with_any_number_of_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    room = draw_rooms(DATA, "x", Split.TEST)[0]
    made = []
    for cores in (1, 3):
        monkeypatch.setitem(pyroomacoustics.parameters._constants, "num_threads", cores)
        made.append(simulate(room, ARRAYS["linear4"], 8000))
    np.testing.assert_array_equal(*made)


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> RoomBank:
    return build_bank(DATA, "x", Split.TEST, tmp_path_factory.mktemp("bank"), 1, lambda done, total: None)


def test_an_interrupted_bank_continues_and_becomes_the_same(bank: RoomBank, tmp_path: Path) -> None:
    whole = {path.name: path.read_bytes() for path in bank.folder.iterdir()}
    (tmp_path / "room-00001.npy").write_bytes(whole["room-00001.npy"])
    told: list[tuple[int, int]] = []
    again = build_bank(DATA, "x", Split.TEST, tmp_path, 1, lambda *done: told.append(done))
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == whole
    assert again.rooms == bank.rooms


def test_damaged_responses_are_named(bank: RoomBank, tmp_path: Path) -> None:
    whole = (bank.folder / "room-00002.npy").read_bytes()
    for length in (0, 5, 200, len(whole) - 33, len(whole) - 1):
        (tmp_path / "room-00002.npy").write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"room-00002\.npy: unreadable"):
            RoomBank(tmp_path, bank.rooms).impulse_responses(2)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_one_flipped_bit_of_the_responses_is_noticed(bank: RoomBank, data: st.DataObject) -> None:
    content = bytearray((bank.folder / "room-00002.npy").read_bytes())
    place = data.draw(st.one_of(st.integers(0, 127), st.integers(0, len(content) - 1)))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    with TemporaryDirectory() as folder:
        (Path(folder) / "room-00002.npy").write_bytes(content)
        with pytest.raises(UserError, match=r"room-00002\.npy: unreadable"):
            RoomBank(Path(folder), bank.rooms).impulse_responses(2)


def test_the_responses_of_a_bank_are_the_simulated_ones(bank: RoomBank) -> None:
    wanted = simulate(bank.rooms[2], ARRAYS["linear4"], DATA.sample_rate)
    np.testing.assert_array_equal(bank.impulse_responses(2), wanted)


def test_responses_lie_on_a_grid_that_hides_the_last_bits_of_the_processor() -> None:
    responses = simulate(draw_rooms(DATA, "x", Split.TEST)[0], ARRAYS["linear4"], 8000)
    steps = responses.astype(np.float64) * 2**24
    np.testing.assert_array_equal(steps, np.rint(steps))
    assert np.abs(steps).max() > 2**17


@settings(max_examples=60, deadline=None)
@given(
    sides=st.tuples(*[st.floats(1.0, 100.0)] * 3),
    t60=st.floats(0.05, 2.0),
    sources=st.integers(2, 16),
    name=st.sampled_from(sorted(ARRAYS)),
)
def test_a_room_that_passes_takes_no_more_images_than_allowed(
    sides: tuple[float, float, float], t60: float, sources: int, name: ArrayName
) -> None:
    rooms = RoomConfig(
        count={Split.TEST: 1}, size_min_m=sides, size_max_m=sides, t60_min_s=t60, t60_max_s=t60, sources_per_room=sources
    )
    try:
        check_rooms(DATA.model_copy(update={"rooms": rooms, "array": name}), "x")
    except UserError as error:
        assert str(error).startswith("data.rooms: ")  # noqa: PT017
        return
    order = image_order(sides, t60)
    layers = [order - abs(z) for z in range(-order, order + 1)]
    images = sum(2 * n**2 + 2 * n + 1 for n in layers)  # squares on their corner, one above the other
    assert images * sources <= MOST_IMAGES


def test_a_small_room_with_a_long_t60_is_refused_with_the_numbers() -> None:
    rooms = RoomConfig(count={Split.TEST: 1}, size_min_m=(2, 2, 2), size_max_m=(2, 2, 2), t60_min_s=2.0, t60_max_s=2.0)
    with pytest.raises(UserError, match=r"a room of 2 x 2 x 2 m with a T60 of 2 s takes 152,583,911 images for each of 4"):
        check_rooms(DATA.model_copy(update={"rooms": rooms}), "x")


@pytest.mark.parametrize("side", [0.9, 1e6])
def test_a_room_has_a_sensible_size(side: float) -> None:
    with pytest.raises(ValidationError, match="size_max_m"):
        RoomConfig(count={}, size_max_m=(side, side, side))


def test_microphones_keep_their_distance_from_the_walls_of_small_rooms() -> None:
    config = RoomConfig(count={}, size_min_m=(2, 2, 2), size_max_m=(2.2, 2.2, 2.2), distance_min_m=0.2, distance_max_m=1.0)
    for name, array in ARRAYS.items():
        for seed in range(20):
            room = draw_room(np.random.default_rng(seed), 0, config, array)
            places = np.array(room.centre_m) + np.pad(array.positions, [(0, 0), (0, 1)])
            assert np.all((places > 0.4 - 1e-4) & (places < np.array(room.size_m) - 0.4 + 1e-4)), name


def test_impossible_rooms_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hwsearch.data.rooms._DRAWS", 10)
    config = RoomConfig(count={}, sources_per_room=16, min_angle_deg=30.0)
    with pytest.raises(UserError, match=r"16 sources 30\.0 degrees apart"):
        draw_room(np.random.default_rng(0), 0, config, ARRAYS["linear4"])
