"""Frame by frame: state and delay against a network that is really run so."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw_models.breakdown import per_layer
from hw_models.compile import compile_target
from hw_models.cost import evaluate
from hw_models.errors import TargetError
from hw_models.workload import LayerKind
from tests.hw_models.networks import RUNNABLE_WIDTHS, TARGETS, one_layer, tcn, workloads


def impulse_reach(network):
    """Frames before and after the current one that reach each site, by following every tap."""
    reach = {site: {0} for site in network.site_channels}
    for layer in network.layers:
        span = (layer.kernel_size - 1) * layer.dilation
        first = -span if network.causal else span // 2 - span
        taps = [first + tap * layer.dilation for tap in range(layer.kernel_size)]
        reach[layer.output_site] = {tap + shift for site in layer.input_sites for shift in reach[site] for tap in taps}
    return reach


@settings(max_examples=60, deadline=None)
@given(network=workloads(), causal=st.booleans())
def test_a_site_lags_by_the_furthest_frame_ahead_that_reaches_it(network, causal):
    network = replace(network, causal=causal)
    reach = impulse_reach(network)
    written = {layer.output_site for layer in network.layers}
    for site in written:
        assert network.delay_frames[site] >= max(reach[site])
        if causal:
            assert network.delay_frames[site] == 0


def test_a_tcn_lags_by_half_its_receptive_field():
    network = tcn(blocks=4)
    assert network.delay_frames["masks"] == 1 + 2 + 4 + 8 == max(impulse_reach(network)["masks"])


def test_state_of_a_causal_block_is_what_its_kernel_reaches_back_to():
    state = replace(tcn(blocks=4), causal=True).streamed().state_frames
    assert [state[f"blocks.{i}.expand.output"] for i in range(4)] == [2, 4, 8, 16]
    assert sum(state.values()) == 2 + 4 + 8 + 16


def test_a_residual_waits_for_the_centred_kernel_of_its_block():
    state = tcn(blocks=4).streamed().state_frames
    assert [state[f"blocks.{i}.input"] for i in range(4)] == [1, 2, 4, 8]
    assert [state[f"blocks.{i}.expand.output"] for i in range(4)] == [2, 4, 8, 16]


def test_a_whole_utterance_keeps_no_state():
    assert set(tcn().state_frames.values()) == {0}


def test_streaming_keeps_one_frame_of_live_tensors_and_the_state():
    network = replace(tcn(blocks=2, bottleneck=12, hidden=24, features=10, bins=5), causal=True).streamed()
    costs = evaluate(compile_target(TARGETS["bitfusion"], network), np.full((1, len(network.sites)), 8))
    assert costs.peak_activation_bytes[0] == (12 + 24 + 24) + 24 * (2 + 4)


@pytest.mark.parametrize("name", TARGETS)
def test_a_frame_costs_less_than_an_utterance_and_dilation_nothing_more(name):
    target, width = TARGETS[name], max(w for w in RUNNABLE_WIDTHS[name] if w <= 8)
    short, long = (one_layer(LayerKind.DEPTHWISE, 16, 16, 3, dilation, frames=64).streamed() for dilation in (1, 64))
    bits = np.full((1, 3), width)
    latency = [evaluate(compile_target(target, network), bits).latency_ms[0] for network in (short, long)]
    assert latency[0] == latency[1]
    whole = evaluate(compile_target(target, one_layer(LayerKind.DEPTHWISE, 16, 16, 3, 1, frames=64)), bits).latency_ms[0]
    assert latency[0] < whole


def test_a_streaming_layer_reads_its_state():
    network = one_layer(LayerKind.DEPTHWISE, 16, 16, 3, 4).streamed()
    cost = per_layer(compile_target(TARGETS["ethos-u55-128"], network), np.array([8, 8, 8]))[0]
    assert cost.activation_bytes == 3 * 16 + 16


def test_the_real_time_factor_is_latency_over_what_it_processes():
    network = tcn()
    bits = np.full((1, len(network.sites)), 8)
    for one in (network, network.streamed()):
        costs = evaluate(compile_target(TARGETS["cortex-m7-cmsis-nn"], one), bits)
        assert costs.real_time_factor[0] == pytest.approx(costs.latency_ms[0] / (one.frames * 16.0))


def test_several_frames_at_once_are_not_streaming():
    with pytest.raises(TargetError, match="streaming 50 frames at once; wanted one"):
        replace(tcn(frames=50), streaming=True)
