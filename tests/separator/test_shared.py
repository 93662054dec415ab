"""The shared network at an allocation is one network, whoever reads it, and survives the disk."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from hwsearch.errors import UserError
from hwsearch.experiment import FLOAT_BITS, QuantizationConfig
from hwsearch.files.tensors import read_tensors, write_tensors
from hwsearch.network.run import run
from hwsearch.separator.allocation import BitAllocation, is_weight, uniform
from hwsearch.separator.fast import FastNetwork
from hwsearch.separator.quantized import build_quantized
from hwsearch.separator.separator import Separator, build_front_end
from hwsearch.separator.shared import initial_shared, load_shared, save_shared
from hwsearch.separator.trained import initial_state, load_trained, save_trained, trained_mask_function, trained_network
from tests.separator.shared import allocations_of, some_widths, trained, trunk_base, widths_of
from tests.separator.small import PRELU, normalised_features
from tests.training.pools import small_base


def nearly(found, wanted):
    """Depthwise sums differ in their order: a value that comes within that of a half goes to the next integer."""
    difference, peak = (found - wanted).abs(), float(wanted.abs().max())
    return float((difference > 1e-5 * peak).float().mean()) < 0.2 and float(difference.max()) < 0.3 * peak


@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_all_readers_compute_the_same(data):
    base = trunk_base(data.draw(st.sampled_from(["per_channel", "per_tensor"])))
    widths = data.draw(some_widths(base))
    shared, allocation = trained(initial_shared(base, widths), data.draw(st.integers(0, 50))), data.draw(allocations_of(widths))
    features = normalised_features(base.separator, 1500, data.draw(st.integers(3, 50)))
    state, own = shared.at(allocation), shared.as_base(base)
    found = trained_mask_function(base, state)(features)
    fast = FastNetwork(own.graph, own.calibration, own.quantization, weights=own.weights)
    with torch.no_grad():
        brevitas = trained_network(base, state)(features)
        post_training = build_quantized(own.graph, allocation, own.calibration, own.quantization, own.weights)(features)
    assert nearly(found, brevitas)
    widest = {site: bits[-1] for site, bits in widths.items()}
    if all(bits != FLOAT_BITS or widest[site] == FLOAT_BITS for site, bits in allocation.widths):
        assert torch.equal(fast.mask_function(allocation)(features), found)
        assert torch.equal(post_training, brevitas)
        again = initial_state(own, allocation)
        assert torch.equal(trained_mask_function(own, again)(features), found)


def test_integer_kernels_read_it():
    base, widths = trunk_base(), widths_of(trunk_base())
    own = trained(initial_shared(base, widths), 1).as_base(base)
    features, allocation = normalised_features(base.separator, 1500, 3), uniform(base.sites, 4, 8)
    parts = own.graph, own.calibration, own.quantization
    networks = [FastNetwork(*parts, weights=own.weights, integers=integers) for integers in (False, True)]
    assert nearly(*(network.mask_function(allocation)(features) for network in networks))


def test_it_starts_from_the_weights_and_grids_of_post_training_quantization():
    base, widths = trunk_base(), widths_of(trunk_base())
    shared = initial_shared(base, widths)
    for site in base.sites.weights:
        layer = site.removesuffix(".weight")
        assert torch.equal(shared.parameters[site], base.graph.parameters[site])
        for bits in widths[site]:
            assert torch.equal(shared.parameters[f"{site}.scale@{bits}"], base.weights.layer(layer, bits).weight.scale)
    for site in base.sites.activations:
        for bits in widths[site]:
            grid = base.calibration.grids[site][bits]
            assert float(shared.parameters[f"{site}.scale@{bits}"]) == grid.scale
            assert int(shared.parameters[f"{site}.zero_point@{bits}"]) == grid.zero_point
    assert shared.steps == 0


def test_biases_make_up_for_the_mean_error_of_each_width():
    """The mean output of each pointwise layer for what it reads in full precision, with the weights alone quantized."""
    base, widths = trunk_base(), widths_of(trunk_base())
    shared = initial_shared(base, widths)
    inputs, features = {}, torch.cat([normalised_features(base.separator, 3000, mixture) for mixture in (1, 2)])
    run(base.graph, {"features": features}, inputs.setdefault)
    judged = 0
    for site in base.sites.weights:
        layer = base.graph.by_name[site.removesuffix(".weight")]
        if layer.groups != 1:
            continue
        state = shared.at(uniform(base.sites, 2, 8)).parameters
        scale, mean = state[f"{site}.scale"], inputs[layer.inputs[0]].mean(dim=(0, 2))
        rounded = (state[site] / scale).round().clamp(-1, 1) * scale
        found = rounded[..., 0] @ mean + state[f"{layer.name}.bias"]
        wanted = base.graph.parameters[site][..., 0] @ mean + base.graph.parameters[f"{layer.name}.bias"]
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
        assert not torch.allclose(state[f"{layer.name}.bias"], base.graph.parameters[f"{layer.name}.bias"], atol=1e-2)
        judged += 1
    assert judged > 4


def test_in_floating_point_it_has_the_biases_of_the_widest_weights():
    base, widths = trunk_base(), widths_of(trunk_base())
    shared = initial_shared(base, widths)
    own, features = shared.as_base(base), normalised_features(base.separator, 1500, 3)
    network = FastNetwork(own.graph, own.calibration, own.quantization, weights=own.weights)
    exact = network.mask_function(uniform(base.sites, FLOAT_BITS, FLOAT_BITS))(features)
    widest = network.mask_function(BitAllocation.of({s: 8 if is_weight(s) else FLOAT_BITS for s in base.sites.all}))(features)
    assert float((exact - widest).abs().max()) < 0.05 * float(exact.abs().max())
    for site in base.sites.weights:
        layer = site.removesuffix(".weight")
        assert torch.equal(own.graph.parameters[f"{layer}.bias"], own.weights.layer(layer, 8).bias)
        assert not torch.equal(own.graph.parameters[f"{layer}.bias"], own.weights.layer(layer, 2).bias)


def test_a_state_of_it_is_a_trained_state(tmp_path):
    base, widths = trunk_base(), widths_of(trunk_base())
    allocation = uniform(base.sites, 4, 6)
    state = trained(initial_shared(base, widths), 3).at(allocation)
    save_trained(tmp_path / "state.safetensors", state)
    read = load_trained(tmp_path / "state.safetensors", base, allocation)
    assert all(torch.equal(read.parameters[name], tensor) for name, tensor in state.parameters.items())
    assert read.steps == 7


def test_widths_that_it_does_not_have_are_refused():
    shared = initial_shared(trunk_base(), widths_of(trunk_base()))
    with pytest.raises(ValueError, match=r"'input_proj.weight' at 3 bits"):
        shared.at(uniform(trunk_base().sites, 3, 8))


@given(data=st.data())
@settings(max_examples=4, deadline=None)
def test_it_survives_the_disk_bit_for_bit(tmp_path_factory, data):
    base = trunk_base()
    widths = data.draw(some_widths(base))
    path = tmp_path_factory.mktemp("shared") / "shared.safetensors"
    state = trained(initial_shared(base, widths), 2)
    save_shared(path, base, state)
    fewer = {site: bits[-1:] for site, bits in widths.items()}
    for wanted in (widths, fewer):
        read = load_shared(path, base, wanted)
        assert read.parameters.keys() == state.parameters.keys()
        assert all(torch.equal(read.parameters[name], tensor) for name, tensor in state.parameters.items())
        assert (read.widths, read.steps, read.base_sha256, read.made_by) == (widths, 7, base.base_sha256, state.made_by)


def other_front_end(base):
    front_end = base.separator.front_end
    spectral = front_end.spectral.model_copy(update={"hop_length": 32})
    other = build_front_end(spectral, front_end.array, front_end.sample_rate)
    return replace(base, separator=Separator(other, base.separator.network))


REFUSED = {
    "front end": (other_front_end, "of another front end"),
    "base": (lambda base: replace(base, base_sha256="b" * 64), "of another base .aaaaaaaaaaaa.; wanted bbbbbbbbbbbb"),
    "quantization": (lambda base: replace(base, quantization=QuantizationConfig()), r"of another network or \[quantization\]"),
    "network": (lambda _: small_base(PRELU), r"of another network or \[quantization\]"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_file_for_something_else_is_refused_in_one_line(tmp_path, kind):
    change, message = REFUSED[kind]
    base, path = trunk_base(), tmp_path / "shared.safetensors"
    save_shared(path, base, initial_shared(base, widths_of(base)))
    with pytest.raises(UserError, match=message) as refused:
        load_shared(path, change(base), widths_of(base))
    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)


def test_a_file_without_a_width_of_the_space_is_refused(tmp_path):
    base, path = trunk_base(), tmp_path / "shared.safetensors"
    save_shared(path, base, initial_shared(base, widths_of(base)))
    with pytest.raises(UserError, match=r"another search space: it has 'input_proj.weight' at \[2, 4, 8\] bits; wanted 3 bits"):
        load_shared(path, base, widths_of(base, (3, 4)))


DAMAGES = {
    "missing": (lambda t, _: t.pop("input_proj.output"), "'input_proj.output' is missing"),
    "mean": (lambda t, _: t.pop("input_proj.mean"), "'input_proj.mean' is missing"),
    "unknown": (lambda t, _: t.update({"input_proj.bias": torch.zeros(8)}), "'input_proj.bias' is unknown"),
    "nan": (lambda t, _: t["input_proj.weight"].fill_(torch.nan), "'input_proj.weight' holds values out of range"),
    "scale": (lambda t, _: t["input_proj.weight.scale@2"].neg_(), "'input_proj.weight.scale@2' holds values out of range"),
    "zero point": (lambda t, _: t["features.zero_point@6"].fill_(64), "'features.zero_point@6' holds values out of range"),
    "format": (lambda _, c: c.update(format=1), "its format is not 5"),
    "steps": (lambda _, c: c.update(steps="many"), "trained for 'many' steps"),
    "widths": (lambda _, c: c.update(widths={"features": "all"}), "does not say the widths"),
    "structure": (lambda _, c: c.update(structure=None), "does not say what it keeps"),
    "option": (lambda _, c: c.update(structure={"blocks.9.kept": [0, 1]}), "what it keeps is not of the network"),
    "sites": (lambda _, c: c["widths"].update(extra=[8]), "its sites are not those"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_in_one_line(tmp_path, damage):
    change, message = DAMAGES[damage]
    base, path = trunk_base(), tmp_path / "shared.safetensors"
    save_shared(path, base, initial_shared(base, widths_of(base)))
    content, _ = read_tensors(path, "hwsearch_shared", "a shared network")
    tensors = load_file(path)
    change(tensors, content)
    write_tensors(path, tensors, "hwsearch_shared", content)
    with pytest.raises(UserError, match=message) as refused:
        load_shared(path, base, widths_of(base))
    assert "\n" not in str(refused.value)


def test_another_file_and_a_changed_one_are_refused(tmp_path):
    path = tmp_path / "shared.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="not a shared network"):
        load_shared(path, trunk_base(), {})
    save_shared(path, trunk_base(), initial_shared(trunk_base(), widths_of(trunk_base())))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="it changed since it was written"):
        load_shared(path, trunk_base(), {})
