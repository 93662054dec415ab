"""The speed of an exported file, with a clock that the test moves."""

import pytest
import torch

from hw_models.compile import compile_target
from hw_models.cost import evaluate
from hw_models.target import load_target
from hw_models.workload import bits_matrix
from hwsearch.experiment import QuantizationConfig
from hwsearch.export import speed
from hwsearch.export.network import ExportedNetwork
from hwsearch.export.speed import ROUNDS, measure_speed
from hwsearch.separator.quantized import build_quantized
from hwsearch.separator.untrained import UntrainedNetwork
from tests.separator.small import RELU, small_network, uniform

FRAMES = 40


def network(weight_bits=4):
    separator, graph, calibration = small_network(RELU)
    allocation = uniform(RELU, weight_bits, 8)
    quantized = build_quantized(graph, allocation, calibration, QuantizationConfig())
    return ExportedNetwork(quantized, separator.front_end).eval(), UntrainedNetwork(graph, separator.front_end.inputs)


class Clock:
    """Stands still but for what calls take."""

    def __init__(self):
        self.now = 0.0

    def taking(self, *seconds):
        """Return a call that takes these seconds, one after the other."""
        left = iter(seconds)

        def call(*_):
            self.now += next(left)

        return call


def test_the_median_of_turns_counts(monkeypatch):
    exported, _ = network()
    clock = Clock()
    file = clock.taking(100.0, 1.0, 2.0, 3.0, 4.0, 50.0)  # the first one does not count
    monkeypatch.setattr(speed.time, "thread_time", lambda: clock.now)
    monkeypatch.setattr(speed, "run", clock.taking(100.0, 10.0, 10.0, 12.0, 8.0, 10.0))
    report = measure_speed(file, exported, torch.zeros(1, exported.features, FRAMES))
    sound = FRAMES * exported.front_end.frame_samples / exported.front_end.sample_rate
    assert ROUNDS == 5
    assert report.real_time_factor == pytest.approx(3.0 / sound)
    assert report.float32_real_time_factor == pytest.approx(10.0 / sound)
    assert report.times_as_fast == pytest.approx(4.0)  # of 10, 5, 4, 2, 0.2
    assert (report.frames, report.modelled_target, report.modelled_real_time_factor) == (FRAMES, None, None)


def test_the_simulator_costs_the_network_that_was_exported():
    exported, untrained = network()
    report = measure_speed(lambda: None, exported, torch.zeros(1, exported.features, FRAMES), "cortex-m7-cmix-nn")
    seconds = exported.front_end.frame_samples / exported.front_end.sample_rate
    workload = untrained.workload(FRAMES, seconds, per_channel=True)
    bits = bits_matrix(workload, [uniform(RELU, 4, 8).by_site])
    latency = evaluate(compile_target(load_target("cortex-m7-cmix-nn"), workload), bits).latency_ms[0]
    assert report.modelled_real_time_factor == pytest.approx(1e-3 * latency / (FRAMES * seconds))


def test_a_target_that_does_not_run_the_network_expects_nothing():
    exported, _ = network(weight_bits=32)
    report = measure_speed(lambda: None, exported, torch.zeros(1, exported.features, FRAMES), "ethos-u55-128")
    assert (report.modelled_target, report.modelled_real_time_factor) == ("ethos-u55-128", None)
