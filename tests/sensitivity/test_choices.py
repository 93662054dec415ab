"""Which site may take which width, and what cannot be quantized is said so."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from hwsearch.errors import UserError
from hwsearch.sensitivity.choices import by_site_and_width, make_choices
from hwsearch.separator.quantizers import quantize_weight, weight_scale
from tests.sensitivity.small import WIDTHS, candidates, small_base, with_parameter


def test_a_site_takes_the_widths_that_its_kind_allows():
    choices = make_choices(small_base(), candidates(("mask_head.weight", "features"), (32, 2, 8, 4)))
    assert choices.widths == WIDTHS
    assert choices.of("mask_head.weight") == WIDTHS
    assert choices.of("features") == (4, 8, 32)


def test_numbers_are_placed_at_their_width_and_the_others_have_none():
    choices = make_choices(small_base(), candidates(("mask_head.weight", "features"), WIDTHS))
    found = by_site_and_width(choices, iter([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0]]))
    np.testing.assert_array_equal(found, [[1.0, 2.0, 3.0, 4.0], [math.nan, 5.0, 6.0, 7.0]])


def test_weights_are_quantized_as_the_network_quantizes_them():
    base = small_base()
    choices = make_choices(base, candidates(("blocks.1.depthwise.weight",), WIDTHS))
    weight = base.graph.parameters["blocks.1.depthwise.weight"]
    for bits in (2, 4, 8):
        wanted = quantize_weight(weight, weight_scale(weight, bits, base.quantization), bits).value
        assert torch.equal(choices.weight("blocks.1.depthwise.weight", bits), wanted)
    assert choices.weight("blocks.1.depthwise.weight", 32) is weight


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ((("blocks.9.expand.weight", (4,)),), "unknown site 'blocks.9.expand.weight'"),
        (
            (("mask_head.weight", (2,)), ("features", (3, 4))),
            r"site 'features' cannot be quantized to 3 bits; wanted some of \[4",
        ),
        ((("features", (4, 9)),), "site 'features' cannot be quantized to 9 bits"),
        ((("features", ()),), "site 'features' cannot be quantized to no width"),
        ((("features", (4,)), ("features", (8,))), "site 'features' is named twice"),
        ((), "no site is free"),
    ],
)
def test_what_cannot_be_quantized_is_named(wanted, message):
    with pytest.raises(UserError, match=message):
        make_choices(small_base(), wanted)


def test_weights_that_are_not_finite_are_named():
    base = small_base()
    weight = base.graph.parameters["input_proj.weight"].clone()
    weight[0, 0, 0] = math.inf
    broken = replace(base, graph=with_parameter(base.graph, "input_proj.weight", weight))
    with pytest.raises(UserError, match=r"site 'input_proj\.weight' has weights that are not finite"):
        make_choices(broken, candidates(("input_proj.weight",), (4,)))
