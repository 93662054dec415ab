"""Parts of a network: what lies together in them."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsearch.network.sites import find_sites
from hwsearch.search.parts import Part, find_parts
from hwsearch.search.space import SearchSpace
from tests.search import structured
from tests.search.structured import KINDS, points


def indices_of(part: Part, space: SearchSpace, point: tuple[int, ...]) -> tuple[int, ...]:
    """The variant of a part at a point, which must be canonical."""
    return tuple(point[len(space.free) + option] for option in part.options)


@pytest.mark.parametrize("kind", KINDS)
def test_each_option_is_in_one_part_and_each_choice_in_one_at_most(kind: str) -> None:
    space = structured.space_of(kind)
    parts = find_parts(space)
    assert sorted(option for part in parts for option in part.options) == list(range(len(space.options)))
    choices = [choice for part in parts for choice in part.choices]
    assert len(choices) == len(set(choices)) > 0
    assert set(choices) < set(range(len(space.free)))
    assert [part.options[0] for part in parts] == sorted(part.options[0] for part in parts)


@pytest.mark.parametrize("kind", KINDS)
def test_variants_are_every_combination_once_and_the_whole_comes_last(kind: str) -> None:
    space, (_, options) = structured.space_of(kind), structured.graph_and_options(structured.experiment_of(kind))
    for part in find_parts(space):
        counts = [len(space.options[option][1]) for option in part.options]
        whole = tuple(count - 1 for count in counts)
        assert part.removes == options.is_block(space.options[part.options[0]][0])
        wanted = set(product(*map(range, counts)))
        if part.removes:  # what a block would keep if it were not left out does not matter
            wanted = {each for each in wanted if each[0] == 1} | {(0, *whole[1:])}
        assert len(part.variants) == len(wanted)
        assert set(part.variants) == wanted
        assert part.variants[-1] == whole
        assert [part.gone(variant) for variant in part.variants] == [part.removes and each[0] == 0 for each in part.variants]


@pytest.mark.parametrize("kind", KINDS)
def test_a_parts_weights_are_those_inside_its_block_or_of_its_channels(kind: str) -> None:
    space, (_, options) = structured.space_of(kind), structured.graph_and_options(structured.experiment_of(kind))
    blocks = {block.name: block.operations for block in options.blocks}
    for part in find_parts(space):
        names = [space.options[option][0] for option in part.options]
        assert len({options.block_around(name) for name in names}) == 1
        inside = blocks[names[0]] if part.removes else options.by_name[names[0]].layers
        wanted = {
            choice
            for choice, (name, _) in enumerate(space.free)
            if name.endswith(".weight") and all(site.removesuffix(".weight") in inside for site in space.members[name])
        }
        assert {choice for choice in part.choices if space.free[choice][0].endswith(".weight")} == wanted


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=20)
@given(st.data())
def test_the_choices_of_a_part_are_gone_where_it_says(kind: str, data: st.DataObject) -> None:
    space, (graph, options) = structured.space_of(kind), structured.graph_and_options(structured.experiment_of(kind))
    point = space.canonical(data.draw(points(space)))
    there = set(find_sites(options.narrowed(graph, space.decode(point).kept)).all)
    for part in find_parts(space):
        variant = indices_of(part, space, point)
        assert variant in part.variants
        for choice in part.choices:
            members = space.members[space.free[choice][0]]
            if part.gone(variant):
                assert there.isdisjoint(members)
            elif all(site.endswith(".weight") for site in members):
                assert there.issuperset(members)


def test_the_parts_of_a_tcn_are_its_blocks() -> None:
    space = structured.space_of("tcn")
    first, second = find_parts(space)
    names = [[space.options[option][0] for option in part.options] for part in (first, second)]
    assert names == [[f"blocks.{number}.kept", f"blocks.{number}.expand.channels"] for number in range(2)]
    assert first.variants == ((0, 2), (1, 0), (1, 1), (1, 2))
    assert [space.free[choice][0] for choice in second.choices] == [
        f"blocks.1.{layer}.weight" for layer in ("expand", "depthwise", "project")
    ]


def test_a_group_across_blocks_lies_in_no_part() -> None:
    space = structured.space_of("grouped")
    (across,) = (choice for choice, (name, _) in enumerate(space.free) if name == "blocks.0.expand.weight")
    assert all(across not in part.choices for part in find_parts(space))


def test_a_sum_that_two_blocks_remove_lies_in_no_part() -> None:
    space = structured.space_of("conv-tasnet")
    sites = {space.free[choice][0] for part in find_parts(space) for choice in part.choices}
    assert "add.output" in dict(space.free)
    assert "add.output" not in sites


def test_without_options_there_are_no_parts() -> None:
    space = structured.space_of("tcn")
    assert find_parts(SearchSpace(space.widths)) == ()
