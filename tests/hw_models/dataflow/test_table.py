import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw_models.dataflow.resources import (
    Widths,
    accumulator_bits,
    matrix_engine,
    search_thresholds,
    sliding_window,
    stream_fifo,
    vector_engine,
)
from hw_models.dataflow.table import RESOURCES, compile_dataflow, design, evaluate_dataflow
from hw_models.errors import TargetError
from hw_models.target import load_target
from hw_models.workload import LayerKind
from tests.hw_models.networks import tcn, workloads

PYNQ = load_target("finn-pynq-z2")
ZCU104 = load_target("finn-zcu104")
EVERYTHING = {
    "weight_memory": "by_depth",
    "window_memory": "by_depth",
    "thresholds": "engine",
    "accumulators": "by_type",
    "residual_fifos": "counted",
}
NETWORK = tcn(features=33, bottleneck=16, hidden=32, blocks=3, bins=17, frames=100)


def with_compute(target, **changes):
    return target.model_copy(update={"compute": target.compute.model_copy(update=changes)})


def random_bits(network, count, seed=0):
    return np.random.default_rng(seed).integers(1, 9, (count, len(network.sites)))


def totals(table, bits_row):
    """Resources `[rungs, 4]` of one allocation, layer by layer from the formulas."""
    rule, network = table.target.compute, table.workload
    width = dict(zip(network.sites, (int(bits) for bits in bits_row), strict=True))
    lag = dict.fromkeys(network.site_channels, 0)
    sums = np.zeros((len(table.foldings), 4), np.int64)
    for i, x in enumerate(network.layers):
        a, b = max(width[site] for site in x.input_sites), width[x.output_site]
        w = width[x.weight_site] if x.weight_site else 1
        late = [lag[site] for site in x.input_sites]
        lag[x.output_site] = max(late) + (0 if x.kind is LayerKind.ADD else 1 + (x.kernel_size - 1) * x.dilation)
        types = Widths.of(w, a, b, signed=table.target.precisions.activation_signed)
        widths = dataclasses.replace(types, symmetric_weights=rule.accumulators == "by_weight")
        uram = {"uram": rule.uram > 0}
        for r, rung in enumerate(table.foldings):
            f, built = rung[i], (rule.multipliers, rule.weight_memory)
            match x.kind:
                case LayerKind.CONV:
                    inside = rule.thresholds == "engine"
                    parts = [matrix_engine(x.fan_in, x.out_channels, f.pe, f.simd, widths, *built, thresholds=inside)]
                case LayerKind.DEPTHWISE:
                    inside = rule.thresholds in ("engine", "uncounted")
                    parts = [vector_engine(x.out_channels, x.fan_in, f.pe, f.simd, widths, *built, thresholds=inside)]
                case LayerKind.ADD:
                    parts = [search_thresholds(x.out_channels, f.pe, np.array(a + 1), np.array(b), **uram)]
                    if max(late) > min(late) and rule.residual_fifos == "counted":
                        parts.append(stream_fifo((max(late) - min(late)) * x.out_channels // f.pe, np.array(f.pe * a)))
            if x.kind is not LayerKind.ADD and rule.thresholds == "standalone":
                parts.append(search_thresholds(x.out_channels, f.pe, accumulator_bits(x.fan_in, widths), np.array(b), **uram))
            if x.kind is not LayerKind.ADD and x.kernel_size > 1:
                shape = (x.in_channels, x.kernel_size, x.dilation, f.window_simd)
                parts.append(sliding_window(*shape, np.array(a), parallel=f.parallel_window, memory=rule.window_memory))
            for part in parts:
                sums[r] += [int(part.lut), int(part.bram18), int(part.uram), int(part.dsp)]
    return sums


OPTIONS = st.fixed_dictionaries(
    {
        "multipliers": st.sampled_from(["lut", "dsp"]),
        "weight_memory": st.sampled_from(["auto", "lutram", "bram", "uram", "by_depth"]),
        "window_memory": st.sampled_from(["lutram", "by_depth"]),
        "thresholds": st.sampled_from(["engine", "standalone", "uncounted"]),
        "accumulators": st.sampled_from(["by_type", "by_weight"]),
        "residual_fifos": st.sampled_from(["counted", "uncounted"]),
    }
)


@settings(deadline=None)
@given(workloads(), st.integers(0, 10**6), OPTIONS)
def test_an_allocation_takes_the_fastest_rung_that_fits(network, seed, options):
    target = with_compute(ZCU104, **options, lut=5000, bram18=40, uram=20, dsp=40)
    table = compile_dataflow(target, network)
    row = random_bits(network, 1, seed)
    costs = evaluate_dataflow(table, row)
    sums = totals(table, row[0])
    fitting = [r for r in range(len(sums)) if (sums[r] <= target.compute.budget).all()]
    rung = max(fitting, default=0)
    assert costs.fits[0] == bool(fitting)
    assert costs.rung[0] == rung
    assert [int(getattr(costs, name)[0]) for name in RESOURCES] == sums[rung].tolist()
    assert costs.interval_cycles[0] == table.cycles[rung].max()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_the_frame_rate_takes_the_slowest_rung_that_keeps_up(bits):
    wanted = 20_000
    rate = PYNQ.clock.clock_hz * NETWORK.frames / wanted
    table = compile_dataflow(with_compute(PYNQ, frames_per_second=rate), NETWORK)
    row = np.full((1, len(NETWORK.sites)), bits)
    costs = evaluate_dataflow(table, row)
    rung = int(costs.rung[0])
    assert table.intervals[rung] <= wanted < table.intervals[rung - 1]
    sums = totals(table, row[0])[rung]
    assert [int(getattr(costs, name)[0]) for name in RESOURCES] == sums.tolist()
    assert costs.fits[0] == (sums <= PYNQ.compute.budget).all()


def test_the_asked_rate_has_a_rung_of_its_own():
    # without it the ladder would go from 12000 cycles to the next step of 10^(1/8)
    free = compile_dataflow(ZCU104, NETWORK).intervals
    wanted = int(free[1]) - 1
    asked = compile_dataflow(with_compute(ZCU104, frames_per_second=ZCU104.clock.clock_hz * NETWORK.frames / wanted), NETWORK)
    assert set(free) <= set(asked.intervals)
    assert asked.intervals[asked.frame_rate_rung] == max(asked.intervals[asked.intervals <= wanted])


def test_a_rate_out_of_reach_does_not_fit():
    table = compile_dataflow(with_compute(ZCU104, frames_per_second=1e9), NETWORK)
    costs = evaluate_dataflow(table, np.ones((3, len(NETWORK.sites)), int))
    assert not costs.fits.any()
    assert (costs.rung == len(table.intervals) - 1).all()


def test_the_ladder_goes_from_no_parallelism_to_all_in_steps_of_an_eighth_of_a_decade():
    table = compile_dataflow(PYNQ, NETWORK)
    assert table.intervals[0] == max(x.macs(NETWORK.frames) for x in NETWORK.layers)
    assert table.intervals[-1] == NETWORK.frames + 2 * 4 + 2  # the window at dilation 4, a cycle per padded frame
    assert (np.diff(table.intervals) <= 0).all()
    assert all((f.pe, f.simd) == (1, 1) for f in table.foldings[0])


def test_fewer_bits_buy_a_faster_design_and_8_bit_outputs_none():
    table = compile_dataflow(with_compute(PYNQ, **EVERYTHING), NETWORK)
    costs = evaluate_dataflow(table, np.array([[b] * len(NETWORK.sites) for b in (1, 2, 3, 4, 8)]))
    intervals = costs.interval_cycles.tolist()
    assert intervals[:4] == sorted(intervals[:4])
    assert intervals[0] < intervals[3]
    assert costs.fits.tolist() == [True, True, True, True, False]


def test_an_allocation_costs_the_same_in_every_batch():
    table = compile_dataflow(ZCU104, NETWORK)
    bits = random_bits(NETWORK, 600)
    batch = evaluate_dataflow(table, bits)
    for i in (0, 255, 256, 599):
        alone = evaluate_dataflow(table, bits[i : i + 1])
        for field in dataclasses.fields(batch):
            assert getattr(alone, field.name)[0] == getattr(batch, field.name)[i]


def test_the_layers_of_a_design_add_up():
    table = compile_dataflow(PYNQ, NETWORK)
    row = random_bits(NETWORK, 1)[0]
    costs = evaluate_dataflow(table, row[None])
    layers = design(table, row)
    assert [x.layer for x in layers] == [x.name for x in NETWORK.layers]
    for name in RESOURCES:
        assert sum(getattr(x, name) for x in layers) == getattr(costs, name)[0]
    assert max(x.cycles for x in layers) == costs.interval_cycles[0]


def test_sums_far_beyond_a_device_do_not_overflow():
    network = tcn(features=257, bottleneck=512, hidden=512, blocks=20, bins=257, frames=10**7)
    table = compile_dataflow(with_compute(PYNQ, frames_per_second=1e6), network)
    costs = evaluate_dataflow(table, np.full((1, len(network.sites)), 8))
    assert costs.lut[0] > 10**7
    assert not costs.fits[0]


def test_wider_tensors_are_refused_by_name():
    table = compile_dataflow(PYNQ, NETWORK)
    row = np.full((1, len(NETWORK.sites)), 4)
    row[0, 2] = 16
    with pytest.raises(TargetError, match=rf"{NETWORK.sites[2]}.*16 bits.*finn-pynq-z2"):
        evaluate_dataflow(table, row)


def test_another_kind_of_chip_is_refused():
    with pytest.raises(TargetError, match="micro_block"):
        compile_dataflow(load_target("ethos-u55-128"), NETWORK)


@pytest.mark.parametrize(
    ("option", "counted", "uncounted"),
    [("thresholds", "engine", "uncounted"), ("residual_fifos", "counted", "uncounted"), ("accumulators", "by_type", "by_weight")],
)
def test_what_is_left_out_takes_fewer_lookup_tables_at_the_same_speed(option, counted, uncounted):
    rate = PYNQ.clock.clock_hz * NETWORK.frames / 20_000
    tables = [
        compile_dataflow(with_compute(PYNQ, frames_per_second=rate, **{option: value}), NETWORK) for value in (counted, uncounted)
    ]
    more, less = (evaluate_dataflow(table, np.full((1, len(NETWORK.sites)), 8)) for table in tables)
    assert more.lut[0] > less.lut[0]
    assert more.interval_cycles[0] == less.interval_cycles[0]
