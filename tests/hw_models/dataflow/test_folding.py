import pytest
from hypothesis import given
from hypothesis import strategies as st

from hw_models.dataflow.folding import (
    Folding,
    choose_folding,
    initiation_interval,
    latency_cycles,
    node_cycles,
    residual_frames,
)
from hw_models.workload import LayerKind, Workload
from tests.hw_models.networks import layer, one_layer, tcn, workloads

FRAMES = 250


def only(kind, channels_in, channels_out, taps=1, dilation=1):
    return one_layer(kind, channels_in, channels_out, taps, dilation).layers[0]


def fold(x, target):
    folding = choose_folding(x, FRAMES, target)
    window_and_engine = node_cycles(x, FRAMES, folding)[-2:]
    return folding.pe, folding.simd, folding.window_simd, folding.parallel_window, max(window_and_engine)


@pytest.mark.parametrize(
    ("taps", "bottleneck", "hidden", "dilation", "target", "expected"),
    [
        (
            *(3, 12, 24, 1, 1100),
            [(6, 12, 0, False, 1000), (24, 1, 24, False, 752), (3, 24, 0, False, 1000), (3, 36, 12, False, 1000)],
        ),
        (
            *(5, 16, 32, 2, 5000),
            [(2, 16, 0, False, 4000), (16, 1, 16, False, 2507), (1, 32, 0, False, 4000), (1, 80, 8, False, 4000)],
        ),
        (
            *(5, 16, 32, 2, 700),
            [(16, 16, 0, False, 500), (32, 5, 32, True, 260), (8, 32, 0, False, 500), (8, 80, 16, True, 500)],
        ),
    ],
)
def test_foldings_and_cycles_are_those_of_finns_set_folding(taps, bottleneck, hidden, dilation, target, expected):
    # SetFolding(target, mvau_wwidth_max=10**6, two_pass_relaxation=False) of finn-plus 1.6.1
    chain = (
        only(LayerKind.CONV, bottleneck, hidden),
        only(LayerKind.DEPTHWISE, hidden, hidden, taps, dilation),
        only(LayerKind.CONV, hidden, bottleneck),
        only(LayerKind.CONV, bottleneck, bottleneck, taps, dilation),
    )
    assert [fold(x, target) for x in chain] == expected


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 40_000))
def test_the_least_folding_that_meets_the_target(inputs, outputs, target):
    x = only(LayerKind.CONV, inputs, outputs)
    folding = choose_folding(x, FRAMES, target)
    # all inputs are unfolded before any output
    path = [(1, s) for s in range(1, inputs + 1) if inputs % s == 0] + [
        (p, inputs) for p in range(1, outputs + 1) if outputs % p == 0
    ]
    meets = [(p, s) for p, s in path if FRAMES * inputs * outputs <= target * p * s]
    assert (folding.pe, folding.simd) == (meets[0] if meets else path[-1])


@given(workloads(), st.integers(1, 20_000), st.integers(1, 20_000))
def test_a_tighter_target_never_slows_an_engine(network, target, other):
    tight, loose = sorted((target, other))
    for x in network.layers:
        cycles = [node_cycles(x, network.frames, choose_folding(x, network.frames, limit))[-1] for limit in (tight, loose)]
        assert cycles[0] <= cycles[1]


def test_an_engine_reads_its_inputs_in_1024_steps_at_most():
    assert choose_folding(only(LayerKind.CONV, 1000, 4, 3), FRAMES, 10**12).simd == 3
    assert choose_folding(only(LayerKind.CONV, 1000, 4, 1), FRAMES, 10**12).simd == 1


def test_streams_are_no_wider_than_the_tool_allows():
    folding = choose_folding(only(LayerKind.CONV, 2048, 2048), FRAMES, 0)
    assert folding == Folding(512, 512, 0, parallel_window=False)


def test_taps_are_not_read_at_once_where_the_padding_outlasts_the_frames():
    assert choose_folding(only(LayerKind.DEPTHWISE, 8, 8, 3, FRAMES - 1), FRAMES, 0).parallel_window
    assert not choose_folding(only(LayerKind.DEPTHWISE, 8, 8, 3, FRAMES), FRAMES, 0).parallel_window


def test_interval_is_the_slowest_node_and_latency_the_longest_path():
    network = tcn(blocks=1)
    foldings = tuple(choose_folding(x, network.frames, 10**9) for x in network.layers)
    projection, expand, depthwise, project, add, head = (
        node_cycles(x, 50, f) for x, f in zip(network.layers, foldings, strict=True)
    )
    assert projection == (50 * 20 * 12,)
    assert depthwise == ((50 + 2) * 24, 50 * 3 * 24 + 23 * 3 + 2, 50 * 3 * 24)
    assert add == (50 * 12, 50 * 12)
    assert initiation_interval(network, foldings) == 50 * 24 * 12
    assert latency_cycles(network, foldings) == sum(map(sum, (projection, expand, depthwise, project, add, head)))


def test_only_the_longer_of_two_branches_counts_for_the_latency():
    layers = (
        layer(LayerKind.CONV, "long", "x", "a", 8, 8),
        layer(LayerKind.DEPTHWISE, "short", "x", "b", 8, 8),
        layer(LayerKind.ADD, "sum", ("a", "b"), "y", 8, 8),
    )
    network = Workload("fork", layers, 10, 0.01, per_channel_scales=True, site_channels=dict.fromkeys("xaby", 8))
    foldings = tuple(choose_folding(x, 10, 10**9) for x in layers)
    assert latency_cycles(network, foldings) == 10 * 8 * 8 + 2 * 10 * 8


def test_the_residual_waits_for_the_frames_the_branch_holds():
    # three engines of a frame each, and a window over 3 taps at dilations 1, 2, 4, 8
    waiting = residual_frames(tcn(blocks=4))
    assert [frames for frames in waiting if frames] == [3 + 2 * 2**i for i in range(4)]
    assert sum(frames > 0 for frames in waiting) == 4


def test_the_window_of_a_depthwise_layer_repeats_its_taps_for_every_word_of_channels():
    # ConvolutionInputGenerator_rtl of finn-plus 1.6.1: 64 frames, 128 channels, 3 taps
    x = only(LayerKind.DEPTHWISE, 128, 128, 3)
    assert node_cycles(x, 64, Folding(1, 1, 1, parallel_window=False))[0] == 24959
    assert choose_folding(x, 64, 24959).pe == 1
    assert choose_folding(x, 64, 24958).pe == 2  # the engine would take 24576 cycles with one


def test_padding_takes_as_few_lanes_as_keep_up():
    x = only(LayerKind.DEPTHWISE, 128, 128, 3, 32)
    folding = choose_folding(x, 64, 10_000)
    assert folding.padding_simd == 2  # (64 + 64) frames of 128 channels
    assert node_cycles(x, 64, folding)[0] == 8192
    assert choose_folding(x, 1, 10_000).padding_simd == 0  # frame by frame, the past waits in the window
