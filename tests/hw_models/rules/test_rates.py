import numpy as np
import pytest

from hw_models.breakdown import per_layer
from hw_models.compile import compile_target
from hw_models.cost import evaluate
from hw_models.rules.rates import RateCompute
from hw_models.shape import Shape
from hw_models.workload import LayerKind
from tests.hw_models.networks import TARGETS, tcn


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


def rate(kernel, activation_bits, weight_bits=0, cycles=1.0):
    widths = {"activation_bits": activation_bits, "weight_bits": weight_bits}
    return {"kernel": kernel, **widths, "cycles_per_mac": float(kernel == "conv"), "cycles_per_output": cycles, "source": "s"}


def rates(*more):
    pair = [rate("conv", 8, 8), rate("depthwise", 8, 8), rate("add", 8, cycles=3.0)]
    return RateCompute.model_validate({"rule": "rates", "source": "s", "rates": [*pair, *more]})


def test_what_reads_one_tensor_has_a_rate_of_its_own_or_costs_as_a_sum():
    one, two, passes = (
        Shape(LayerKind.ADD, 4, 4, 1, 10, 0, operands=operands, passes=count) for operands, count in ((1, 1), (2, 1), (2, 2))
    )
    plain, own = rates(), rates(rate("function", 8, cycles=0.5))
    assert [plain.work(shape, 8, 0).compute for shape in (one, two, passes)] == [120, 120, 240]
    assert [own.work(shape, 8, 0).compute for shape in (one, two, passes)] == [20, 120, 240]


def test_rates_of_functions_may_be_missing_and_must_not_occur_twice_or_elsewhere():
    precisions = TARGETS["cortex-m4-x-cube-ai"].precisions.model_copy(update={"pairs": ((8, 8),)})
    rates(rate("function", 8)).check(precisions)
    rates().check(precisions)
    with pytest.raises(ValueError, match="found 2 rates for kernel 'function', activation_bits 8"):
        rates(rate("function", 8), rate("function", 8)).check(precisions)
    with pytest.raises(ValueError, match=r"rate \('function', 4, 0\) belongs to no pair"):
        rates(rate("function", 4)).check(precisions)


@pytest.mark.parametrize("name", ["x86-onnxruntime", "x86-onnxruntime-avx2"])
def test_a_trunk_of_16_bits_is_held_in_float_and_charged_its_rounding(name):
    network = tcn(frames=50)
    target, trunk = TARGETS[name], [f"blocks.{i}.input" for i in range(1, 4)] + ["mask_input"]
    table = compile_target(target, network)
    in_8, in_16, in_float = (np.full(len(network.sites), 8) for _ in range(3))
    for site in trunk:
        in_16[network.column[site]], in_float[network.column[site]] = 16, 32
    cycles, floats = ({x.layer: x.cycles for x in per_layer(table, bits)} for bits in (in_16, in_float))
    rounded = next(r for r in target.compute.rates if (r.kernel, r.activation_bits) == ("add", 16))
    for i in range(1, 4):  # the first sum reads two tensors of 8 bits
        assert cycles[f"blocks.{i}.add"] == pytest.approx(rounded.layer_cycles + rounded.cycles_per_output * 12 * 50)
        assert cycles[f"blocks.{i}.add"] > floats[f"blocks.{i}.add"]
    held = [int(evaluate(table, bits[None]).peak_activation_bytes[0]) for bits in (in_8, in_16, in_float)]
    assert held[0] < held[1] == held[2]


@pytest.mark.parametrize("name", ["x86-onnxruntime", "x86-onnxruntime-avx2"])
def test_every_value_of_the_inputs_is_charged_once(name):
    def milliseconds(target, network):
        return float(evaluate(compile_target(target, network), np.full((1, len(network.sites)), 8)).latency_ms[0])

    target = TARGETS[name]
    free = target.model_copy(update={"overheads": target.overheads.model_copy(update={"cycles_per_input": 0.0})})
    for features, frames in ((20, 50), (31, 7)):
        network = tcn(features=features, frames=frames)
        more = milliseconds(target, network) - milliseconds(free, network)
        assert more == pytest.approx(1e3 * target.overheads.cycles_per_input * features * frames / target.clock.clock_hz)
