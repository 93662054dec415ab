"""Arrays: those built in are as their makers say, and one's own may have any plausible geometry and no other."""

import math
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hwsearch.data.arrays import ARRAYS, SPEED_OF_SOUND, choose_pairs, microphone_array
from hwsearch.data.rooms import Room, simulate
from hwsearch.errors import UserError
from hwsearch.experiment import ArrayConfig, Experiment, load_experiment, parse_experiment
from hwsearch.separator.form import DIAGONAL_LOADING, inverse_coherence
from tests.tiny import tiny_content

EXPERIMENTS = Path(__file__).parents[2] / "experiments"

DIGESTS = {
    "comparison.toml": ("f825c4fd3eb0bcfb", "20bbb752957c278e"),
    "conv_tasnet.toml": ("f868e781b521572c", "376ede1ac73129d2"),
    "embedded_base.toml": ("6872ca406e9b066f", "b253ff4ba8ffd9bf"),
    "paper.toml": ("5691f703f4d44b70", "60a6130e850d4f49"),
    "quickstart.toml": ("f617eb7f6fd68490", "d892b0c53e2e00fc"),
    "real_speech.toml": ("f825c4fd3eb0bcfb", "c73b583917ab0dbe"),
}
"""Digests of data and experiment from before there were arrays of one's own."""

POSITIONS = st.lists(st.tuples(*[st.integers(-200, 200)] * 3), min_size=1, max_size=16, unique=True)
"""Places in quarters of a centimetre."""


def parsed(array: Any, **separator: Any) -> Experiment:
    content = tiny_content()
    content["data"]["array"] = array
    return parse_experiment(content | ({"separator": separator} if separator else {}), "mine.toml")


def distances(places: NDArray[np.float64]) -> list[float]:
    return [math.dist(one, other) for one, other in combinations(places.tolist(), 2)]


@pytest.mark.parametrize("name", DIGESTS)
def test_experiments_keep_the_digests_that_run_folders_hold(name: str) -> None:
    experiment = load_experiment(EXPERIMENTS / name)
    assert (experiment.data_digest()[:16], experiment.digest()[:16]) == DIGESTS[name]


def test_built_in_arrays_have_the_dimensions_that_are_stated() -> None:
    for name, array in ARRAYS.items():
        assert name.endswith("mono" if array.microphones == 1 else str(array.microphones))
        assert array.places.mean(axis=0) == pytest.approx([0, 0, 0])
        assert microphone_array(name) is array
        widest = {"linear15": 0.56, "linear6": 0.27, "linear4": 0.12, "laptop2": 0.10, "linear8": 0.21}.get(name)
        if name == "mono":
            assert array.max_doa_deg == 360
        elif widest is None:
            radius = {"circular6": 0.05, "respeaker4": 0.032, "respeaker6": 0.0463}[name]
            assert np.linalg.norm(array.places, axis=1) == pytest.approx([radius] * array.microphones)
            assert array.max_doa_deg == 360
        else:
            assert max(distances(array.places)) == pytest.approx(widest)
            assert not array.places[:, 1:].any()
            assert array.max_doa_deg == 180


@settings(deadline=None, max_examples=60)
@given(POSITIONS, st.tuples(*[st.integers(-300, 300)] * 3))
def test_the_origin_of_ones_own_positions_does_not_matter(quarters: list[tuple[int, int, int]], by: tuple[int, int, int]) -> None:
    positions = [tuple(value / 4 for value in place) for place in quarters]
    moved = [tuple((value + shift) / 4 for value, shift in zip(place, by, strict=True)) for place in quarters]
    try:
        one = microphone_array(ArrayConfig(positions_cm=positions))
    except ValueError:
        assume(False)
    other = microphone_array(ArrayConfig(positions_cm=moved))
    np.testing.assert_allclose(one.places, other.places, atol=1e-12)
    assert (one.pairs, one.max_doa_deg) == (other.pairs, other.max_doa_deg)
    np.testing.assert_allclose(sorted(distances(one.places)), sorted(distances(np.array(positions) / 100)), atol=1e-12)


def test_a_built_in_array_written_out_is_the_same_array() -> None:
    for array in ARRAYS.values():
        written = [[100 * x, 100 * y] for x, y in array.positions]
        again = microphone_array(ArrayConfig(positions_cm=written, pairs=array.pairs))
        np.testing.assert_allclose(again.places, array.places, atol=1e-12)
        assert (again.pairs, again.max_doa_deg) == (array.pairs, array.max_doa_deg)
        assert ArrayConfig.model_validate_json(again.setting.model_dump_json()) == again.setting


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(*[st.integers(-40, 40)] * 3), min_size=2, max_size=9, unique=True))
def test_each_pair_has_the_baseline_that_differs_most_from_those_before(millimetres: list[tuple[int, int, int]]) -> None:
    """Compared in whole millimetres, of which every square is exact."""
    pairs = choose_pairs(np.array(millimetres) / 1000)
    assert len(pairs) == len(set(pairs)) <= len(millimetres)

    def apart(pair: tuple[int, int], others: list[tuple[int, int]]) -> int:
        baseline, *rest = (np.subtract(millimetres[b], millimetres[a]) for a, b in (pair, *others))
        squares = [int(((baseline - sign * other) ** 2).sum()) for other in rest for sign in (1, -1)]
        return min(squares, default=int((baseline**2).sum()))

    every = list(combinations(range(len(millimetres)), 2))
    for place, pair in enumerate(pairs):
        before = list(pairs[:place])
        assert apart(pair, before) == max(apart(other, before) for other in every if other not in before) >= 1
    if len(pairs) < len(millimetres):
        assert all(apart(pair, list(pairs)) == 0 for pair in every), "a baseline is left"


