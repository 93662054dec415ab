"""What is left of a base or a shared network computes what the whole does without the rest."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsearch.errors import UserError
from hwsearch.experiment import FLOAT_BITS
from hwsearch.files.tensors import read_tensors, write_tensors
from hwsearch.network.operations import Convolution, TransposedConvolution
from hwsearch.network.run import compute, run
from hwsearch.network.sites import LAYERS
from hwsearch.separator.allocation import BitAllocation, is_weight, uniform
from hwsearch.separator.fast import FastNetwork
from hwsearch.separator.prepare import PreparedBase
from hwsearch.separator.quantizers import quantize_weight
from hwsearch.separator.shared import SharedState, initial_shared, load_shared, save_shared
from hwsearch.separator.trained import TrainedState, initial_state, load_trained, save_trained, trained_mask_function
from tests.separator.elastic import elastic_base, random_orders, structures, values_of
from tests.separator.shared import allocations_of, trained, widths_of
from tests.separator.small import normalised_features
from tests.separator.test_shared import nearly

KINDS = ("relu", "prelu", "transposed-makes", "transposed-reads")
FEATURES = normalised_features(elastic_base().separator, 1500, 3)


def shared_of(base: PreparedBase, seed: int = 0, weights: tuple[int, ...] = (2, 4, 8)) -> SharedState:
    """A shared network as training might leave it, with orders of any kind."""
    shared = initial_shared(base, widths_of(base, weights, (6, 8, FLOAT_BITS)), values_of(base.options))
    orders = {f"{name}.order": torch.tensor(order).int() for name, order in random_orders(base.options, seed).items()}
    state = trained(shared, seed)
    return replace(state, parameters={**state.parameters, **orders})


def left_of(allocation: BitAllocation, base: PreparedBase) -> BitAllocation:
    return BitAllocation.of({site: allocation.by_site[site] for site in base.sites.all})


def silenced(base: PreparedBase, shared: SharedState, allocation: BitAllocation, structure: dict[str, int]) -> TrainedState:
    """The state of the whole network in which nothing reads channels that are left out, and blocks that are left out add zero."""
    state, options = shared.at(allocation), base.options
    left = {each for group in options.groups for each in shared.orders[group.name][structure.get(group.name, 10**6) :]}
    parameters = dict(state.parameters)
    for layer in base.graph.operations:
        if not isinstance(layer, LAYERS):
            continue
        weight, bits = f"{layer.name}.weight", allocation.by_site[f"{layer.name}.weight"]
        silent = torch.from_numpy(np.isin(options.classes.of_tensor[layer.inputs[0]], list(left)))
        parameters[weight] = parameters[weight].clone()
        if isinstance(layer, TransposedConvolution):
            parameters[weight][silent] = 0
        elif isinstance(layer, Convolution) and layer.groups == 1:
            parameters[weight][:, silent] = 0
        if (mean := shared.parameters.get(f"{layer.name}.mean")) is not None:
            own = parameters[weight]
            rounded = own if bits == FLOAT_BITS else quantize_weight(own, parameters[f"{weight}.scale"], bits).value
            made = (rounded.reshape(len(mean), -1, mean.shape[1]) @ mean[:, :, None]).flatten()
            parameters[f"{layer.name}.bias"] = shared.parameters[f"{layer.name}.output"] - made
    for block in options.blocks:
        if structure.get(block.name) == 0:
            last = [name for name in base.graph.by_name if name in block.operations and f"{name}.weight" in parameters][-1]
            for part in ("weight", "bias"):
                parameters[f"{last}.{part}"] = torch.zeros_like(parameters[f"{last}.{part}"])
    return replace(state, parameters=parameters)


def test_the_bases_have_options_of_all_kinds() -> None:
    assert len(elastic_base().options.blocks) == len(elastic_base().options.groups) == 3
    makes = elastic_base("transposed-makes")
    assert {group.name for group in makes.options.groups} == {"take.channels", "transposed.channels"}
    assert {group.name for group in elastic_base("transposed-reads").options.groups} == {"before.channels", "behind.channels"}
    assert TransposedConvolution in {type(layer) for layer in makes.graph.operations}


@given(data=st.data(), kind=st.sampled_from(KINDS), scales=st.sampled_from(["per_channel", "per_tensor"]))
@settings(max_examples=15, deadline=None)
def test_fewer_channels_are_the_whole_network_with_silent_ones(data: st.DataObject, kind: str, scales: str) -> None:
    base = elastic_base(kind, scales)
    shared, structure = shared_of(base, data.draw(st.integers(0, 50))), data.draw(structures(base.options, blocks=False))
    allocation, narrow = data.draw(allocations_of(shared.widths)), base.narrowed(structure, shared.orders)
    state = shared.narrowed(base, structure).at(left_of(allocation, narrow))
    wanted = trained_mask_function(base, silenced(base, shared, allocation, structure))(FEATURES)
    assert nearly(trained_mask_function(narrow, state)(FEATURES), wanted)


@given(data=st.data(), kind=st.sampled_from(KINDS))
@settings(max_examples=15, deadline=None)
def test_fewer_blocks_are_the_whole_network_without_their_outputs(data: st.DataObject, kind: str) -> None:
    """In floating point: the sums that a block adds to are rounded to other grids without it."""
    base = elastic_base(kind)
    shared, structure = shared_of(base, data.draw(st.integers(0, 50))), data.draw(structures(base.options))
    allocation, narrow = uniform(base.sites, 4, FLOAT_BITS), base.narrowed(structure, shared.orders)
    state = shared.narrowed(base, structure).at(left_of(allocation, narrow))
    wanted = trained_mask_function(base, silenced(base, shared, allocation, structure))(FEATURES)
    torch.testing.assert_close(trained_mask_function(narrow, state)(FEATURES), wanted, rtol=1e-3, atol=1e-4)


@given(data=st.data(), kind=st.sampled_from(KINDS), scales=st.sampled_from(["per_channel", "per_tensor"]))
@settings(max_examples=10, deadline=None)
def test_a_narrowed_shared_network_is_one_of_the_narrowed_base(data: st.DataObject, kind: str, scales: str) -> None:
    """Its base computes what its states do, and its states are those of the base on disk."""
    base = elastic_base(kind, scales)
    shared, structure = shared_of(base), data.draw(structures(base.options))
    narrow, state = base.narrowed(structure, shared.orders), shared.narrowed(base, structure)
    allocation = data.draw(allocations_of(state.widths))
    own, one = state.as_base(narrow), state.at(allocation)
    widest = all(bits != FLOAT_BITS for site, bits in allocation.widths if is_weight(site))
    found = trained_mask_function(narrow, one)(FEATURES)
    fast = FastNetwork(own.graph, own.calibration, own.quantization, weights=own.weights).mask_function(allocation)
    assert widest
    assert torch.equal(fast(FEATURES), found)
    assert torch.equal(trained_mask_function(own, initial_state(own, allocation))(FEATURES), found)
    assert state.widths.keys() == set(narrow.sites.all)
    assert (state.structure == {}) == bool(structure)


def test_weights_scales_outputs_and_means_are_those_of_the_channels_that_are_kept(tmp_path: Path) -> None:
    base = elastic_base()
    shared = shared_of(base, 4)
    structure = {"blocks.0.kept": 0, "blocks.1.expand.channels": 5}
    state, whole = shared.narrowed(base, structure), shared.parameters
    order, classes = shared.orders["blocks.1.expand.channels"], base.options.classes.of_tensor["blocks.1.expand"].tolist()
    kept = sorted(classes.index(each) for each in order[:5])
    taken = {
        "expand.weight": lambda x: x[kept],
        "expand.weight.scale@4": lambda x: x[kept],
        "expand.output": lambda x: x[kept],
        "expand.mean": lambda x: x,
        "depthwise.weight": lambda x: x[kept],
        "depthwise.weight.scale@2": lambda x: x[kept],
        "depthwise.output": lambda x: x[kept],
        "depthwise.mean": lambda x: x[kept],
        "project.weight": lambda x: x[:, kept],
        "project.weight.scale@8": lambda x: x,
        "project.output": lambda x: x,
        "project.mean": lambda x: x[:, kept],
    }
    for name, cut in taken.items():
        assert torch.equal(state.parameters[f"blocks.1.{name}"], cut(whole[f"blocks.1.{name}"])), name
    assert not any(name.startswith("blocks.0.") for name in (*state.parameters, *state.widths))
    assert torch.equal(state.parameters["blocks.2.expand.weight"], whole["blocks.2.expand.weight"])
    narrow, allocation = base.narrowed(structure, shared.orders), uniform(base.narrowed(structure, shared.orders).sites, 4, 8)
    save_trained(tmp_path / "state.safetensors", state.at(allocation))
    read = load_trained(tmp_path / "state.safetensors", narrow, allocation)
    assert all(torch.equal(read.parameters[name], tensor) for name, tensor in state.at(allocation).parameters.items())


def test_biases_take_over_the_mean_of_channels_that_are_left_out() -> None:
    """The mean output of a layer for what it reads in full precision stays, with the quantized weights of the channels left."""
    base = elastic_base()
    shared = initial_shared(base, widths_of(base), values_of(base.options))
    structure = {"blocks.1.expand.channels": 3}
    state = shared.narrowed(base, structure).at(uniform(base.sites, 4, 8)).parameters
    inputs, features = {}, torch.cat([normalised_features(base.separator, 3000, mixture) for mixture in (1, 2)])
    run(base.graph, {"features": features}, inputs.setdefault)
    layer = base.graph.by_name["blocks.1.project"]
    order, classes = shared.orders["blocks.1.expand.channels"], base.options.classes.of_tensor[layer.inputs[0]].tolist()
    kept, mean = sorted(classes.index(each) for each in order[:3]), inputs[layer.inputs[0]].mean(dim=(0, 2))
    scale = state[f"{layer.name}.weight.scale"]
    rounded = (state[f"{layer.name}.weight"] / scale).round().clamp(-7, 7) * scale
    wanted = base.graph.parameters[f"{layer.name}.weight"][..., 0] @ mean + base.graph.parameters[f"{layer.name}.bias"]
    torch.testing.assert_close(rounded[..., 0] @ mean[kept] + state[f"{layer.name}.bias"], wanted, rtol=1e-3, atol=1e-4)


@given(data=st.data(), kind=st.sampled_from(KINDS))
@settings(max_examples=10, deadline=None)
def test_a_narrowed_base_is_the_whole_with_silent_channels_and_blocks(data: st.DataObject, kind: str) -> None:
    base = replace(elastic_base(kind), means={})  # so biases stay
    structure, orders = data.draw(structures(base.options)), random_orders(base.options, data.draw(st.integers(0, 50)))
    narrow, options = base.narrowed(structure, orders), base.options
    left = {each for group in options.groups for each in orders[group.name][structure.get(group.name, 10**6) :]}
    out = {name for block in options.blocks if structure.get(block.name) == 0 for name in block.operations}

    def silence(name: str, tensor: torch.Tensor) -> torch.Tensor:
        silent = torch.from_numpy(np.isin(options.classes.of_tensor[name], list(left)))
        return torch.zeros_like(tensor) if name in out else torch.where(silent[:, None], 0.0, tensor)

    wanted = run(base.graph, {base.graph.inputs[0]: FEATURES}, lambda name, x: x if x.ndim < 3 else silence(name, x))
    (found,) = run(narrow.graph, {narrow.graph.inputs[0]: FEATURES})
    torch.testing.assert_close(found, wanted[0], rtol=1e-4, atol=1e-4)
    assert set(narrow.calibration.grids) == set(narrow.sites.activations) <= set(base.calibration.grids)
    assert all(narrow.calibration.grids[site] == base.calibration.grids[site] for site in narrow.calibration.grids)
    assert narrow.base_sha256 == base.base_sha256
    assert narrow.whole is (base if structure else None)
    assert narrow.to_train is narrow


@given(data=st.data(), kind=st.sampled_from(KINDS))
@settings(max_examples=10, deadline=None)
def test_biases_of_a_narrowed_base_keep_the_mean_outputs_of_its_layers(data: st.DataObject, kind: str) -> None:
    base = elastic_base(kind)
    structure, orders = data.draw(structures(base.options)), random_orders(base.options, data.draw(st.integers(0, 50)))
    narrow, channels = base.narrowed(structure, orders), base.options.kept_channels(base.options.relevant(structure), orders)
    for name, mean in base.means.items():
        if name in narrow.graph.by_name and isinstance(layer := base.graph.by_name[name], Convolution):
            outputs = []
            for graph, values in ((base.graph, mean), (narrow.graph, narrow.means[name])):
                weight, groups = graph.parameters[f"{name}.weight"], len(values)
                by_group = weight.reshape(groups, len(weight) // groups, -1)
                outputs.append((by_group * values[:, None]).sum(dim=2).flatten() + graph.parameters[f"{name}.bias"])
            torch.testing.assert_close(outputs[1], channels[layer.name].of(outputs[0]), rtol=1e-4, atol=1e-5)


def test_a_narrowed_base_comes_from_the_one_that_training_starts_from() -> None:
    plain = elastic_base()
    shifted = {name: tensor + 1.0 if name.endswith(".bias") else tensor for name, tensor in plain.graph.parameters.items()}
    base = replace(plain, graph=replace(plain.graph, parameters=shifted), untrained=plain, means={}, squares={})
    narrow, start = (each.narrowed({"blocks.1.kept": 0, "blocks.0.expand.channels": 4}) for each in (base, plain))
    assert base.narrowed({}) is base
    assert (narrow.whole, narrow.to_train.whole, narrow.statistics) == (base, plain, None)
    for each in (narrow, narrow.to_train):
        assert each.graph.parameters.keys() == start.graph.parameters.keys()
        assert all(torch.equal(each.graph.parameters[name], tensor) for name, tensor in start.graph.parameters.items())
    assert base.orders == plain.orders
    assert narrow.to_train.means["blocks.0.project"].shape == (1, 4)
    layer = narrow.weights.layer("blocks.0.project", 3)
    wanted = quantize_weight(narrow.graph.parameters["blocks.0.project.weight"], layer.weight.scale, 3)
    assert torch.equal(layer.weight.integers, wanted.integers)
    assert torch.equal(layer.bias, narrow.graph.parameters["blocks.0.project.bias"])


@pytest.mark.parametrize("kind", ["relu", "prelu"])
def test_the_channels_that_add_the_most_energy_come_first(kind: str) -> None:
    """The mean square of what each channel adds to the outputs of the layer behind the depthwise one."""
    base = elastic_base(kind)
    inputs: dict[str, torch.Tensor] = {}
    features = torch.cat([normalised_features(base.separator, 3000, mixture) for mixture in (1, 2)])
    run(base.graph, {"features": features}, inputs.setdefault)
    for number, group in enumerate(base.options.groups):
        layer = base.graph.by_name[f"blocks.{number}.project"]
        read = inputs[layer.inputs[0]]
        energies = [
            float(compute(layer, replace(base.graph, parameters=_alone(base, layer.name, channel)), (read,)).square().mean())
            for channel in range(read.shape[1])
        ]
        classes = base.options.classes.of_tensor[layer.inputs[0]].tolist()
        wanted = [classes[channel] for channel in np.argsort([-energy for energy in energies], kind="stable")]
        assert list(base.orders[group.name]) == wanted


def _alone(base: PreparedBase, layer: str, channel: int) -> dict[str, torch.Tensor]:
    """The parameters with which a layer reads a single channel."""
    weight = torch.zeros_like(base.graph.parameters[f"{layer}.weight"])
    weight[:, channel] = base.graph.parameters[f"{layer}.weight"][:, channel]
    bias = torch.zeros_like(base.graph.parameters[f"{layer}.bias"])
    return {**base.graph.parameters, f"{layer}.weight": weight, f"{layer}.bias": bias}


def test_equal_channels_stay_in_their_order() -> None:
    base = elastic_base("transposed-makes")
    zeros = {name: torch.zeros_like(tensor) for name, tensor in base.graph.parameters.items()}
    still = replace(base, graph=replace(base.graph, parameters=zeros))
    assert {group.name: list(group.classes) for group in base.options.groups} == still.orders
    assert {name: sorted(order) for name, order in base.orders.items()} == still.orders


def test_the_structure_survives_the_disk(tmp_path: Path) -> None:
    base, path = elastic_base(), tmp_path / "shared.safetensors"
    shared, values = shared_of(base, 3), values_of(base.options)
    save_shared(path, base, shared)
    fewer = {"blocks.1.kept": (1,), "blocks.0.expand.channels": (3, 16)}
    for wanted in (values, fewer, {}):
        read = load_shared(path, base, shared.widths, wanted)
        assert read.structure == values
        assert read.orders == shared.orders == random_orders(base.options, 3)
    save_shared(path, base, initial_shared(base, widths_of(base), fewer))
    read = load_shared(path, base, {}, fewer)
    assert read.orders == {"blocks.0.expand.channels": list(base.orders["blocks.0.expand.channels"])}
    for structure, message in (
        ({"blocks.1.kept": (0, 1)}, r"another search space: it keeps 'blocks.1.kept' at \[1\]; wanted 0, too"),
        ({"blocks.2.kept": (0, 1)}, r"it keeps 'blocks.2.kept' at \[\]; wanted 0, too"),
    ):
        with pytest.raises(UserError, match=message) as refused:
            load_shared(path, base, {}, structure)
        assert "\n" not in str(refused.value)


def _twice(tensors: dict[str, torch.Tensor], _: Any) -> None:
    tensors["blocks.0.expand.channels.order"][0] = tensors["blocks.0.expand.channels.order"][1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_twice, "'blocks.0.expand.channels.order' holds values out of range"),
        (lambda t, _: t.pop("blocks.0.expand.channels.order"), "'blocks.0.expand.channels.order' is missing"),
        (lambda _, c: c["structure"].pop("blocks.0.expand.channels"), "'blocks.0.expand.channels.order' is unknown"),
        (lambda _, c: c["structure"].update({"blocks.0.expand.channels": [3, 15]}), "what it keeps is not of the network"),
    ],
)
def test_a_damaged_structure_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    base, path = elastic_base(), tmp_path / "shared.safetensors"
    save_shared(path, base, shared_of(base))
    content, mapped = read_tensors(path, "hwsearch_shared", "a shared network")
    tensors = {name: tensor.clone() for name, tensor in mapped.items()}
    change(tensors, content)
    write_tensors(path, tensors, "hwsearch_shared", content)
    with pytest.raises(UserError, match=message):
        load_shared(path, base, {})
