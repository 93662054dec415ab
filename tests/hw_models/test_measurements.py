import json

import pytest

from hw_models.errors import TargetError
from hw_models.measurements import Measurement, load_measurements
from hw_models.workload import LayerKind

CONV = {"kind": "conv", "in_channels": 4, "out_channels": 6}
ENTRY = {"name": "a", "latency_ms": 1.5, "frames": 10, "activation_bits": 8, "weight_bits": 4, "layers": [CONV]}


def measurement(**changes):
    return Measurement.model_validate_json(json.dumps({**ENTRY, **changes}))


def written(tmp_path, content):
    path = tmp_path / "board.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_file_is_read_as_it_was_written(tmp_path):
    path = written(
        tmp_path, {"source": "board 3", "measurements": [ENTRY, {**ENTRY, "name": "b", "energy_uj": 2, "held_out": True}]}
    )
    first, second = load_measurements(path).measurements
    assert (first.latency_ms, first.energy_uj, first.held_out) == (1.5, None, False)
    assert (second.energy_uj, second.held_out) == (2.0, True)
    assert first.layers[0].kind is LayerKind.CONV
    assert first.layers[0].kernel_size == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"board.json: not valid JSON \(EOF .*\); wanted a JSON file of measurements"),
        ([], "board.json: the file: found \\[\\]; wanted a table of keys and values"),
        ({"source": "s", "measurements": []}, "board.json: measurements: found \\[\\]; wanted at least 1 entry"),
        ({"measurements": [ENTRY]}, "board.json: source: found nothing; wanted a value"),
        (
            {"source": "s", "measurements": [{**ENTRY, "latency": 3}]},
            "board.json: measurements.0.latency: found 3; wanted no such field",
        ),
        (
            {"source": "s", "measurements": [{**ENTRY, "latency_ms": 0}]},
            "measurements.0.latency_ms: found 0; wanted at least 1e-09$",
        ),
        ({"source": "s", "measurements": [{**ENTRY, "latency_ms": float("nan")}]}, "measurements.0.latency_ms: found nan"),
        ({"source": "s", "measurements": [{**ENTRY, "frames": 2.5}]}, "measurements.0.frames: found 2.5; wanted"),
        ({"source": "s", "measurements": [{**ENTRY, "weight_bits": 20}]}, "measurements.0: found 20 bits; wanted 1 to 16, or 32"),
        (
            {"source": "s", "measurements": [{**ENTRY, "layers": [{**CONV, "kind": "lstm"}]}]},
            "layers.0.kind: found 'lstm'; wanted",
        ),
        (
            {"source": "s", "measurements": [{**ENTRY, "layers": [CONV, {**CONV, "kind": "depthwise"}]}]},
            "measurements.0: layers.1: found 4 channels in and 6 out; wanted one number of channels for kind 'depthwise'",
        ),
        ({"source": "s", "measurements": [ENTRY, ENTRY]}, "name 'a' occurs 2 times; wanted once"),
        ({"source": "s", "measurements": [{**ENTRY, "frames": 0, "name": ""}]}, r"measurements.0.name.*\(1 more\)"),
    ],
)
def test_a_mistake_is_told_in_one_line(tmp_path, content, message):
    with pytest.raises(TargetError, match=message) as raised:
        load_measurements(written(tmp_path, content))
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(TargetError, match=r"nowhere.json: no such file"):
        load_measurements(tmp_path / "nowhere.json")


def test_layers_read_the_newest_tensor_that_fits_and_an_add_the_two_newest():
    block = [
        {"kind": "conv", "in_channels": 4, "out_channels": 6},
        {"kind": "depthwise", "in_channels": 6, "out_channels": 6, "kernel_size": 3, "dilation": 2},
        {"kind": "conv", "in_channels": 6, "out_channels": 4},
        {"kind": "add", "in_channels": 4, "out_channels": 4},
    ]
    workload = measurement(layers=block, repeats=2).workload
    assert [layer.input_sites for layer in workload.layers] == [
        ("input0",),
        ("output0",),
        ("output1",),
        ("input0", "output2"),
        ("output3",),
        ("output4",),
        ("output5",),
        ("output3", "output6"),
    ]
    assert workload.frames == 10
    assert workload.macs == 2 * 10 * (24 + 18 + 24)


def test_an_add_of_nothing_else_adds_two_inputs():
    add = {"kind": "add", "in_channels": 4, "out_channels": 4}
    workload = measurement(layers=[add, add]).workload
    assert [layer.input_sites for layer in workload.layers] == [("input0", "input0-second"), ("input0-second", "output0")]


def test_weights_and_activations_take_the_measured_widths():
    run = measurement(layers=[CONV, {**CONV, "in_channels": 6}])
    assert run.workload.sites == ("weight0", "weight1", "input0", "output0", "output1")
    assert run.bits.tolist() == [4, 4, 8, 8, 8]
