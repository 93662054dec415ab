import pytest

from hw_models.shape import Shape
from hw_models.workload import LayerKind
from tests.hw_models.networks import TARGETS


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
