import pytest

from hw_models.shape import Shape
from hw_models.workload import LayerKind
from tests.hw_models.networks import TARGETS


def test_ds_cnn_takes_the_published_time_on_the_cortex_m7():
    # MLPerf Tiny v1.0 keyword spotting: 2,656,768 MACs at 1.77 cycles and 280 MHz.
    shape = Shape(LayerKind.CONV, 2_656_768, 1, 1, 1, 0)
    target = TARGETS["cortex-m7-cmsis-nn"]
    seconds = target.compute.work(shape, 8, 8).total / target.clock.clock_hz
    assert seconds == pytest.approx(16.79e-3, rel=1e-3)


def test_a_rate_adds_its_parts():
    rule = TARGETS["x86-onnxruntime"].compute
    rate = next(r for r in rule.rates if r.kernel == "conv" and r.activation_bits == 32)
    cycles = rule.work(Shape(LayerKind.CONV, 64, 128, 1, 250, 0), 32, 32)
    assert cycles.compute == rate.cycles_per_mac * 64 * 128 * 250 + rate.cycles_per_output * 128 * 250
    assert cycles.fixed == rate.layer_cycles + rate.cycles_per_channel * 128


@pytest.mark.parametrize(("kind", "least", "most"), [(LayerKind.CONV, 2.7, 5.0), (LayerKind.DEPTHWISE, 1.2, 6.0)])
def test_eight_bits_are_faster_than_float_on_x86(kind, least, most):
    rule = TARGETS["x86-onnxruntime"].compute
    shape = Shape(kind, 256, 256, 1 if kind is LayerKind.CONV else 3, 250, 0)
    speedup = rule.work(shape, 32, 32).total / rule.work(shape, 8, 8).total
    assert least < speedup < most
