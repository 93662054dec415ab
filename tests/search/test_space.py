from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsearch.errors import UserError
from hwsearch.experiment import SearchConfig, SeparatorConfig
from hwsearch.network.elastic_sites import ElasticSites
from hwsearch.network.sites import find_sites
from hwsearch.search.experiment_space import experiment_space
from hwsearch.search.identity import search_header
from hwsearch.search.record import Header
from hwsearch.search.space import SearchSpace, build_space, ends_seeds, uniform_seeds
from hwsearch.separator.allocation import is_weight, uniform
from hwsearch.separator.configuration import Configuration
from tests.search import structured
from tests.search.structured import KINDS, points
from tests.search.synthetic import make_experiment
from tests.search.synthetic import space_of as space_of_experiment
from tests.separator.small import sites_of

SMALL = sites_of(SeparatorConfig(X=1, R=1))


def space_of(**search: object) -> SearchSpace:
    return build_space(SearchConfig.model_validate(search), SMALL)


SPACE = space_of(weight_bits=[2, 4, 8], activation_bits=[6, 8], fixed={"features": 8, "*.depthwise.weight": 8})


@given(st.tuples(*(st.integers(0, n - 1) for n in SPACE.shape)))
def test_every_point_is_an_allocation_of_all_sites_and_back(point: tuple[int, ...]) -> None:
    configuration = SPACE.decode(point)
    assert tuple(configuration.allocation.by_site) == SMALL.all
    assert configuration.structure == ()
    assert SPACE.encode(configuration) == point


def test_size_counts_the_free_sites_only() -> None:
    # Five weights less the depthwise one, seven activations less the features.
    assert SPACE.size == 3**4 * 2**6


def test_full_precision_is_all_sites_in_floating_point_whatever_the_space_has() -> None:
    assert SPACE.full_precision == Configuration(uniform(SMALL, 32, 32))


def test_a_search_that_has_begun_has_the_space_of_its_header() -> None:
    experiment = make_experiment(20, groups=[["*.depthwise.weight", "*.project.weight"]], fixed={"features": 8})
    space = space_of_experiment(experiment)
    header = Header.model_validate_json(search_header(experiment, space, {}).model_dump_json())
    assert header.space == space
    assert space.groups


def test_fixed_sites_keep_their_width_everywhere() -> None:
    for point in (tuple(0 for _ in SPACE.shape), tuple(n - 1 for n in SPACE.shape)):
        widths = SPACE.decode(point).allocation.by_site
        assert widths["features"] == 8
        assert widths["blocks.0.depthwise.weight"] == 8


def test_the_last_matching_pattern_holds() -> None:
    space = space_of(fixed={"*.weight": 8, "mask_head.weight": 16})
    assert space.decode(()).allocation.by_site["mask_head.weight"] == 16
    assert space.decode(()).allocation.by_site["input_proj.weight"] == 8


