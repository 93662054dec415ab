"""`hwsearch cost`, `targets` and `calibrate`: what they say and leave, and what they refuse."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from hw_models.compile import compile_target
from hw_models.cost import evaluate
from hw_models.measurements import Measurement
from hw_models.target import BUILT_IN, built_in_targets, load_target
from tests.shown_tables import said, tables
from tests.tiny import hwsearch, refusal

PAPER = Path(__file__).parents[1] / "experiments" / "paper.toml"

LAYERS = [
    {"kind": "conv", "in_channels": 64, "out_channels": 128},
    {"kind": "depthwise", "in_channels": 128, "out_channels": 128, "kernel_size": 3, "dilation": 4},
    {"kind": "conv", "in_channels": 128, "out_channels": 64},
    {"kind": "add", "in_channels": 64, "out_channels": 64},
]


def total(stdout: str) -> dict[str, str]:
    """The last row of the table, by heading."""
    (table,) = tables(stdout)
    assert table.records[-1]["layer"] == "total"
    return table.records[-1]


@pytest.mark.parametrize("name", built_in_targets())
def test_every_built_in_target_charges_the_embedded_base(name: str) -> None:
    answer = hwsearch("cost", name, "--weight-bits", 2, "--activation-bits", 4)
    assert answer.code == 0, answer.stderr
    assert max(map(len, answer.stdout.splitlines())) <= 80
    row = total(answer.stdout)
    assert float(row["latency_ms"].replace(",", "")) > 0
    assert ("energy_uj" in row) == (load_target(name).energy is not None)
    assert said(answer.stdout, "fits") in (["yes"], ["no"])


def test_streaming_takes_less_time_and_says_what_it_waits_for() -> None:
    whole, frame = (hwsearch("cost", "cortex-m7-cmsis-nn", *flag).stdout for flag in ((), ("--streaming",)))
    times = [float(total(stdout)["latency_ms"].replace(",", "")) for stdout in (whole, frame)]
    assert times[1] < times[0] / 50
    # Two repeats of dilations 1 to 32: 2 (1 + ... + 32) frames of 16 ms that centred kernels look ahead.
    assert said(frame, "delay") == ["126 frames, 2016 ms, that the kernels look ahead"]
    assert "delay:" not in whole


def test_pictures_are_drawn_where_they_are_wanted(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "plots"
    answer = hwsearch("cost", "ethos-u55-128", "--plots", folder)
    assert answer.code == 0, answer.stderr
    names = {"layers.png", "roofline.png", "one_more_bit.png"}
    assert {path.name for path in folder.iterdir()} == names
    for name in names:
        assert imread(folder / name).std() > 0.01
        assert f"plot: {folder / name}" in answer.stdout


@pytest.mark.parametrize("inside", ["", "deep"])
def test_a_folder_of_pictures_that_cannot_be_is_refused_before_the_table(tmp_path: Path, inside: str) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    message = refusal(hwsearch("cost", "ethos-u55-128", "--plots", file / inside))
    assert message.startswith(str(file))
    assert "wanted" in message
    assert file.read_text() == "mine"
    (tmp_path / "plots" / "layers.png").mkdir(parents=True)
    assert "layers.png" in refusal(hwsearch("cost", "ethos-u55-128", "--plots", tmp_path / "plots"))


@pytest.mark.parametrize("name", ["cortex-m7-cmsis-nn", "finn-pynq-z2", "nvidia-t4"])
def test_numbers_are_written_out_and_what_is_not_known_is_left_blank(name: str) -> None:
    answer = hwsearch("cost", name, "--experiment", PAPER, "--weight-bits", 4)
    assert answer.code == 0, answer.stderr
    assert not re.search(r"\d[eE][-+]?\d|\bnan\b|\binf\b", answer.stdout)
    row = total(answer.stdout)
    assert said(answer.stdout, "time")[0].startswith(f"{row['latency_ms']} ms, ")
    assert said(answer.stdout, "energy")[0].startswith(f"{row['energy_uj']} uJ")


def test_a_target_is_described_with_what_it_was_checked_on_and_what_the_list_leaves_out() -> None:
    answer = hwsearch("targets", "ethos-u55-128")
    chip = load_target("ethos-u55-128")
    assert said(answer.stdout, "checked on") == [chip.calibration.held_out]
    assert len(said(answer.stdout, "memory")) == len(chip.memory)
    assert said(answer.stdout, "clock") == ["500 MHz"]
    assert said(answer.stdout, "runtime")[0].startswith("Vela ")


def test_the_list_gives_the_validation_error_of_each_target() -> None:
    for row in tables(hwsearch("targets").stdout)[0].records:
        calibration = load_target(row["target"]).calibration
        for heading, error in (("median", calibration.median_error_percent), ("worst", calibration.max_error_percent)):
            assert row[f"{heading}error, %"] == ("" if error is None else f"{error:g}")


def measurements_of(chip_name: str, slower: float) -> list[dict[str, object]]:
    """What a chip slower than its target would measure, at several sizes."""
    chip = load_target(chip_name)
    found = []
    for number, frames in enumerate((50, 80, 120, 200, 300, 400)):
        entry = {"name": f"block{number}", "frames": frames, "activation_bits": 8, "weight_bits": 8, "layers": LAYERS}
        one = Measurement.model_validate_json(json.dumps(entry | {"latency_ms": 1.0}))
        latency = evaluate(compile_target(chip, one.workload), one.bits[None]).latency_ms[0]
        found.append(entry | {"latency_ms": slower * float(latency), "held_out": number in {1, 4}})
    return found


def test_a_chip_is_calibrated_and_then_charged_what_was_measured(tmp_path: Path) -> None:
    file, output = tmp_path / "measured.json", tmp_path / "My chip.toml"
    entries = measurements_of("systolic-weight-stationary", 2.5)
    file.write_text(json.dumps({"source": "a board", "measurements": entries}))
    answer = hwsearch("calibrate", "systolic-weight-stationary", "--measurements", file, "--output", output)
    assert answer.code == 0, answer.stderr
    mine = load_target(output)
    assert mine.name == "my-chip"
    assert mine.overheads.scale == pytest.approx(2.5, rel=1e-3)
    assert mine.calibration.max_error_percent == pytest.approx(0, abs=0.1)
    assert "measured.json" in mine.calibration.fitted_on
    assert "held out, latency: 2 measurements" in answer.stdout
    assert hwsearch("cost", output).code == 0


def test_a_calibration_that_fails_leaves_nothing(tmp_path: Path) -> None:
    good = {"source": "a board", "measurements": measurements_of("bitfusion", 1.0)}
    file, output = tmp_path / "measured.json", tmp_path / "mine.toml"

    def refused(content: object) -> str:
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        message = refusal(hwsearch("calibrate", "bitfusion", "--measurements", file, "--output", output))
        assert not output.exists()
        return message

    assert "not valid JSON" in refused("{")
    assert "measurements: " in refused({"source": "s", "measurements": []})
    assert "speed: found 3; wanted no such field" in refused(good | {"speed": 3})
    negative = [good["measurements"][0] | {"latency_ms": -1.0}]
    assert "latency_ms: found -1.0; wanted at least 1e-09" in refused(good | {"measurements": negative})
    floats = [entry | {"weight_bits": 32} for entry in good["measurements"]]
    assert "target 'bitfusion' runs" in refused(good | {"measurements": floats})
    file.write_text(json.dumps(good))
    assert "wanted a .toml file" in refusal(
        hwsearch("calibrate", "bitfusion", "--measurements", file, "--output", tmp_path / "mine.json")
    )
    assert "abacus" in refusal(hwsearch("calibrate", "abacus", "--measurements", file, "--output", output))


def test_a_copied_target_file_is_charged_as_the_built_in_one(tmp_path: Path) -> None:
    path = tmp_path / "my_chip.toml"
    path.write_text((BUILT_IN / "gap8-pulp-nn.toml").read_text("utf-8"))
    mine, theirs = (hwsearch("cost", name).stdout for name in (path, "gap8-pulp-nn"))
    assert mine == theirs


def test_a_target_that_refuses_a_width_names_the_layer() -> None:
    message = refusal(hwsearch("cost", "finn-pynq-z2", "--weight-bits", 16))
    assert "layer 'input_proj': 16-bit weights" in message
    assert np.all([word not in message for word in ("Traceback", "\n\n")])


def milliseconds(*arguments: object) -> float:
    """The time of an inference on a Cortex-M7."""
    answer = hwsearch("cost", "cortex-m7-cmsis-nn", *arguments)
    assert answer.code == 0, answer.stderr
    return float(total(answer.stdout)["latency_ms"].replace(",", ""))


def test_what_is_left_out_costs_nothing() -> None:
    whole = milliseconds()
    narrow = milliseconds("--keep", "blocks.*.channels=64")
    short = milliseconds("--keep", "blocks.1?.kept=0")
    both = milliseconds("--keep", "blocks.*.channels=64", "--keep", "blocks.1?.kept=0")
    assert both < min(narrow, short) < max(narrow, short) < whole
    assert milliseconds("--keep", "blocks.*.kept=0", "--keep", "blocks.*.kept=1") == pytest.approx(whole, rel=0.01)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ("blocks.0.kept", "--keep blocks.0.kept: wanted NAME=NUMBER, such as blocks.0.kept=0"),
        ("blocks.0.kept=-1", "--keep blocks.0.kept=-1: wanted NAME=NUMBER, such as blocks.0.kept=0"),
        ("blocks.0.kept=2", "--keep: option 'blocks.0.kept' is 2; wanted 0 to 1"),
        ("blocks.0.expand.channels=0", "--keep: option 'blocks.0.expand.channels' is 0; wanted 1 to 128"),
        (
            "head=0",
            "--keep head=0: matches nothing that can be left out; options are like blocks.0.kept, blocks.11.expand.channels",
        ),
    ],
)
def test_what_cannot_be_kept_is_refused(keep: str, message: str) -> None:
    assert refusal(hwsearch("cost", "cortex-m7-cmsis-nn", "--keep", keep)) == message


def test_a_candidate_is_whole(tmp_path: Path) -> None:
    answer = hwsearch("cost", "gap9", "--run", tmp_path, "--candidate", 1, "--keep", "blocks.0.kept=0")
    assert refusal(answer).startswith("--keep and --run exclude each other")
