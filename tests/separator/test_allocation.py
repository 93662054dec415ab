"""Allocations: plain values that refuse what the network has not."""

import json

import pytest
from hypothesis import given, settings

from hwsearch.errors import UserError
from hwsearch.separator.allocation import BitAllocation, is_weight, uniform
from tests.separator.small import RELU, allocations, sites_of
from tests.travel import travelled

SITES = sites_of(RELU)


@given(allocations(RELU))
@settings(max_examples=50, deadline=None)
def test_json_gives_back_an_equal_and_equally_hashed_allocation(allocation):
    text = json.dumps(allocation.to_json())
    again = BitAllocation.from_json(json.loads(text), SITES, "file")
    assert again == allocation
    assert hash(again) == hash(allocation)
    assert travelled(allocation) == allocation


def test_reading_brings_sites_into_the_order_of_execution():
    shuffled = dict(reversed(uniform(SITES, 4, 8).widths))
    assert BitAllocation.from_json(shuffled, SITES, "file") == uniform(SITES, 4, 8)


def test_sites_are_unique_and_split_into_weights_and_activations():
    assert len(set(SITES.all)) == len(SITES.all) == 2 + 3 * 2 + 3 + 4 * 2
    assert [site for site in SITES.all if is_weight(site)] == list(SITES.weights)
    assert [site for site in SITES.all if not is_weight(site)] == list(SITES.activations)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda widths: [], "found list"),
        (lambda widths: widths | {"blocks.8.add.output": 8}, "unknown site 'blocks.8.add.output'"),
        (lambda widths: widths | {"mask_head.output": 3}, "site 'mask_head.output' has width 3"),
        (lambda widths: widths | {"mask_head.output": 12}, "site 'mask_head.output' has width 12"),
        (lambda widths: widths | {"mask_head.output": True}, "site 'mask_head.output' has width True"),
        (lambda widths: widths | {"mask_head.output": "8"}, "site 'mask_head.output' has width '8'"),
        (lambda widths: widths | {"mask_head.weight": 1}, "site 'mask_head.weight' has width 1"),
        (lambda widths: {s: b for s, b in widths.items() if s != "mask_head.output"}, "site 'mask_head.output' is missing"),
    ],
)
def test_what_the_network_has_not_is_one_clear_line(change, wanted):
    with pytest.raises(UserError, match=wanted) as caught:
        BitAllocation.from_json(change(uniform(SITES, 4, 8).to_json()), SITES, "a.json")
    assert str(caught.value).startswith("a.json: ")
    assert "\n" not in str(caught.value)
