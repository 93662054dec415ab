"""A trained state means a Brevitas network, has a fast form, and survives the disk."""

import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from hwsearch.errors import UserError
from hwsearch.experiment import QuantizationConfig
from hwsearch.files.tensors import write_tensors
from hwsearch.separator.allocation import BitAllocation
from hwsearch.separator.fast import FastNetwork
from hwsearch.separator.prepare import PreparedBase
from hwsearch.separator.quantized import build_quantized
from hwsearch.separator.quantizers import weight_scale
from hwsearch.separator.trained import initial_state, load_trained, save_trained, trained_mask_function, trained_network
from tests.separator.small import KINDS, PRELU, RELU, allocations, normalised_features, small_network, uniform
from tests.training.pools import small_base
from tests.training.test_trainable import moved


@pytest.mark.parametrize("kind", KINDS)
def test_without_training_a_state_is_post_training_quantization(kind):
    config = KINDS[kind]
    base, allocation = small_base(config), uniform(config, 3, 6)
    features = normalised_features(base.separator, 1500, 9)
    state = initial_state(base, allocation)
    with torch.no_grad():
        wanted = build_quantized(base.graph, allocation, base.calibration, base.quantization)(features)
        assert torch.equal(trained_network(base, state)(features), wanted)
    fast = FastNetwork(base.graph, base.calibration, base.quantization).mask_function(allocation)(features)
    assert torch.equal(trained_mask_function(base, state)(features), fast)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=6, deadline=None)
def test_the_fast_form_is_the_brevitas_network(kind, data):
    config = KINDS[kind]
    separator, graph, calibration = small_network(config)
    quantization = QuantizationConfig(weight_scale=data.draw(st.sampled_from(["per_channel", "per_tensor"])))
    base = PreparedBase(separator, graph, calibration, quantization, "")
    state = moved(initial_state(base, data.draw(allocations(config))), data.draw(st.integers(0, 50)))
    features = normalised_features(separator, 1500, data.draw(st.integers(3, 50)))
    network = trained_network(base, state)
    weights, grids = network.quantized_weights(), network.activation_grids()
    for name in (site.removesuffix(".weight") for site in base.sites.weights):
        if (weight := weights[f"{name}.weight"]) is not None:
            assert torch.equal(weight.scale, state.parameters[f"{name}.weight.scale"])
    for site, grid in grids.items():
        if grid is not None:
            assert grid.scale == float(state.parameters[f"{site}.scale"])
            assert grid.zero_point == int(state.parameters[f"{site}.zero_point"])
    found = trained_mask_function(base, state)(features)
    with torch.no_grad():
        wanted = network(features)
    # Depthwise sums differ in their order: a value that comes within that of a half goes to the next integer.
    difference, peak = (found - wanted).abs(), float(wanted.abs().max())
    assert float((difference > 1e-5 * peak).float().mean()) < 0.2
    assert float(difference.max()) < 0.3 * peak


def test_a_warm_start_keeps_the_grids_of_sites_whose_width_stays():
    base = small_base(PRELU)
    start = moved(initial_state(base, uniform(PRELU, 4, 8)), 1)
    changed = {"blocks.0.expand.weight": 2, "blocks.0.add.output": 4, "mask_head.weight": 32, "features": 32}
    allocation = BitAllocation.of({site: changed.get(site, bits) for site, bits in start.allocation.widths})
    state = initial_state(base, allocation, start)
    for name, tensor in state.parameters.items():
        site = name.removesuffix(".scale").removesuffix(".zero_point")
        if name == site or site not in changed:
            assert torch.equal(tensor, start.parameters[name]), name
    made_anew = weight_scale(start.parameters["blocks.0.expand.weight"], 2, base.quantization)
    assert torch.equal(state.parameters["blocks.0.expand.weight.scale"], made_anew)
    assert float(state.parameters["blocks.0.add.output.scale"]) == base.calibration.grids["blocks.0.add.output"][4].scale
    assert "features.scale" not in state.parameters
    assert "mask_head.weight.scale" not in state.parameters
    assert state.steps == start.steps == 7


