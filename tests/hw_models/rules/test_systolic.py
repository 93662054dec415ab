import pytest
from hypothesis import given
from hypothesis import strategies as st

from hw_models.rules.systolic import BufferAccesses
from hw_models.shape import Shape
from hw_models.target import load_target
from hw_models.workload import LayerKind

DATAFLOWS = ("weight", "output", "input")
ARRAYS = {dataflow: load_target(f"systolic-{dataflow}-stationary").compute for dataflow in DATAFLOWS}

# Dataflow, (rows, columns), (kind, channels in and out, taps, frames); cycles, (input reads, weight reads, output writes) of
# SCALE-Sim 3.0.0 (numpy 2.2.6, pandas 2.3.3), bandwidth mode CALC.
SIMULATED = [
    ("weight", (1, 1), ("conv", 3, 2, 1, 50), 305, (300, 6, 300)),
    ("weight", (8, 8), ("conv", 33, 17, 3, 33), 2144, (9801, 1683, 7293)),
    ("weight", (8, 8), ("depthwise", 8, 8, 3, 100), 968, (2400, 24, 800)),
    ("weight", (13, 7), ("conv", 64, 128, 1, 10), 3894, (12160, 8192, 6400)),
    ("weight", (13, 7), ("depthwise", 5, 5, 5, 9), 195, (225, 25, 45)),
    ("weight", (32, 16), ("conv", 256, 512, 1, 100), 45567, (819200, 131072, 409600)),
    ("weight", (16, 32), ("conv", 256, 514, 1, 120), 49503, (522240, 131584, 986880)),
    ("weight", (32, 32), ("conv", 20, 12, 5, 3), 387, (300, 1200, 144)),
    ("weight", (128, 128), ("conv", 3000, 256, 1, 100), 23135, (600000, 768000, 614400)),
    ("output", (1, 1), ("conv", 3, 2, 1, 50), 299, (300, 300, 100)),
    ("output", (8, 8), ("conv", 33, 17, 3, 33), 1694, (9801, 8415, 561)),
    ("output", (8, 8), ("depthwise", 8, 8, 3, 100), 1760, (2400, 312, 800)),
    ("output", (13, 7), ("conv", 64, 128, 1, 10), 1557, (12160, 8192, 1280)),
    ("output", (13, 7), ("depthwise", 5, 5, 5, 9), 110, (225, 25, 45)),
    ("output", (32, 16), ("conv", 256, 512, 1, 100), 38655, (819200, 524288, 51200)),
    ("output", (16, 32), ("conv", 256, 514, 1, 120), 41071, (522240, 1052672, 61680)),
    ("output", (32, 32), ("conv", 20, 12, 5, 3), 161, (300, 1200, 36)),
    ("output", (128, 128), ("conv", 3000, 256, 1, 100), 6507, (600000, 768000, 25600)),
    ("input", (1, 1), ("conv", 3, 2, 1, 50), 449, (150, 300, 300)),
    ("input", (8, 8), ("conv", 33, 17, 3, 33), 2534, (3267, 8415, 7293)),
    ("input", (8, 8), ("depthwise", 8, 8, 3, 100), 2384, (2400, 312, 800)),
    ("input", (13, 7), ("conv", 64, 128, 1, 10), 1589, (640, 16384, 6400)),
    ("input", (13, 7), ("depthwise", 5, 5, 5, 9), 315, (225, 50, 45)),
    ("input", (32, 16), ("conv", 256, 512, 1, 100), 33039, (25600, 917504, 409600)),
    ("input", (16, 32), ("conv", 256, 514, 1, 120), 36863, (30720, 526336, 986880)),
    ("input", (32, 32), ("conv", 20, 12, 5, 3), 423, (300, 1200, 144)),
    ("input", (128, 128), ("conv", 3000, 256, 1, 100), 15311, (300000, 768000, 614400)),
]

SIZES = st.integers(1, 40)
GEMMS = st.tuples(SIZES, SIZES, SIZES)
ARRAY_SIZES = st.tuples(st.integers(1, 12), st.integers(1, 12))


def array(dataflow, rows, columns):
    return ARRAYS[dataflow].model_copy(update={"rows": rows, "columns": columns})


def conv(frames, in_channels, out_channels, taps=1):
    return Shape(LayerKind.CONV, in_channels, out_channels, taps, frames, 0)


def depthwise(frames, channels, taps):
    return Shape(LayerKind.DEPTHWISE, channels, channels, taps, frames, 0)


@pytest.mark.parametrize(("dataflow", "size", "layer", "cycles", "accesses"), SIMULATED)
def test_layers_take_the_simulated_cycles_and_accesses(dataflow, size, layer, cycles, accesses):
    rule, shape = array(dataflow, *size), Shape(LayerKind(layer[0]), *layer[1:], 0)
    assert rule.work(shape, 8, 8).compute == cycles
    assert rule.buffer_accesses(shape) == BufferAccesses(*accesses)


def tiles(size, step):
    return [range(start, min(start + step, size)) for start in range(0, size, step)]