@pytest.mark.parametrize(
    ("fixed", "message"),
    [
        ({"block.*": 8}, r"pattern 'block\.\*' matches no site"),
        ({"blocks.0.*": 3}, r"pattern 'blocks\.0\.\*' sets site 'blocks\.0\.expand\.output' to 3 bits"),
        ({"mask_head.output": 3}, r"'mask_head.output' to 3 bits; wanted one of \[4, 5, 6, 7, 8, 16, 32\]"),
    ],
)
def test_wrong_fixed_widths_are_refused_by_name(fixed: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        space_of(fixed=fixed)


def test_foreign_allocations_have_no_point() -> None:
    with pytest.raises(ValueError, match=r"width 5 of site 'input_proj\.weight'"):
        SPACE.encode(Configuration(uniform(SMALL, 5, 8)))
    with pytest.raises(ValueError, match="sites or options are not those"):
        SPACE.encode(Configuration(uniform(sites_of(SeparatorConfig(X=2, R=1)), 4, 8)))
    with pytest.raises(ValueError, match="outside its"):
        SPACE.decode((3,) * len(SPACE.shape))


def test_uniform_seeds_are_every_weight_width_with_every_activation_width() -> None:
    space = space_of(weight_bits=[2, 4, 8], activation_bits=[6, 8])
    found = {space.decode(seed.point) for seed in uniform_seeds(space)}
    assert found == {Configuration(uniform(SMALL, w, a)) for w in (2, 4, 8) for a in (6, 8)}


def test_ends_seeds_keep_first_and_last_weights_at_8() -> None:
    space = space_of(weight_bits=[2, 4, 8, 16], activation_bits=[6, 8])
    seeds = [space.decode(seed.point).allocation.by_site for seed in ends_seeds(space)]
    assert len(seeds) == 2
    for widths, inner in zip(seeds, (2, 4), strict=True):
        weights = [widths[site] for site in SMALL.weights]
        assert (weights[0], weights[-1]) == (8, 8)
        assert set(weights[1:-1]) == {inner}
        assert {bits for site, bits in widths.items() if not is_weight(site)} == {8}


def test_there_is_no_ends_seed_without_8_bits() -> None:
    assert ends_seeds(space_of(weight_bits=[2, 4])) == []


def test_a_space_of_constants_has_one_allocation() -> None:
    space = space_of(weight_bits=[4], activation_bits=[8])
    assert space.size == 1
    assert space.decode(()) == Configuration(uniform(SMALL, 4, 8))


# Groups


BLOCK = ("blocks.0.expand.weight", "blocks.0.depthwise.weight", "blocks.0.project.weight")


def test_the_sites_of_a_group_share_a_width_everywhere() -> None:
    space = space_of(weight_bits=[2, 4, 8], groups=[["blocks.0.*.weight"], ["mask*", "input_proj.weight"]])
    # The second group holds activations too, at 8 bits only: it is a constant.
    assert [name for name, _ in space.free] == [BLOCK[0]]
    assert space.members[BLOCK[0]] == BLOCK
    assert (space.shape, space.size) == ((3,), 3)
    for index, bits in enumerate((2, 4, 8)):
        configuration = space.decode((index,))
        widths = configuration.allocation.by_site
        assert {widths[site] for site in BLOCK} == {bits}
        assert widths["input_proj.weight"] == widths["mask_head.weight"] == 8
        assert space.encode(configuration) == (index,)
    for seed in uniform_seeds(space) + ends_seeds(space):
        assert len({space.decode(seed.point).allocation.by_site[site] for site in BLOCK}) == 1


def test_a_group_may_take_the_widths_that_all_its_sites_may() -> None:
    space = space_of(
        weight_bits=[2, 3, 4, 6, 8],
        allowed={BLOCK[1]: [3, 4, 5, 8, 16], BLOCK[2]: [2, 3, 4, 5, 8]},
        groups=[["blocks.0.*.weight"]],
    )
    assert dict(space.free)[BLOCK[0]] == (3, 4, 8)
    assert all(dict(space.widths)[site] == (3, 4, 8) for site in BLOCK)
    assert dict(space.free_sites).keys() >= set(BLOCK)


def test_a_group_with_a_fixed_site_has_its_width() -> None:
    space = space_of(weight_bits=[2, 4, 8], fixed={BLOCK[1]: 4}, groups=[["blocks.0.*.weight"]])
    assert all(space.decode((0,) * len(space.shape)).allocation.by_site[site] == 4 for site in BLOCK)
    assert not set(BLOCK) & dict(space.free_sites).keys()


@given(st.data())
def test_points_and_allocations_of_grouped_spaces_are_one_to_one(data: st.DataObject) -> None:
    sites = list(SMALL.weights)
    shuffled = data.draw(st.permutations(sites))
    cut = data.draw(st.integers(0, len(sites)))
    groups = [group for group in (shuffled[:cut], shuffled[cut:]) if group]
    space = space_of(weight_bits=[2, 8], activation_bits=[8], groups=groups)
    assert len(space.free) == len(groups)
    configurations = [space.decode(point) for point in product(*(range(n) for n in space.shape))]
    assert len(set(configurations)) == space.size == 2 ** len(groups)
    assert [space.encode(each) for each in configurations] == list(product(*(range(n) for n in space.shape)))
    for configuration in configurations:
        assert all(len({configuration.allocation.by_site[site] for site in group}) == 1 for group in groups)


def test_an_allocation_with_several_widths_in_a_group_has_no_point() -> None:
    space = space_of(weight_bits=[2, 4], groups=[["blocks.0.*.weight"]])
    mixed = Configuration.of(uniform(SMALL, 2, 8).by_site | {BLOCK[2]: 4})
    with pytest.raises(ValueError, match="are a group of the space and have several widths"):
        space.encode(mixed)


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"groups": [["block.*"]]}, r"search\.groups: pattern 'block\.\*' matches no site; sites are like 'input_proj\.weight'"),
        (
            {"groups": [["blocks.0.*.weight"], ["*.depthwise.weight"]]},
            r"search\.groups: site 'blocks\.0\.depthwise\.weight' stands in two groups",
        ),
        (
            {"groups": [["blocks.0.*.weight"]], "fixed": {BLOCK[0]: 4, BLOCK[1]: 8}},
            r"search\.groups: no width that all sites of a group may take; they may take 'blocks\.0\.expand\.weight' \[4\], ",
        ),
        ({"allowed": {"nowhere": [4]}}, r"search\.allowed: pattern 'nowhere' matches no site"),
        (
            {"allowed": {"mask_head.output": [3, 4]}},
            r"search\.allowed: pattern 'mask_head.output' sets site 'mask_head.output' to 3 bits; wanted one of",
        ),
    ],
)
def test_wrong_groups_and_widths_are_refused_by_name(search: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        space_of(**search)
    assert "\n" not in str(refused.value)


def test_sites_that_one_list_matches_twice_are_one_group() -> None:
    space = space_of(weight_bits=[2, 4], groups=[["blocks.0.*.weight", "*.depthwise.weight"]])
    assert space.groups == (BLOCK,)


# Widths of single sites


def test_allowed_widths_hold_instead_of_the_common_ones_and_the_last_match_holds() -> None:
    space = space_of(
        weight_bits=[2, 4],
        allowed={"blocks.*.weight": [3, 16], BLOCK[1]: [8], "mask_head.output": [4, 8]},
        fixed={BLOCK[2]: 6},
    )
    widths = dict(space.widths)
    assert widths["input_proj.weight"] == (2, 4)
    assert (widths[BLOCK[0]], widths[BLOCK[1]], widths[BLOCK[2]]) == ((3, 16), (8,), (6,))
    assert (widths["mask_head.output"], widths["features"]) == ((4, 8), (8,))
    assert space.fixed == {BLOCK[2]}


def nearest(widths: tuple[int, ...], wanted: int) -> int:
    """By hand: the least distance, the wider one where two are as near."""
    distance = min(abs(bits - wanted) for bits in widths)
    return max(bits for bits in widths if abs(bits - wanted) == distance)


NARROW_OR_WIDE = st.sets(st.sampled_from([2, 3, 4, 6, 8, 16]), min_size=1, max_size=4).map(sorted)


@given(st.dictionaries(st.sampled_from(SMALL.weights), NARROW_OR_WIDE, max_size=4), st.booleans())
def test_sites_that_cannot_take_a_seeds_width_take_the_nearest(allowed: dict[str, list[int]], grouped: bool) -> None:
    if grouped:
        allowed = {site: bits for site, bits in allowed.items() if site not in BLOCK}
    space = space_of(weight_bits=[2, 4, 8], allowed=allowed, groups=[["blocks.0.*.weight"]] if grouped else [])
    widths = dict(space.widths)
    free = [site for site, options in space.widths if len(options) > 1 and is_weight(site)]
    wanted = sorted({bits for site in free for bits in widths[site]}) or [8]
    found = [space.decode(seed.point).allocation.by_site for seed in uniform_seeds(space)]
    assert {tuple(row[site] for site in free) for row in found} == {
        tuple(nearest(widths[site], bits) for site in free) for bits in wanted
    }
    first, last = SMALL.weights[0], SMALL.weights[-1]
    ends = [site for site in (first, last) if len(widths[site]) > 1 and 8 in widths[site]]
    found = [space.decode(seed.point).allocation.by_site for seed in ends_seeds(space)]
    assert {tuple(row[site] for site in free) for row in found} == (
        {tuple(8 if site in ends else nearest(widths[site], bits) for site in free) for bits in wanted if bits < 8}
        if ends
        else set()
    )


# Spaces that leave out parts of the network


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=25)
@given(st.data())
def test_a_point_means_what_its_canonical_point_means(kind: str, data: st.DataObject) -> None:
    space = structured.space_of(kind)
    point = data.draw(points(space))
    configuration = space.decode(point)
    canonical = space.canonical(point)
    assert space.decode(canonical) == configuration
    assert space.canonical(canonical) == space.encode(configuration) == canonical


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=25)
@given(st.data())
def test_a_configuration_has_the_sites_of_what_its_structure_keeps(kind: str, data: st.DataObject) -> None:
    space, (graph, options) = structured.space_of(kind), structured.graph_and_options(structured.experiment_of(kind))
    point = data.draw(points(space))
    configuration = space.decode(point)
    chosen = {name: values[index] for (name, values), index in zip(space.variables, point, strict=True)}
    structure = {name: chosen[name] for name, _ in space.options}
    left = options.narrowed(graph, structure)
    assert set(configuration.allocation.by_site) == set(find_sites(left).all)
    assert [site for site, _ in space.widths if site in configuration.allocation.by_site] == [*configuration.allocation.by_site]
    # What is kept is what was chosen, but for what is whole, and for channels of blocks that are left out.
    around = {name: options.block_around(name) for name in structure}
    gone = {name for name, block in around.items() if block != name and structure.get(block or "") == 0}
    part = {name: kept for name, kept in structure.items() if kept != options.whole(name)}
    assert configuration.kept == {name: kept for name, kept in part.items() if name not in gone}
    assert options.narrowed(graph, configuration.kept).operations == left.operations
    for name, members in space.members.items():
        assert {configuration.allocation.by_site.get(site, chosen[name]) for site in members} == {chosen[name]}


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=25)
@given(st.data())
def test_a_canonical_point_has_everything_whole_and_widest_that_does_not_matter(kind: str, data: st.DataObject) -> None:
    space, (_, options) = structured.space_of(kind), structured.graph_and_options(structured.experiment_of(kind))
    point = data.draw(points(space))
    there = space.decode(point).allocation.by_site
    chosen = {name: values[index] for (name, values), index in zip(space.variables, point, strict=True)}
    wanted = {
        name: chosen[name] if any(site in there for site in space.members[name]) else widths[-1] for name, widths in space.free
    }
    for name, _ in space.options:
        block = options.block_around(name)
        gone = block not in (None, name) and chosen.get(str(block)) == 0
        wanted[name] = options.whole(name) if gone else chosen[name]
    found = {name: values[index] for (name, values), index in zip(space.variables, space.canonical(point), strict=True)}
    assert found == wanted


