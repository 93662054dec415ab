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


@pytest.mark.parametrize(
    ("name", "kind", "weight_bits", "least", "most"),
    [
        ("x86-onnxruntime", LayerKind.CONV, 7, 2.7, 5.0),
        ("x86-onnxruntime", LayerKind.CONV, 8, 1.3, 1.9),
        ("x86-onnxruntime", LayerKind.DEPTHWISE, 8, 1.2, 6.0),
        ("x86-onnxruntime-avx2", LayerKind.CONV, 7, 1.7, 2.3),
        ("x86-onnxruntime-avx2", LayerKind.CONV, 8, 1.3, 1.7),
        ("x86-onnxruntime-avx2", LayerKind.DEPTHWISE, 8, 1.2, 6.0),
    ],
)
def test_integers_are_faster_than_float_on_x86(name, kind, weight_bits, least, most):
    rule = TARGETS[name].compute
    shape = Shape(kind, 256, 256, 1 if kind is LayerKind.CONV else 3, 250, 0)
    speedup = rule.work(shape, 32, 32).total / rule.work(shape, 8, weight_bits).total
    assert least < speedup < most
