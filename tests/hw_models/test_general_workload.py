"""Layers of every kind, with strides, groups and kernels of two axes: counted as torch does, charged or refused by name."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from hw_models.bops import bit_operations
from hw_models.breakdown import per_layer
from hw_models.compile import compile_target
from hw_models.cost import evaluate
from hw_models.errors import TargetError
from hw_models.rules.rates import RateCompute
from hw_models.rules.systolic import SystolicCompute
from hw_models.shape import Shape, executed_shape
from hw_models.target import load_target
from hw_models.workload import WEIGHTED, Layer, LayerKind, Workload
from tests.hw_models.networks import RUNNABLE_WIDTHS, TARGETS, overhead_cycles

FRAMES = 40


def make(name, kind, read, channels, positions, *, taps=1, height=1, groups=1):
    """A layer of what `read` maps from site to (channels, positions)."""
    (inputs, input_positions), *_ = read.values()
    if kind is LayerKind.CONCATENATE:
        inputs = sum(count for count, _ in read.values())
    return Layer(
        name=name,
        kind=kind,
        in_channels=inputs,
        out_channels=channels,
        kernel_size=taps,
        dilation=1,
        weight_site=f"{name}.weight" if kind in WEIGHTED else None,
        input_sites=tuple(read),
        output_site=name,
        bias=kind in WEIGHTED,
        positions=positions,
        input_positions=input_positions,
        kernel_height=height,
        groups=groups,
    )


def u_net(groups=1):
    """Down by a stride, up by a transposed convolution, concatenated with the input, gated and pooled."""
    sites = {"x": (8, FRAMES)}
    layers = []

    def add(name, kind, sources, channels, positions, **shape):
        layers.append(make(name, kind, {source: sites[source] for source in sources}, channels, positions, **shape))
        sites[name] = channels, positions

    add("down", LayerKind.CONV, ["x"], 16, FRAMES // 2, taps=4, groups=groups)
    add("inner", LayerKind.DEPTHWISE, ["down"], 16, FRAMES // 2, taps=3)
    add("up", LayerKind.TRANSPOSED, ["inner"], 12, FRAMES, taps=4, groups=groups)
    add("joined", LayerKind.CONCATENATE, ["x", "up"], 20, FRAMES)
    add("value", LayerKind.CONV, ["joined"], 8, FRAMES)
    add("gate", LayerKind.CONV, ["joined"], 8, FRAMES)
    add("opened", LayerKind.FUNCTION, ["gate"], 8, FRAMES)
    add("gated", LayerKind.MULTIPLY, ["value", "opened"], 8, FRAMES)
    add("summed", LayerKind.ADD, ["x", "gated"], 8, FRAMES)
    add("pooled", LayerKind.POOL, ["summed"], 8, 1)
    add("head", LayerKind.CONV, ["pooled"], 3, 1)
    channels = {site: count for site, (count, _) in sites.items()}
    return Workload("u-net", tuple(layers), FRAMES, 0.01, per_channel_scales=True, site_channels=channels)


@settings(deadline=None)
@given(
    kernel=st.integers(1, 5),
    stride=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 4]),
    positions=st.integers(5, 30),
    transposed=st.booleans(),
)
def test_multiply_accumulates_are_those_that_torch_counts(kernel, stride, groups, positions, transposed):
    x = torch.zeros(1, 8, positions)
    with FlopCounterMode(display=False) as counted:
        if transposed:
            y = functional.conv_transpose1d(x, torch.zeros(8, 12 // groups, kernel), stride=stride, groups=groups)
        else:
            y = functional.conv1d(x, torch.zeros(12, 8 // groups, kernel), stride=stride, groups=groups)
    kind = LayerKind.TRANSPOSED if transposed else LayerKind.CONV
    layer = make("layer", kind, {"x": (8, positions)}, 12, y.shape[-1], taps=kernel, groups=groups)
    workload = Workload("one", (layer,), positions, 1.0, per_channel_scales=True, site_channels={"x": 8, "layer": 12})
    assert workload.macs == counted.get_total_flops() // 2  # a multiplication and an addition
    assert layer.weight_count == 8 * 12 * kernel // groups
    assert executed_shape(layer, positions, TARGETS["nvidia-t4"].dilation).macs == workload.macs


def test_a_kernel_of_two_axes_has_its_area():
    layer = make("stem", LayerKind.CONV, {"image": (1, 490)}, 64, 125, taps=4, height=10)
    workload = Workload("stem", (layer,), 1, 1.0, per_channel_scales=True, site_channels={"image": 1, "stem": 64})
    assert workload.macs == 125 * 64 * 40  # the first layer of MLPerf Tiny's keyword spotting
    flat = replace(layer, kernel_size=40, kernel_height=1)
    target = load_target("cortex-m4-x-cube-ai")
    assert executed_shape(layer, 1, target.dilation) == executed_shape(flat, 1, target.dilation)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("name", TARGETS)
def test_every_target_charges_every_layer_or_refuses_it_by_name(name, groups):
    network, rule = u_net(groups), TARGETS[name].compute
    if rule.rule == "dataflow" or (groups > 1 and not rule.general):
        with pytest.raises(TargetError, match=f"layer 'down': .*'{name}'"):
            compile_target(TARGETS[name], network)
        return
    table = compile_target(TARGETS[name], network)
    bits = np.full((1, len(network.sites)), RUNNABLE_WIDTHS[name][-1])
    layers = per_layer(table, bits[0])
    assert all(layer.cycles > 0 for layer in layers)
    assert sum(layer.macs for layer in layers) == network.macs
    overhead = overhead_cycles(TARGETS[name], network)
    hz = TARGETS[name].clock.clock_hz
    total = sum(layer.cycles for layer in layers) + overhead
    assert evaluate(table, bits).latency_ms[0] == pytest.approx(total / hz * 1e3)


def test_what_has_no_weights_costs_as_a_sum_of_as_many_elements():
    target = load_target("cortex-m4-x-cube-ai")
    network = u_net()
    bits = np.full(len(network.sites), 8)
    cycles = {layer.layer: layer.cycles for layer in per_layer(compile_target(target, network), bits)}
    assert cycles["gated"] == cycles["opened"] == cycles["summed"] == cycles["pooled"]  # each works on 8 x 40
    assert isinstance(target.compute, RateCompute)
    rate = next(rate for rate in target.compute.rates if rate.kernel == "add")
    more = cycles["joined"] - cycles["summed"]
    assert more == pytest.approx(target.overheads.scale * 12 * (FRAMES * rate.cycles_per_output + rate.cycles_per_channel))


def test_the_groups_of_a_convolution_run_one_after_another_on_a_systolic_array():
    array = load_target("systolic-weight-stationary").compute
    assert isinstance(array, SystolicCompute)
    whole = Shape(LayerKind.CONV, 64, 64, 3, 100, 0, groups=4)
    one = Shape(LayerKind.CONV, 16, 16, 3, 100, 0)
    assert array.work(whole, 8, 8).compute == 4 * array.work(one, 8, 8).compute


def test_bit_operations_follow_the_positions_of_each_layer():
    network = u_net()
    allocation = {site: 4 if site in network.weight_sites else 8 for site in network.sites}
    bits = np.array([[allocation[site] for site in network.sites]])
    assert bit_operations(network, bits)[0] == 32 * network.macs


def test_tensors_take_the_bytes_of_their_own_positions():
    network = u_net()
    table = compile_target(load_target("cortex-m4-x-cube-ai"), network)
    eight = table.site_bytes[:, 7]
    held = dict(zip(network.activation_sites, eight.tolist(), strict=True))
    assert (held["x"], held["down"], held["joined"], held["pooled"]) == (8 * 40, 16 * 20, 20 * 40, 8)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"positions": 0}, "0 out; wanted 1 or more"),
        ({"groups": 3}, "multiples of its 3 groups"),
        ({"kernel_height": 0}, "wanted 1 or more"),
        ({"kind": LayerKind.POOL, "weight_site": None}, "a pool layer keeps their number"),
        ({"kind": LayerKind.MULTIPLY, "weight_site": None}, "1 input sites; a multiply has 2"),
        ({"kind": LayerKind.FUNCTION}, "a function has none"),
        ({"weight_site": None}, "a conv has one"),
    ],
)
def test_a_layer_that_no_network_has_is_refused(change, named):
    layer = make("layer", LayerKind.CONV, {"x": (8, 20)}, 16, 10, taps=2)
    with pytest.raises(TargetError, match=named):
        replace(layer, **change)


def test_positions_that_do_not_fit_together_are_refused():
    layers = (
        make("down", LayerKind.CONV, {"x": (8, 20)}, 8, 10, taps=2),
        make("head", LayerKind.CONV, {"down": (8, 20)}, 3, 20),
    )
    sites = {"x": 8, "down": 8, "head": 3}
    with pytest.raises(TargetError, match="site 'down' has 10 positions; the layer reads 20"):
        Workload("broken", layers, 20, 1.0, per_channel_scales=True, site_channels=sites)


def test_a_concatenation_has_the_channels_of_its_inputs():
    layer = replace(make("joined", LayerKind.CONCATENATE, {"x": (8, 20), "y": (4, 20)}, 12, 20), in_channels=13, out_channels=13)
    with pytest.raises(TargetError, match="its inputs have 12 channels; the layer wants 13"):
        Workload("broken", (layer,), 20, 1.0, per_channel_scales=True, site_channels={"x": 8, "y": 4, "joined": 13})


def test_only_what_keeps_the_frames_is_streamed():
    with pytest.raises(TargetError, match="streaming layer 'down'"):
        u_net().streamed()


def gated(second=4, **changes):
    """A split into value and gate, a gate in place, and a concatenation of which two layers write a part each."""
    layers = (
        make("both", LayerKind.CONV, {"x": (8, FRAMES)}, 8, None),
        replace(make("gate", LayerKind.FUNCTION, {"both": (4, FRAMES)}, 4, None), whole=False),
        replace(make("value", LayerKind.MULTIPLY, {"both": (4, FRAMES), "gate": (4, FRAMES)}, 4, None), whole=False),
        replace(make("left", LayerKind.CONV, {"value": (4, FRAMES)}, 6, None), output_site="joined", whole=False),
        replace(make("right", LayerKind.CONV, {"gate": (4, FRAMES)}, second, None), output_site="joined", whole=False),
        replace(make("bent", LayerKind.FUNCTION, {"joined": (10, FRAMES)}, 10, None), output_site="joined"),
        replace(make("head", LayerKind.CONV, {"joined": (10, FRAMES)}, 3, None), **changes),
    )
    layers = tuple(replace(layer, input_positions=None) for layer in layers)
    sites = {"x": 8, "both": 8, "gate": 4, "value": 4, "joined": 10, "head": 3}
    return Workload("gated", layers, FRAMES, 0.01, per_channel_scales=True, site_channels=sites)


def test_parts_of_a_tensor_are_read_and_written_in_place():
    network = gated()
    assert network.site_positions == dict.fromkeys(network.site_channels, FRAMES)
    assert network.writers["joined"] == (3, 4)
    table = compile_target(load_target("cortex-m4-x-cube-ai"), network)
    alive = [{network.activation_sites[k] for k in row if k < len(network.activation_sites)} for row in table.live]
    assert alive[3] == {"value", "gate", "joined"}  # it is there from its first part on
    assert alive[4] == {"gate", "joined"}
    assert alive[5] == {"joined"}
    assert network.streamed().state_frames == dict.fromkeys(network.site_channels, 0)


def test_a_part_that_is_later_than_the_other_is_waited_for():
    layers = list(gated().layers)
    layers[4] = replace(layers[4], kernel_size=5, ahead=3)
    late = replace(gated(), layers=tuple(layers)).streamed()
    assert late.delay_frames["head"] == late.delay_frames["joined"] == 3
    assert late.state_frames["gate"] == 4
    assert late.state_frames["joined"] == 3


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: gated(second=3), "site 'joined' has 10 channels; the layers that write it have 9"),
        (lambda: gated(output_site="joined", whole=False), "site 'joined' has 10 channels; the layers that write it have 13"),
        (lambda: gated(output_site="both"), "written site 'both' occurs twice"),
        (lambda: gated(whole=False, output_site="both"), "written site 'both' occurs twice"),
    ],
)
def test_parts_that_are_none_are_refused(build, named):
    with pytest.raises(TargetError, match=named):
        build()


@pytest.mark.parametrize("name", ["cortex-m4-x-cube-ai", "nvidia-t4", "ethos-u55-128", "systolic-output-stationary", "bitfusion"])
def test_norms_and_softmaxes_read_their_input_twice(name):
    kinds = (LayerKind.FUNCTION, LayerKind.NORM, LayerKind.SOFTMAX)
    layers = [make(kind.value, kind, {"x": (64, FRAMES)}, 64, None) for kind in kinds]
    layers = tuple(replace(layer, input_positions=None, constants=128 * (layer.kind is LayerKind.NORM)) for layer in layers)
    channels = dict.fromkeys(("x", *(kind.value for kind in kinds)), 64)
    network = Workload("norms", layers, FRAMES, 0.01, per_channel_scales=True, site_channels=channels)
    assert network.constant_count == network.parameters == 2 * 64
    shapes = [executed_shape(layer, FRAMES, TARGETS[name].dilation) for layer in network.layers]
    assert [shape.elements for shape in shapes] == [64 * FRAMES, 2 * 64 * FRAMES, 2 * 64 * FRAMES]
    assert [shape.inputs for shape in shapes] == [shape.elements for shape in shapes]
    once, norm, softmax = (layer.cycles for layer in per_layer(compile_target(TARGETS[name], network), np.full(4, 8)))
    assert once < norm == softmax <= 2 * once
    with pytest.raises(TargetError, match="streaming layer 'norm'"):
        replace(network, layers=tuple(replace(layer, over_positions=layer.kind is LayerKind.NORM) for layer in layers)).streamed()
