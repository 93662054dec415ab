"""The worked example of the README: the target file and the measurements are what they are said to be."""

import json
import re
from importlib import resources

import numpy as np
import pytest

from hw_models.calibration import calibrate
from hw_models.compile import compile_target
from hw_models.cost import evaluate, placement_of
from hw_models.measurements import Measurements
from hw_models.target import built_in_targets, load_target
from tests.hw_models.networks import tcn

README = (resources.files("hw_models") / "README.md").read_text("utf-8")


def block(language):
    return re.search(rf"```{language}\n(.*?)```", README, re.DOTALL).group(1)


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "my_mcu.toml"
    path.write_text(block("toml"), "utf-8")
    return load_target(path)


def test_the_targets_it_lists_are_the_built_in_ones():
    table = README[README.index("| target | time from |") : README.index("## What is modelled")]
    named = re.findall(r"`([a-z0-9-]+)`", table)
    systolic = [f"systolic{name}" if name.startswith("-") else name for name in named]
    assert sorted(systolic) == sorted(built_in_targets())


def test_its_target_charges_what_its_numbers_say(mine):
    network = tcn()
    bits = np.full((1, len(network.sites)), 8)
    cycles = 0.0
    for layer in network.layers:
        rate = {"conv": 1.2, "depthwise": 2.5, "add": 0.0}[layer.kind.value]
        outputs = 6.0 * layer.out_channels * network.frames if layer.kind.value == "add" else 0.0
        cycles += rate * layer.macs(network.frames) + outputs + 900
    costs = evaluate(compile_target(mine, network), bits)
    assert costs.latency_ms[0] == pytest.approx(cycles / 200e6 * 1e3)
    assert costs.energy_uj[0] == pytest.approx(42.0 * costs.latency_ms[0])


def test_its_network_moves_out_when_it_outgrows_the_flash(mine):
    network = tcn(features=900, bottleneck=800, hidden=900, blocks=2)
    table = compile_target(mine, network)
    assert placement_of(table, np.full(len(network.sites), 8)).weights.name == "external-flash"


def test_its_measurements_calibrate_its_target(mine):
    content = json.loads(block("json"))
    entry = content["measurements"][0]
    content["measurements"] = [entry | {"name": f"block {i}", "frames": 100 + 50 * i} for i in range(6)]
    for each in content["measurements"]:
        each["latency_ms"] = entry["latency_ms"] * each["frames"] / entry["frames"]
    fit = calibrate(mine, Measurements.model_validate_json(json.dumps(content)), file="my_board.json", name="fitted")
    assert fit.held_out
    for check in fit.held_out:
        assert check.predicted_ms == pytest.approx(check.latency_ms, rel=0.02)
