import dataclasses

import numpy as np
import pytest

from hw_models.errors import TargetError
from hw_models.packed import packed_size_bytes
from hw_models.workload import LayerKind, Workload, bits_matrix
from tests.hw_models.networks import layer, tcn
from tests.travel import travelled


def test_a_tcn_counts_its_weights_and_macs_as_worked_out_by_hand():
    network = tcn(features=20, bottleneck=12, hidden=24, blocks=2, bins=9, frames=50)
    weights = 20 * 12 + 2 * (12 * 24 + 24 * 3 + 24 * 12) + 12 * 18
    biases = 12 + 2 * (24 + 24 + 12) + 18
    assert network.macs == 50 * weights
    assert network.parameters == weights + biases


def test_sites_are_weights_in_execution_order_then_activations():
    network = tcn(blocks=1)
    assert network.weight_sites == (
        "input_proj.weight",
        "blocks.0.expand.weight",
        "blocks.0.depthwise.weight",
        "blocks.0.project.weight",
        "masks_head.weight",
    )
    assert network.sites[5:7] == ("features", "blocks.0.input")
    assert network.sites == (*network.weight_sites, *network.activation_sites)


def test_a_workload_travels_to_another_process():
    network = tcn()
    assert travelled(network) == network


def test_bits_matrix_puts_each_site_in_its_column():
    network = tcn(blocks=1)
    first = {site: 2 + i % 7 for i, site in enumerate(network.sites)}
    bits = bits_matrix(network, [dict(reversed(first.items())), dict.fromkeys(network.sites, 32)])
    assert bits.tolist() == [list(first.values()), [32] * len(first)]
    assert bits_matrix(network, []).shape == (0, len(network.sites))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda a: a.pop("masks"), "no bits for site 'masks'"),
        (lambda a: a.update({"mask": 8}), "unknown site 'mask'"),
        (lambda a: a.update({"masks": 20}), "site 'masks': found 20 bits; wanted 1 to 16, or 32"),
        (lambda a: a.update({"masks": 0}), "site 'masks': found 0 bits"),
    ],
)
def test_a_wrong_allocation_is_refused_by_the_name_of_its_site(change, named):
    network = tcn()
    allocation = dict.fromkeys(network.sites, 8)
    change(allocation)
    with pytest.raises(TargetError) as error:
        bits_matrix(network, [allocation])
    assert named in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("sites", "layers", "named"),
    [
        ({"x": 3}, [("a", "x", "y")], "layer 'a': activation site 'y' is not in site_channels"),
        ({"x": 3, "y": 4}, [("a", "x", "y")], "layer 'a': site 'y' has 4 channels; the layer wants 3"),
        ({"x": 3, "y": 3, "z": 3}, [("a", "y", "z"), ("b", "x", "y")], "layer 'a': site 'y' is read before"),
        ({"x": 3, "y": 3, "z": 3}, [("a", "x", "y")], "no layer reads or writes site 'z'"),
        ({"x": 3, "y": 3}, [("a", "x", "y"), ("b", "x", "y")], "written site 'y' occurs twice"),
        ({"x": 3, "y": 3, "z": 3}, [("a", "x", "y"), ("a", "y", "z")], "layer 'a' occurs twice"),
        ({"x": 3}, [("a", "x", "x")], "layer 'a': site 'x' is read before"),
        ({"x": 3}, [], "wanted a layer"),
    ],
)
def test_layers_that_form_no_graph_are_refused(sites, layers, named):
    made = tuple(layer(LayerKind.CONV, name, source, target, 3, 3) for name, source, target in layers)
    with pytest.raises(TargetError) as error:
        Workload("w", made, 10, 0.01, per_channel_scales=True, site_channels=sites)
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"dilation": 0}, "wanted 1 or more"),
        ({"kind": LayerKind.ADD}, "1 input sites; a add has 2"),
        ({"weight_site": None}, "weight_site is None; a conv has one"),
        ({"kind": LayerKind.DEPTHWISE}, "3 channels in and 5 out"),
    ],
)
def test_a_layer_no_network_has_is_refused(change, named):
    good = layer(LayerKind.CONV, "a", "x", "y", 3, 5)
    with pytest.raises(TargetError, match="layer 'a'") as error:
        dataclasses.replace(good, **change)
    assert named in str(error.value)


def test_a_matrix_of_the_wrong_shape_is_refused():
    with pytest.raises(TargetError, match=r"bits of shape \(3,\); wanted \[allocations"):
        packed_size_bytes(tcn(), np.full(3, 8))