def test_options_are_what_patterns_keep_and_the_whole() -> None:
    space = structured.space_of("tcn")
    assert space.options == (
        ("blocks.0.kept", (0, 1)),
        ("blocks.1.kept", (0, 1)),
        ("blocks.0.expand.channels", (4, 8, 16)),
        ("blocks.1.expand.channels", (4, 8, 16)),
    )
    assert space.shape == (*(6,) * 8, 2, 2, 3, 3)
    assert space.size == 6**8 * 36


@pytest.mark.parametrize(
    ("structure", "options"),
    [
        ({"*": [1.0]}, {}),
        ({"blocks.1.kept": [0, 1]}, {"blocks.1.kept": (0, 1)}),
        (
            {"*.channels": [0.5], "blocks.1.*.channels": [0.25, 1]},
            {"blocks.0.expand.channels": (8, 16), "blocks.1.expand.channels": (4, 16)},
        ),
        ({"blocks.1.*.channels": [0.1, 0.12, 0.99]}, {"blocks.1.expand.channels": (2, 16)}),  # rounded to 2, 2 and 16
        ({"*.kept": [0], "blocks.0.kept": [1]}, {"blocks.1.kept": (0, 1)}),
    ],
)
def test_the_last_pattern_of_an_option_holds(structure: dict[str, list[float]], options: dict[str, tuple[int, ...]]) -> None:
    space = experiment_space(make_experiment(20, separator=structured.TCN, structure=structure))
    assert dict(space.options) == options


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        (
            {"block.*": [0]},
            r"'block\.\*' matches nothing that can be left out; options are like 'blocks\.0\.kept' or 'blocks\.0\.expand",
        ),
        (
            {"*.channels": [0.02, 0.5]},
            r"'\*\.channels' keeps 0\.02 of the 16 channels of 'blocks\.0\.expand\.channels'; wanted one",
        ),
        ({"*.channels": [0]}, r"'\*\.channels' keeps 0 of the 16 channels of 'blocks\.0\.expand\.channels'; wanted one at least"),
        ({"blocks.1.*": [0.5]}, r"'blocks\.1\.\*' keeps 0\.5 of block 'blocks\.1\.kept'; wanted 0, or the whole"),
    ],
)
def test_what_cannot_be_left_out_is_refused_by_name(structure: dict[str, list[float]], message: str) -> None:
    with pytest.raises(UserError, match=rf"^search\.structure: pattern {message}") as refused:
        experiment_space(make_experiment(20, separator=structured.TCN, structure=structure))
    assert "\n" not in str(refused.value)