def test_a_warm_start_of_another_base_is_refused():
    base = small_base()
    other = replace(base, base_sha256="b" * 64)
    with pytest.raises(ValueError, match="a warm start of base bbbb"):
        initial_state(base, uniform(RELU, 4, 8), initial_state(other, uniform(RELU, 4, 8)))


@pytest.mark.parametrize("widths", [(2, 4), (4, 32), (32, 8)])
def test_a_state_survives_the_disk_bit_for_bit(tmp_path, widths):
    base, allocation = small_base(PRELU), uniform(PRELU, *widths)
    state = moved(initial_state(base, allocation), 2)
    save_trained(tmp_path / "state.safetensors", state)
    read = load_trained(tmp_path / "state.safetensors", base, allocation)
    assert read.parameters.keys() == state.parameters.keys()
    assert all(torch.equal(read.parameters[name], tensor) for name, tensor in state.parameters.items())
    assert (read.allocation, read.base_sha256, read.steps) == (allocation, base.base_sha256, 7)


ALLOCATION = uniform(RELU, 4, 8)


def damaged(change_tensors=None, change_content=None):
    """A way to write a state's file with a change."""

    def write(path):
        save_trained(path, initial_state(small_base(), ALLOCATION))
        tensors = load_file(path)
        content = {"format": 4, "base_sha256": small_base().base_sha256, "allocation": ALLOCATION.to_json(), "steps": 0}
        if change_tensors is not None:
            change_tensors(tensors)
        if change_content is not None:
            change_content(content)
        write_tensors(path, tensors, "hwsearch_trained", content)

    return write


DAMAGES = {
    "missing": (damaged(lambda t: t.pop("input_proj.bias")), "'input_proj.bias' is missing"),
    "unknown": (damaged(lambda t: t.update(extra=torch.zeros(1))), "'extra' is unknown"),
    "shape": (damaged(lambda t: t.update({"features.scale": torch.ones(2)})), r"'features.scale' is torch.float32 \[2\]; want"),
    "dtype": (damaged(lambda t: t.update({"features.scale": torch.ones(()).double()})), "'features.scale' is torch.float64"),
    "nan": (damaged(lambda t: t["input_proj.weight"].fill_(torch.nan)), "'input_proj.weight' holds values out of range"),
    "negative scale": (damaged(lambda t: t["input_proj.weight.scale"].neg_()), "'input_proj.weight.scale' holds values out of"),
    "zero point": (damaged(lambda t: t["features.zero_point"].fill_(256)), "'features.zero_point' holds values out of range"),
    "format": (damaged(None, lambda c: c.update(format=3)), "not a trained state of a candidate .its format is not 4"),
    "base": (damaged(None, lambda c: c.update(base_sha256="b" * 64)), "trained from base bbbbbbbbbbbb; wanted base aaaa"),
    "allocation": (damaged(None, lambda c: c.update(allocation={})), "trained at another bit allocation"),
    "steps": (damaged(None, lambda c: c.update(steps="many")), "trained for 'many' steps"),
    "no state": (lambda path: save_file({"a": torch.zeros(1)}, path), "not a trained state"),
    "no safetensors": (lambda path: path.write_bytes(b"x" * 40), "not a trained state"),
    "nothing": (lambda _: None, "no such file"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_is_no_such_state_is_refused_in_one_line(tmp_path, damage):
    write, message = DAMAGES[damage]
    path = tmp_path / "state.safetensors"
    write(path)
    with pytest.raises(UserError, match=message) as refused:
        load_trained(path, small_base(), ALLOCATION)
    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)


def test_a_state_names_every_site():
    """Its names lead back to the sites, whatever the allocation."""
    state = initial_state(small_base(), ALLOCATION)
    found = {re.sub(r"\.(scale|zero_point|bias)$", "", name) for name in state.parameters}
    sites = small_base().sites
    assert found - {site.removesuffix(".weight") for site in sites.weights} == {*sites.weights, *sites.activations}
