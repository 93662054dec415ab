"""Numbers marked FINN come from FINN's own operators, github.com/Xilinx/finn at 39f0c9a with qonnx 1.0.0; those marked finn-plus
from version 1.6.1.
"""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hw_models.dataflow.resources import (
    Widths,
    accumulator_bits,
    block_rams,
    matrix_engine,
    search_thresholds,
    sliding_window,
    stream_fifo,
    vector_engine,
)

small_widths = st.integers(1, 8)


def counts(taken):
    return tuple(int(count) for count in (taken.lut, taken.bram18, taken.uram, taken.dsp))


def test_finns_own_unit_test_of_a_4_by_4_engine():
    # tests/fpgadataflow/test_fpgadataflow_res_estimate.py: INT2, no threshold logic, weights in lookup tables
    widths = Widths.of(2, 2, 0)
    assert counts(matrix_engine(4, 4, 1, 1, widths, "lut", "lutram")) == (317, 0, 0, 0)
    assert counts(matrix_engine(4, 4, 1, 1, widths, "dsp", "lutram")) == (313, 0, 0, 1)


def test_published_values_of_a_256_output_engine():
    engine = matrix_engine(128, 256, 1, 128, Widths.of(4, 4, 0, accumulator_bits=13), "lut", "bram")
    assert counts(engine) == (5937, 15, 0, 0)  # the accumulator as the weights' values allow
    by_types = matrix_engine(128, 256, 1, 128, Widths.of(4, 4, 0), "lut", "bram")
    assert counts(by_types) == (5939, 15, 0, 0)  # FINN


@pytest.mark.parametrize(
    ("shape", "bits", "signed", "multipliers", "memory", "expected"),
    [
        ((514, 64, 1, 2), (4, 8, 8), True, "dsp", "bram", (12143, 9, 0, 2)),
        ((64, 128, 2, 64), (8, 4, 6), True, "lut", "uram", (13750, 0, 15, 0)),
        ((128, 64, 4, 32), (4, 4, 4), False, "lut", "lutram", (8591, 0, 0, 0)),
    ],
)
def test_matrix_engine_equals_finn(shape, bits, signed, multipliers, memory, expected):
    assert counts(matrix_engine(*shape, Widths.of(*bits, signed=signed), multipliers, memory)) == expected


@pytest.mark.parametrize(
    ("shape", "bits", "signed", "multipliers", "memory", "expected"),
    [
        ((128, 3, 128, 3), (8, 8, 8), False, "lut", "uram", (704260, 0, 43, 0)),
        ((96, 5, 8, 1), (3, 5, 4), True, "lut", "lutram", (2261, 0, 0, 0)),
        ((512, 3, 4, 1), (2, 4, 3), True, "dsp", "bram", (1004, 1, 0, 4)),
    ],
)
def test_vector_engine_equals_finn(shape, bits, signed, multipliers, memory, expected):
    assert counts(vector_engine(*shape, Widths.of(*bits, signed=signed), multipliers, memory)) == expected


@pytest.mark.parametrize(
    ("shape", "bits", "parallel", "expected"),
    [
        ((64, 3, 1, 8), 4, False, (332, 0, 0, 0)),
        ((128, 3, 128, 1), 8, False, (300, 17, 0, 0)),
        ((512, 3, 64, 1), 4, False, (300, 17, 0, 0)),
        ((96, 5, 4, 8), 4, True, (492, 0, 0, 0)),
    ],
)
def test_sliding_window_equals_finn(shape, bits, parallel, expected):
    assert counts(sliding_window(*shape, np.array(bits), parallel=parallel)) == expected


@pytest.mark.parametrize(("words", "width", "expected"), [(20, 8, (14, 0)), (200, 64, (240, 0)), (3000, 256, (24, 60))])
def test_fifo_equals_finn(words, width, expected):
    assert counts(stream_fifo(words, np.array(width)))[:2] == expected


@pytest.mark.parametrize(("channels", "pe", "bits", "output", "expected"), [(64, 8, 5, 8, 1360), (17, 1, 8, 4, 56)])
def test_search_thresholds_equal_finn(channels, pe, bits, output, expected):
    assert counts(search_thresholds(channels, pe, np.array(bits), np.array(output))) == (expected, 0, 0, 0)


@pytest.mark.parametrize(
    ("depth", "width", "blocks"), [(16385, 1, 2), (8192, 2, 1), (4097, 4, 2), (2048, 9, 1), (513, 36, 2), (256, 512, 15)]
)
def test_block_rams_of_the_shapes_a_block_has(depth, width, blocks):
    assert block_rams(depth, np.array(width), (9, 18, 36)) == blocks


@given(st.integers(1, 4096), small_widths, small_widths, st.booleans())
def test_the_accumulator_holds_the_largest_sum_and_no_two_bits_more(fan_in, weight, activation, signed):
    bits = int(accumulator_bits(fan_in, Widths.of(weight, activation, 1, signed=signed)))
    largest = fan_in * 2 ** (weight - 1) * 2 ** (activation - signed)
    assert largest < 2 ** (bits - 1) <= 2 * largest


