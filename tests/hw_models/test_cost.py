import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw_models.breakdown import per_layer
from hw_models.compile import compile_target
from hw_models.cost import evaluate, evaluate_runnable, runnable
from hw_models.errors import TargetError
from hw_models.layer_cost import running_pj
from hw_models.packed import packed_size_bytes
from hw_models.workload import LayerKind, Workload
from tests.hw_models.networks import RUNNABLE_WIDTHS, TARGETS, layer, one_layer, overhead_cycles, tcn, workloads

every_target = pytest.mark.parametrize("name", TARGETS)


def random_bits(network, name, count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.choice(RUNNABLE_WIDTHS[name], (count, len(network.sites)))


def held_bits(target, bits):
    """The width in which a target holds an activation."""
    return min(a for a, _ in target.precisions.pairs if a >= bits)


def simulate_peak(target, network, widths):
    """Runs the layers one by one, allocating and freeing tensors, and watches the total."""

    def size(site):
        row = -(-network.site_channels[site] * held_bits(target, widths[site]) // 8)
        alignment = target.storage.alignment_bytes
        return -(-network.frames * row // alignment) * alignment

    readers = {site: sum(x.input_sites.count(site) for x in network.layers) for site in network.site_channels}
    written = {x.output_site for x in network.layers}
    memory = {site: size(site) for site in network.site_channels if site not in written}
    peak = 0
    for x in network.layers:
        memory[x.output_site] = size(x.output_site)
        peak = max(peak, sum(memory.values()))
        for site in x.input_sites:
            readers[site] -= 1
            if not readers[site]:
                del memory[site]
    return peak


@every_target
@settings(max_examples=25, deadline=None)
@given(network=workloads(), data=st.data())
def test_peak_memory_is_that_of_running_the_layers_one_by_one(name, network, data):
    bits = [data.draw(st.sampled_from(RUNNABLE_WIDTHS[name])) for _ in network.sites]
    costs = evaluate(compile_target(TARGETS[name], network), np.array([bits]))
    widths = dict(zip(network.sites, bits, strict=True))
    assert costs.peak_activation_bytes[0] == simulate_peak(TARGETS[name], network, widths)


@every_target
@settings(max_examples=15, deadline=None)
@given(network=workloads(), data=st.data())
def test_more_bits_never_shrink_weights_or_activations(name, network, data):
    choices = RUNNABLE_WIDTHS[name]
    fewer = [data.draw(st.sampled_from(choices)) for _ in network.sites]
    more = [data.draw(st.sampled_from([w for w in choices if w >= bits])) for bits in fewer]
    costs = evaluate(compile_target(TARGETS[name], network), np.array([fewer, more]))
    for values in (costs.packed_bytes, costs.weight_bytes, costs.peak_activation_bytes):
        assert values[0] <= values[1]


@every_target
@settings(max_examples=15, deadline=None)
@given(network=workloads(), seed=st.integers(0, 1000))
def test_totals_are_the_sums_of_the_layers(name, network, seed):
    table = compile_target(TARGETS[name], network)
    bits = random_bits(network, name, 1, seed)
    costs, layers = evaluate(table, bits), per_layer(table, bits[0])
    assert [x.layer for x in layers] == [x.name for x in network.layers]
    time, overhead = sum(x.latency_ms for x in layers), overhead_cycles(table.target, network)
    if table.dataflow is None:
        assert costs.latency_ms[0] == pytest.approx(time + overhead / table.target.clock.clock_hz * 1e3, rel=1e-12)
        if table.target.energy is not None:
            power = running_pj(table.target, overhead) / 1e6
            assert costs.energy_uj[0] == pytest.approx(power + sum(x.energy_uj for x in layers), rel=1e-9)
    else:  # circuits overlap
        assert max(x.latency_ms for x in layers) <= costs.interval_ms[0] <= costs.latency_ms[0]
        for resource in ("lut", "bram18", "uram", "dsp"):
            assert costs.resources[resource][0] == sum(x.resources[resource] for x in layers)
    assert costs.weight_bytes[0] == sum(x.weight_bytes for x in layers)
    assert costs.macs[0] == sum(x.macs for x in layers) == network.macs


@every_target
def test_a_batch_costs_what_its_allocations_cost_one_by_one(name):
    network = tcn()
    table = compile_target(TARGETS[name], network)
    bits = random_bits(network, name, 9000)
    batch = evaluate(table, bits)
    for i in (0, 1, 8191, 8192, 8999):
        single = evaluate(table, bits[i : i + 1])
        for metric in ("packed_bytes", "macs", "bit_operations", "real_time_factor", "fits", *table.metrics):
            assert batch.column(metric)[i] == single.column(metric)[0]
    assert batch.packed_bytes.tolist() == packed_size_bytes(network, bits).tolist()


@every_target
@settings(max_examples=15, deadline=None)
@given(network=workloads(), data=st.data())
def test_no_layer_does_more_than_the_roof_allows(name, network, data):
    bits = np.array([data.draw(st.sampled_from(RUNNABLE_WIDTHS[name])) for _ in network.sites])
    for cost in per_layer(compile_target(TARGETS[name], network), bits):
        assert 0 <= cost.utilisation <= 1 + 1e-9
        assert cost.cycles > 0


@every_target
def test_no_allocations_cost_nothing(name):
    network = tcn()
    costs = evaluate(compile_target(TARGETS[name], network), np.empty((0, len(network.sites)), np.int64))
    assert costs.latency_ms.shape == costs.peak_activation_bytes.shape == (0,)


@every_target
def test_peak_memory_holds_the_largest_input_and_output_together(name):
    network = tcn()
    target = TARGETS[name]
    bits = random_bits(network, name, 50)
    peaks = evaluate(compile_target(target, network), bits).peak_activation_bytes
    for row, peak in zip(bits, peaks, strict=True):
        widths = dict(zip(network.sites, row.tolist(), strict=True))
        for x in network.layers:
            sites = {*x.input_sites, x.output_site}
            held = {s: -(-network.site_channels[s] * held_bits(target, widths[s]) // 8) for s in sites}
            assert peak >= network.frames * sum(held.values())


def test_a_residual_stays_in_memory_across_its_block():
    network = tcn(bottleneck=12, hidden=24, blocks=2, frames=50, features=10, bins=5)
    costs = evaluate(compile_target(TARGETS["bitfusion"], network), np.full((1, len(network.sites)), 8))
    assert costs.peak_activation_bytes[0] == 50 * (12 + 24 + 24)  # block input, expanded, filtered


def test_half_a_byte_per_activation_is_packed_frame_by_frame():
    network = one_layer(LayerKind.DEPTHWISE, 5, 5, 3, frames=10)
    costs = evaluate(compile_target(TARGETS["bitfusion"], network), np.array([[8, 4, 4]]))
    assert costs.peak_activation_bytes[0] == 10 * (3 + 3)  # 20 bits: three bytes a frame


def test_an_add_runs_at_the_wider_of_its_inputs():
    table = compile_target(TARGETS["ethos-u55-128"], one_layer(LayerKind.ADD, 16, 16, frames=10))
    bits = np.array([[8, 16, 8], [16, 8, 8], [8, 8, 8]])
    first, second, narrow = (per_layer(table, row)[0] for row in bits)
    assert first.executed == second.executed
    assert (first.executed.activation_bits, narrow.executed.activation_bits) == (16, 8)
    latency = evaluate(table, bits).latency_ms
    assert latency[0] == latency[1] == pytest.approx(16 * 10 * 1.5 / 500e6 * 1e3)


@pytest.mark.parametrize("name", ["bitfusion", "cortex-m7-cmsis-nn", "ethos-u55-128"])
def test_an_integer_chip_refuses_float_layers_and_says_which(name):
    network = tcn()
    table = compile_target(TARGETS[name], network)
    bits = np.full((3, len(network.sites)), 8)
    bits[1, network.column["blocks.1.expand.weight"]] = 32
    bits[2, network.column["masks"]] = 32
    assert runnable(table, bits).tolist() == [True, False, False]
    can, costs = evaluate_runnable(table, bits[::-1])
    assert can.tolist() == [False, False, True]
    for metric in table.metrics:
        np.testing.assert_array_equal(costs.column(metric), evaluate(table, bits[:1]).column(metric))
    with pytest.raises(TargetError, match=r"layer 'blocks\.1\.expand': 32-bit weights, 8") as error:
        evaluate(table, bits)
    assert f"target '{name}' runs a8w8" in str(error.value)
    with pytest.raises(TargetError, match="layer 'masks_head': 8-bit weights, 8-bit inputs and 32-bit output"):
        per_layer(table, bits[2])


@every_target
def test_an_allocation_costs_the_same_to_the_last_bit_in_every_batch(name):
    network = tcn()
    table = compile_target(TARGETS[name], network)
    bits = random_bits(network, name, 600)
    whole = evaluate(table, bits)
    for rows in (slice(0, 1), slice(255, 258), slice(511, 600)):
        part = evaluate(table, bits[rows])
        for metric in table.metrics:
            np.testing.assert_array_equal(part.column(metric), whole.column(metric)[rows])


def test_a_float_operand_makes_the_whole_layer_float_on_x86():
    table = compile_target(TARGETS["x86-onnxruntime"], one_layer(LayerKind.CONV, 256, 256))
    floats, mixed, integers = (per_layer(table, np.array(row))[0] for row in ([32, 32, 32], [8, 32, 8], [8, 8, 8]))
    assert mixed.cycles == floats.cycles > integers.cycles
    assert (mixed.executed.weight_bits, mixed.executed.activation_bits) == (32, 32)


def test_a_kernel_that_dilation_makes_too_long_is_refused_by_layer():
    network = one_layer(LayerKind.DEPTHWISE, 8, 8, kernel_size=3, dilation=4096)
    with pytest.raises(TargetError, match="layer 'only': 4097 taps once dilated; wanted 4096 or fewer"):
        compile_target(TARGETS["ethos-u55-128"], network)


def test_dilation_is_dear_where_the_compiler_expands_the_kernel():
    bits = np.full((1, 3), 8)
    latency = {
        (name, dilation): evaluate(
            compile_target(TARGETS[name], one_layer(LayerKind.DEPTHWISE, 64, 64, 3, dilation, frames=256)),
            bits,
        ).latency_ms[0]
        for name in TARGETS
        for dilation in (1, 128)
    }
    assert latency["ethos-u55-128", 128] > 10 * latency["ethos-u55-128", 1]
    for name in ("bitfusion", "cortex-m7-cmsis-nn", "x86-onnxruntime"):
        assert latency[name, 128] == latency[name, 1]


def test_a_tensor_read_twice_by_one_layer_is_counted_once():
    double = layer(LayerKind.ADD, "double", ("x", "x"), "y", 8, 8)
    network = Workload("w", (double,), 10, 0.01, per_channel_scales=True, site_channels={"x": 8, "y": 8})
    costs = evaluate(compile_target(TARGETS["bitfusion"], network), np.array([[8, 8]]))
    assert costs.peak_activation_bytes[0] == 10 * 16