def walk(dataflow, rows, columns, m, k, n):
    """Cycles and accesses by walking through the tiles and the cycle in which the last word of each leaves the array."""
    cycles = inputs = weights = outputs = 0
    if dataflow == "output":
        for tile_m in tiles(m, rows):
            for tile_n in tiles(n, columns):
                last_product = max(r + c + t for r in range(rows) for c in range(columns) for t in range(k))
                cycles += last_product + 1
                inputs += len(tile_m) * k
                weights += len(tile_n) * k
                outputs += len(tile_m) * len(tile_n)
    for tile_k in tiles(k, rows) if dataflow == "weight" else ():
        for tile_n in tiles(n, columns):
            last_sum = max(rows + t + r + c for t in range(m) for r in range(rows) for c in range(columns))
            cycles += last_sum + 1
            inputs += m * len(tile_k)
            weights += len(tile_k) * len(tile_n)
            outputs += m * len(tile_n)
    for tile_k in tiles(k, rows) if dataflow == "input" else ():
        for tile_m in tiles(m, columns):
            last_sum = max(rows + t + r + c for t in range(n) for r in range(rows) for c in range(columns))
            cycles += last_sum + 1
            inputs += len(tile_k) * len(tile_m)
            weights += len(tile_k) * n
            outputs += len(tile_m) * n
    return cycles - 1, BufferAccesses(inputs, weights, outputs)


@pytest.mark.parametrize("dataflow", DATAFLOWS)
@given(size=ARRAY_SIZES, gemm=GEMMS)
def test_every_product_takes_the_cycles_and_accesses_of_its_tiles(dataflow, size, gemm):
    rule, shape = array(dataflow, *size), conv(*gemm)
    assert (rule.work(shape, 8, 8).compute, rule.buffer_accesses(shape)) == walk(dataflow, *size, *gemm)


@pytest.mark.parametrize("dataflow", DATAFLOWS)
@given(size=ARRAY_SIZES, gemm=GEMMS)
def test_no_layer_beats_the_peak(dataflow, size, gemm):
    rule, shape = array(dataflow, *size), conv(*gemm)
    assert rule.peak_macs_per_cycle(8, 8) == size[0] * size[1]
    assert shape.macs <= (rule.work(shape, 8, 8).compute + 1) * rule.peak_macs_per_cycle(8, 8)


@pytest.mark.parametrize("dataflow", DATAFLOWS)
def test_taps_count_as_input_channels(dataflow):
    rule = ARRAYS[dataflow]
    assert rule.work(conv(100, 64, 96, taps=3), 8, 8).compute == rule.work(conv(100, 192, 96), 8, 8).compute


@pytest.mark.parametrize("dataflow", DATAFLOWS)
def test_a_depthwise_layer_runs_one_channel_after_the_other(dataflow):
    rule = ARRAYS[dataflow]
    one, many = rule.work(conv(250, 1, 1, taps=3), 8, 8), rule.work(depthwise(250, 512, 3), 8, 8)
    assert many.compute == 512 * one.compute
    assert many.energy_pj == pytest.approx(512 * one.energy_pj)


@pytest.mark.parametrize("dataflow", DATAFLOWS)
def test_a_sum_moves_its_tensors_at_a_fixed_rate(dataflow):
    work = ARRAYS[dataflow].work(Shape(LayerKind.ADD, 64, 64, 1, 250, 0), 8, 0)
    assert work.compute == 64 * 250 / 32
    assert work.energy_pj == pytest.approx(3 * 64 * 250 * 8 * 20 / 64)


# 40 frames of 64 inputs and 48 outputs on 32 x 32, 8-bit inputs and 4-bit weights, 32-bit partial sums: bits by hand.
@pytest.mark.parametrize(
    ("dataflow", "bits"),
    [
        ("weight", 2 * (40 * 64) * 8 + (64 * 48) * 4 + (40 * 48 + 2 * 40 * 48) * 32),  # two K folds: a write, a read and a write
        ("output", 2 * (40 * 64) * 8 + 2 * (64 * 48) * 4 + (40 * 48) * 32),
        ("input", (40 * 64) * 8 + 2 * (64 * 48) * 4 + (40 * 48 + 2 * 40 * 48) * 32),
    ],
)
def test_energy_is_that_of_the_bits_through_the_buffers(dataflow, bits):
    assert ARRAYS[dataflow].work(conv(40, 64, 48), 8, 4).energy_pj == pytest.approx(bits * 20 / 64)


@pytest.mark.parametrize("dataflow", DATAFLOWS)
def test_narrow_weights_save_energy_and_no_cycles(dataflow):
    wide, narrow = (ARRAYS[dataflow].work(conv(100, 256, 512), 8, bits) for bits in (8, 2))
    assert wide.compute == narrow.compute
    weights = ARRAYS[dataflow].buffer_accesses(conv(100, 256, 512)).weight_reads
    assert wide.energy_pj - narrow.energy_pj == pytest.approx(weights * 6 * 20 / 64)
