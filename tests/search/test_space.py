import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwsearch.errors import UserError
from hwsearch.experiment import SearchConfig, SeparatorConfig
from hwsearch.search.space import SearchSpace, build_space, ends_seeds, uniform_seeds
from hwsearch.separator.allocation import all_sites, is_weight, uniform, weight_sites

SMALL = SeparatorConfig(X=1, R=1)


def space_of(**search: object) -> SearchSpace:
    return build_space(SearchConfig.model_validate(search), SMALL)


SPACE = space_of(weight_bits=[2, 4, 8], activation_bits=[6, 8], fixed={"features": 8, "*.depthwise.weight": 8})


@given(st.tuples(*(st.integers(0, n - 1) for n in SPACE.shape)))
def test_every_point_is_an_allocation_of_all_sites_and_back(point: tuple[int, ...]) -> None:
    allocation = SPACE.decode(point)
    assert tuple(allocation.by_site) == all_sites(SMALL)
    assert SPACE.encode(allocation) == point


def test_size_counts_the_free_sites_only() -> None:
    # Five weights less the depthwise one, seven activations less the features.
    assert SPACE.size == 3**4 * 2**6


def test_fixed_sites_keep_their_width_everywhere() -> None:
    for point in (tuple(0 for _ in SPACE.shape), tuple(n - 1 for n in SPACE.shape)):
        widths = SPACE.decode(point).by_site
        assert widths["features"] == 8
        assert widths["blocks.0.depthwise.weight"] == 8


def test_the_last_matching_pattern_holds() -> None:
    space = space_of(fixed={"*.weight": 8, "mask_head.*": 16})
    assert space.decode(()).by_site["mask_head.weight"] == 16
    assert space.decode(()).by_site["input_proj.weight"] == 8


@pytest.mark.parametrize(
    ("fixed", "message"),
    [
        ({"block.*": 8}, r"pattern 'block\.\*' matches no site"),
        ({"blocks.0.*": 3}, r"pattern 'blocks\.0\.\*' sets site 'blocks\.0\.input' to 3 bits"),
        ({"masks": 16}, r"'masks' to 16 bits; wanted one of \[4, 5, 6, 7, 8, 32\]"),
    ],
)
def test_wrong_fixed_widths_are_refused_by_name(fixed: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        space_of(fixed=fixed)


def test_foreign_allocations_have_no_point() -> None:
    with pytest.raises(ValueError, match=r"width 5 of site 'input_proj\.weight'"):
        SPACE.encode(uniform(SMALL, 5, 8))
    with pytest.raises(ValueError, match="sites are not those"):
        SPACE.encode(uniform(SeparatorConfig(X=2, R=1), 4, 8))
    with pytest.raises(ValueError, match="outside its"):
        SPACE.decode((3,) * len(SPACE.shape))


def test_uniform_seeds_are_every_weight_width_with_every_activation_width() -> None:
    space = space_of(weight_bits=[2, 4, 8], activation_bits=[6, 8])
    found = {space.decode(seed.point) for seed in uniform_seeds(space)}
    assert found == {uniform(SMALL, w, a) for w in (2, 4, 8) for a in (6, 8)}


def test_ends_seeds_keep_first_and_last_weights_at_8() -> None:
    space = space_of(weight_bits=[2, 4, 8, 16], activation_bits=[6, 8])
    seeds = [space.decode(seed.point).by_site for seed in ends_seeds(space)]
    assert len(seeds) == 2
    for widths, inner in zip(seeds, (2, 4), strict=True):
        weights = [widths[site] for site in weight_sites(SMALL)]
        assert (weights[0], weights[-1]) == (8, 8)
        assert set(weights[1:-1]) == {inner}
        assert {bits for site, bits in widths.items() if not is_weight(site)} == {8}


def test_there_is_no_ends_seed_without_8_bits() -> None:
    assert ends_seeds(space_of(weight_bits=[2, 4])) == []


def test_a_space_of_constants_has_one_allocation() -> None:
    space = space_of(weight_bits=[4], activation_bits=[8])
    assert space.size == 1
    assert space.decode(()) == uniform(SMALL, 4, 8)