@given(small_widths, small_widths, small_widths, st.sampled_from([1, 2, 4, 8]))
def test_engine_is_the_formula_written_out(w, a, b, pe):
    inputs, outputs, simd = 96, 64, 12
    product = w + a
    accumulator = math.ceil(math.log2(inputs * 2 ** (product - 2) + 1)) + 1
    thresholds = (2**b - 1) * accumulator * math.ceil(outputs / pe / 64) + (2**b - 1) * accumulator
    logic = simd * (2 * math.ceil(product / 6) - 1) * product + product * (2 * simd - 1) + accumulator + thresholds
    memory = pe * simd * w * math.ceil(inputs * outputs / (pe * simd) / 64)
    engine = matrix_engine(inputs, outputs, pe, simd, Widths.of(w, a, b), "lut", "lutram")
    assert abs(int(engine.lut) - (300 + 1.1 * pe * logic + memory)) < 1


def test_widths_broadcast_as_if_asked_one_by_one():
    axis = np.arange(1, 9)
    table = matrix_engine(96, 64, 2, 8, Widths(axis[:, None, None], axis[:, None], axis, activation_signed=True), "dsp", "bram")
    for w, a, b in [(1, 1, 1), (3, 8, 2), (8, 8, 8)]:
        single = counts(matrix_engine(96, 64, 2, 8, Widths.of(w, a, b), "dsp", "bram"))
        full = (np.broadcast_to(count, (8, 8, 8)) for count in (table.lut, table.bram18, table.uram, table.dsp))
        assert tuple(int(count[w - 1, a - 1, b - 1]) for count in full) == single


def test_weights_go_to_block_ram_beyond_128_words():
    def memory(outputs):
        engine = matrix_engine(64, outputs, 1, 64, Widths.of(4, 4, 4), "lut", "by_depth")
        return int(engine.bram18)

    assert memory(128) == 0
    assert memory(129) > 0


def test_each_output_bit_doubles_the_thresholds_of_an_engine_but_not_of_a_search():
    thresholds = [int(matrix_engine(64, 64, 1, 1, Widths.of(1, 1, b), "lut", "uram").lut) for b in (0, 4, 8)]
    four, eight = thresholds[1] - thresholds[0], thresholds[2] - thresholds[0]
    assert eight / four == pytest.approx(255 / 15, rel=0.02)
    search = [int(search_thresholds(64, 64, np.array(8), np.array(b)).lut) for b in (4, 6)]
    assert search[1] / search[0] == 6 / 4


@pytest.mark.parametrize(
    ("shape", "bits", "thresholds", "expected"),
    [((64, 128, 1, 1), (4, 8, 8), False, (372, 2)), ((1028, 64, 1, 257), (4, 8, 8), False, (17273, 29))],
)
def test_a_matrix_engine_as_the_default_build_counts_it(shape, bits, thresholds, expected):
    # finn-plus, the embedded base; its accumulators are up to 3 bits narrower by the weights themselves: 370, 17270
    widths = Widths(*map(np.array, bits), activation_signed=False, symmetric_weights=True)
    assert counts(matrix_engine(*shape, widths, "lut", "auto", thresholds=thresholds))[:2] == expected


def test_a_vector_engine_as_the_default_build_counts_it():
    # finn-plus, the embedded base: INT4 weights, UINT8 inputs and outputs, an accumulator of 14 bits
    widths = Widths(np.array(4), np.array(8), np.array(8), activation_signed=False, symmetric_weights=True)
    assert int(accumulator_bits(3, widths)) == 14
    assert counts(vector_engine(128, 3, 1, 1, widths, "lut", "auto")) == (12149, 1, 0, 0)
    assert counts(vector_engine(40, 3, 1, 1, widths, "lut", "auto"))[1] == 0  # 120 words: no memory is counted


@given(st.integers(1, 500), st.integers(2, 8), small_widths, st.booleans())
def test_by_weight_the_accumulator_holds_what_symmetric_weights_reach(fan_in, weight, activation, signed):
    widths = Widths(np.array(weight), np.array(activation), np.array(1), signed, symmetric_weights=True)
    largest = fan_in * (2 ** (weight - 1) - 1) * (2 ** (activation - 1) if signed else 2**activation - 1)
    needed = math.ceil(math.log2(largest + 1)) + 1
    assert int(accumulator_bits(fan_in, widths)) == min(
        needed, int(accumulator_bits(fan_in, Widths.of(weight, activation, 1, signed=signed)))
    )


def test_thresholds_that_fill_a_memory_exactly_are_not_in_lookup_tables():
    # finn-plus: UINT9 thresholds of 64 channels, one lane; 2048, 4096 and 8192 of them fill 1, 2 and 4 block RAMs
    assert counts(search_thresholds(64, 1, np.array(9), np.array(8))) == (279, 7, 0, 0)
    # 32768 of them fill an UltraRAM, or 16 block RAMs where there is none
    assert counts(search_thresholds(256, 1, np.array(9), np.array(8)))[1:3] == (1 + 2 + 4 + 8, 1)
    assert counts(search_thresholds(256, 1, np.array(9), np.array(8), uram=False))[1:3] == (1 + 2 + 4 + 8 + 16, 0)


def test_a_window_in_lookup_tables_at_any_depth():
    # finn-plus: 128 channels, 3 taps, dilation 32, one lane of UINT8
    assert counts(sliding_window(128, 3, 32, 1, np.array(8), parallel=False, memory="lutram")) == (2052, 0, 0, 0)