def test_a_space_is_built_from_sites_and_what_can_be_left_out() -> None:
    experiment = structured.experiment_of("tcn")
    graph, options = structured.graph_and_options(experiment)
    built = build_space(experiment.search, find_sites(graph), ElasticSites(graph, options))
    assert built == structured.space_of("tcn")
    point = (*(0,) * 8, 0, 1, 0, 0)
    assert built.decode(point) == structured.space_of("tcn").decode(point)


def test_a_foreign_structure_has_no_point() -> None:
    space = structured.space_of("tcn")
    whole = space.decode(tuple(count - 1 for count in space.shape)).allocation.by_site
    inside = {site: bits for site, bits in whole.items() if not site.startswith("blocks.0.")}
    for widths, structure, message in (
        (whole, {"blocks.9.kept": 0}, "unknown option 'blocks.9.kept'"),
        (whole, {"blocks.0.expand.channels": 17}, "wanted 1 to 16"),
        (whole, {"blocks.0.expand.channels": 5}, r"'blocks.0.expand.channels' is kept at 5, outside the space \(\[4, 8, 16\]\)"),
        (whole, {"blocks.0.expand.channels": 16}, "sites or options are not those"),
        (whole, {"blocks.0.kept": 0}, "sites or options are not those"),
        (inside, {}, "sites or options are not those"),
        (inside, {"blocks.1.kept": 0}, "sites or options are not those"),
        (inside, {"blocks.0.kept": 0, "blocks.0.expand.channels": 4}, "sites or options are not those"),
    ):
        with pytest.raises(ValueError, match=message):
            space.encode(Configuration.of(widths, structure))
    assert space.encode(Configuration.of(inside, {"blocks.0.kept": 0})) == (*(5,) * 8, 0, 1, 2, 2)


def test_seeds_and_full_precision_leave_nothing_out() -> None:
    space = structured.space_of("conv-tasnet")
    sites = {site for site, _ in space.widths}
    for configuration in (space.full_precision, *(space.decode(seed.point) for seed in uniform_seeds(space) + ends_seeds(space))):
        assert configuration.structure == ()
        assert configuration.allocation.by_site.keys() == sites
    assert len(uniform_seeds(space)) == 6


def test_the_space_of_a_header_has_options_but_no_configurations() -> None:
    experiment, space = structured.experiment_of("tcn"), structured.space_of("tcn")
    header = Header.model_validate_json(search_header(experiment, space, {}).model_dump_json())
    assert header.space == space
    assert header.space.shape == space.shape
    with pytest.raises(ValueError, match="wants the network"):
        header.space.decode((0,) * len(space.shape))