def test_a_line_of_equal_steps_gets_each_of_its_distances_once() -> None:
    places = ARRAYS["linear8"].places
    lengths = sorted(round(100 * math.dist(places[a], places[b])) for a, b in ARRAYS["linear8"].pairs)
    assert lengths == [3, 6, 9, 12, 15, 18, 21]


def test_heights_delay_the_sound_and_lower_the_coherence_but_steer_nothing() -> None:
    flat = microphone_array(ArrayConfig(positions_cm=[[0, 0], [4, 0], [2, 3]]))
    raised = microphone_array(ArrayConfig(positions_cm=[[0, 0, 0], [4, 0, 0], [2, 3, 30]]))
    np.testing.assert_allclose(raised.positions, flat.positions)
    room = Room(0, (5.0, 4.0, 3.0), 0.1, (2.5, 2.0, 1.2), ((2.5, 3.2, 1.3),), (90.0,))
    arrival = np.abs(simulate(room, raised, 16000)[0]).argmax(axis=1)
    for m, place in enumerate(raised.places):
        wanted = math.dist(np.add(room.centre_m, place), room.sources_m[0]) / SPEED_OF_SOUND * 16000 + 40
        assert abs(arrival[m] - wanted) <= 1, m
    bins = 65
    coherence = np.linalg.inv(inverse_coherence(raised, bins, 8000)) * (1 + DIAGONAL_LOADING)
    distance = math.dist((0, 0, 0), (0.02, 0.03, 0.30))
    np.testing.assert_allclose(coherence[:, 0, 2], np.sinc(2 * np.linspace(0, 4000, bins) * distance / 343.0), atol=1e-9)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        ("cube", "data.array is 'cube'; wanted one of 'linear15', "),
        (5, "data.array is 5; wanted one of "),
        ({}, "data.array.positions_cm is missing"),
        ({"positions_cm": []}, "data.array.positions_cm is []; wanted at least 1 entry"),
        ({"positions_cm": [[n, 0] for n in range(17)]}, "wanted at most 16 entries"),
        ({"positions_cm": [[0, 0], [3, 0], [0, 0]]}, "microphones 0 and 2 at one place, [0.0, 0.0]"),
        (
            {"positions_cm": [[0, 0], [0.03, 0], [0.06, 0]]},
            "spans 0.06 cm in all; wanted centimetres, at least 0.5",
        ),
        ({"positions_cm": [[0, 0], [270, 0]]}, "these look like millimetres (27 cm?)"),
        ({"positions_cm": [[0, 0], [3, 0, 1]]}, "rows of 2 and of 3 numbers; wanted [x, y] for each"),
        ({"positions_cm": [[0], [3]]}, "data.array.positions_cm.0 is [0]; wanted at least 2 entries"),
        ({"positions_cm": [[0, 0], [3, "a"]]}, "data.array.positions_cm.1.1 is 'a'; wanted a number"),
        ({"positions_cm": [[0, 0], [0, 3]]}, "is a line, but not along the x axis"),
        ({"positions_cm": [[0, 0, 0], [0, 0, 3]]}, "all microphones above one another"),
        ({"positions_cm": [[0, 0], [3, 0]], "pairs": [[0, 2]]}, "pairs has [0, 2], and there is no microphone 2; wanted 0 to 1"),
        ({"positions_cm": [[0, 0], [3, 0]], "pairs": [[1, 1]]}, "pairs has [1, 1]; wanted two different microphones"),
        ({"positions_cm": [[0, 0], [3, 0]], "pairs": [[0, 1], [1, 0]]}, "pairs has two microphones twice"),
        ({"positions_cm": [[0, 0], [3, 0]], "pairs": []}, "pairs is []; wanted at least one"),
        ({"positions_cm": [[0, 0], [3, 0]], "pairs": [[-1, 0]]}, "data.array.pairs.0.0 is -1; wanted at least 0"),
        ({"positions_cm": [[0, 0], [30, 0]], "pair": []}, "unknown key 'data.array.pair', near to 'data.array.pairs'"),
        ({"positions_cm": [[0, 0], [180, 0]]}, "rooms.distance_min_m is 0.8, and the array reaches 0.90 m from its centre"),
        ({"positions_cm": [[0, 0]]}, "data.array has one microphone, and the network wants a direction"),
    ],
)
def test_an_array_that_cannot_be_is_refused_in_a_line(array: Any, said: str) -> None:
    with pytest.raises(UserError) as refused:
        parsed(array)
    message = str(refused.value)
    assert message.startswith("mine.toml: ")
    assert said in message
    assert "\n" not in message


def test_one_microphone_is_enough_where_no_direction_is_wanted() -> None:
    experiment = parsed({"positions_cm": [[3, 4]]}, network="conv-tasnet")
    array = microphone_array(experiment.data.array)
    assert (array.microphones, array.pairs, array.max_doa_deg) == (1, (), 360)
    assert not array.places.any()


def test_a_line_may_bend_a_little_and_two_microphones_stand_obliquely_no_more_than_that() -> None:
    assert microphone_array(ArrayConfig(positions_cm=[[0, 0], [5, 0.4], [10, 0]])).max_doa_deg == 180
    assert microphone_array(ArrayConfig(positions_cm=[[0, 0], [5, 0.6], [10, 0]])).max_doa_deg == 360
    with pytest.raises(ValueError, match="not along the x axis"):
        ArrayConfig(positions_cm=[[0, 0], [10, 0.6]])


def test_what_positions_say_changes_the_digest_of_the_data_and_how_numbers_are_written_does_not() -> None:
    one, same, other = (parsed({"positions_cm": [[0, 0], [3, y], [6, 0]]}).data_digest() for y in (4, 4.0, 4.5))
    assert one == same != other
