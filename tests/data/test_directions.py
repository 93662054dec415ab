"""Directions found in recordings: SRP-PHAT is that of another library, and speakers are where they stand in the room."""

import numpy as np
import pyroomacoustics
import pytest
from numpy.typing import NDArray
from scipy.signal import stft

from hwsearch.data.arrays import ARRAYS, MicrophoneArray, microphone_array
from hwsearch.data.directions import MOST_DIRECTIONS, band, directions_looked_at, find_directions, steered_power
from hwsearch.data.rooms import Room, angle_between, draw_room, simulate
from hwsearch.experiment import ArrayConfig, RoomConfig

RATE = 8000


def speech(rng: np.random.Generator, seconds: float) -> NDArray[np.float64]:
    """Sound with what directions are found by: voiced syllables of changing pitch, with pauses between them."""
    parts = []
    while sum(map(len, parts)) < seconds * RATE:
        length = int(rng.uniform(0.08, 0.25) * RATE)
        pitch = rng.uniform(90, 240) * (1 + 0.2 * np.linspace(-1, 1, length) * rng.uniform(-1, 1))
        phase = 2 * np.pi * np.cumsum(pitch) / RATE
        tones = sum(np.cos(k * phase + rng.uniform(0, 6)) * rng.uniform(0.1, 1) / k**0.5 for k in range(1, 16))
        parts += [tones * np.hanning(length), np.zeros(int(rng.uniform(0.02, 0.15) * RATE))]
    return np.concatenate(parts)[: int(seconds * RATE)]


def mixed(rng: np.random.Generator, room: Room, array: MicrophoneArray, seconds: float = 4.0) -> NDArray[np.float32]:
    """The first two sources of a room speak at once, equally loud."""
    total = np.zeros((array.microphones, int(seconds * RATE)))
    for responses in simulate(room, array, RATE)[:2]:
        dry = speech(rng, seconds)
        heard = np.stack([np.convolve(dry, response)[: len(dry)] for response in responses])
        total += heard / heard.std()
    return total.astype(np.float32)


def test_the_power_over_all_frames_is_that_of_pyroomacoustics() -> None:
    array = microphone_array(ArrayConfig(positions_cm=[[0, 0], [4, 1], [-2, 5], [3, -3]]))
    rng = np.random.default_rng(0)
    spectra = stft(rng.standard_normal((4, 4000)), RATE, nperseg=512, noverlap=256, boundary=None)[2]
    frequencies = np.fft.rfftfreq(512, 1 / RATE)
    bins = [int(np.flatnonzero(frequencies == hertz)[0]) for hertz in band(RATE)]
    grid = directions_looked_at(array)
    other = pyroomacoustics.doa.SRP(array.positions.T, RATE, 512, c=343.0, azimuth=np.deg2rad(grid))
    other.locate_sources(spectra, 1, freq_bins=bins)
    ours = steered_power(spectra[:, bins].transpose(1, 0, 2).astype(np.complex64), array, RATE).mean(axis=1)
    # Theirs is over the number of pairs of microphones, ours over that of ordered pairs, a microphone with itself included.
    np.testing.assert_allclose(ours, other.grid.values * 6 / 16, rtol=1e-4)


def test_a_plane_wave_comes_from_where_it_comes_from() -> None:
    rng = np.random.default_rng(1)
    for array in (array for array in ARRAYS.values() if array.microphones > 1):
        for doa in (20.0, 90.0, 160.0, *((250.0, 358.0) if array.max_doa_deg == 360 else ())):
            direction = np.array([np.cos(np.deg2rad(doa)), np.sin(np.deg2rad(doa))])
            advance = array.positions @ direction / 343.0
            spectrum = np.fft.rfft(rng.standard_normal(RATE))
            shifts = np.exp(2j * np.pi * np.fft.rfftfreq(RATE, 1 / RATE) * advance[:, None])
            sound = np.fft.irfft(spectrum * shifts, RATE).astype(np.float32)
            first = find_directions([sound], array, RATE)[0]
            assert angle_between(first.doa_deg, doa) <= 2.0, (str(array), doa, first)
            assert first.strength == 1.0


@pytest.mark.parametrize(("name", "wanted"), [("circular6", 0.95), ("linear6", 0.85), ("laptop2", 0.6)])
def test_both_speakers_of_simulated_mixtures_are_mostly_found_within_ten_degrees(name: str, wanted: float) -> None:
    array = ARRAYS[name]  # type: ignore[index]
    config = RoomConfig(count={}, sources_per_room=2, t60_min_s=0.1, t60_max_s=0.3, min_angle_deg=20.0, size_max_m=(6, 6, 3))
    hits = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        room = draw_room(rng, 0, config, array)
        found = find_directions([mixed(rng, room, array)], array, RATE)
        assert 1 <= len(found) <= MOST_DIRECTIONS
        assert [one.strength for one in found] == sorted((one.strength for one in found), reverse=True)
        assert all(0 <= one.doa_deg <= array.max_doa_deg for one in found)
        hits += [min(angle_between(doa, one.doa_deg) for one in found) <= 10 for doa in room.doa_deg]
    assert np.mean(hits) >= wanted, np.mean(hits)


def test_the_pieces_in_which_a_recording_comes_do_not_matter() -> None:
    array, rng = ARRAYS["linear4"], np.random.default_rng(3)
    room = draw_room(rng, 0, RoomConfig(count={}, sources_per_room=2, t60_max_s=0.2), array)
    sound = mixed(rng, room, array, 2.0)
    whole = find_directions([sound], array, RATE)
    for size in (100, 511, 5000):
        pieces = [sound[:, start : start + size] for start in range(0, sound.shape[1], size)]
        found = find_directions(pieces, array, RATE)
        assert [one.doa_deg for one in found] == [one.doa_deg for one in whole]


def test_a_recording_without_a_whole_frame_or_without_sound_has_no_directions() -> None:
    array = ARRAYS["linear4"]
    assert find_directions([np.ones((4, 400), np.float32)], array, RATE) == ()
    assert find_directions([], array, RATE) == ()
    assert find_directions([np.zeros((4, 4000), np.float32)], array, RATE) == ()
