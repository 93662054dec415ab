import re
import tomllib

import pytest

from hw_models.errors import TargetError
from hw_models.target import BUILT_IN, Target, built_in_targets, load_target
from tests.hw_models.networks import TARGETS


def text_of(name):
    return (BUILT_IN / f"{name}.toml").read_text("utf-8")


def refusal(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text, "utf-8")
    with pytest.raises(TargetError) as error:
        load_target(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_chips_of_every_family_are_built_in():
    assert {target.family for target in TARGETS.values()} == {
        "microcontroller",
        "multicore",
        "npu",
        "systolic_array",
        "bit_flexible_array",
        "fpga",
        "cpu",
        "gpu",
    }
    assert set(built_in_targets()) >= {
        "bitfusion",
        "cortex-m7-cmsis-nn",
        "ethos-u55-128",
        "x86-onnxruntime",
        "x86-onnxruntime-avx2",
    }


@pytest.mark.parametrize("name", built_in_targets())
def test_a_built_in_target_is_named_as_its_file(name):
    assert TARGETS[name].name == name


def numbers_without_source(table, path=()):
    """Tables with numbers and no source, in themselves or in the section they are part of."""
    if any(isinstance(value, int | float | list) and not isinstance(value, bool) for value in table.values()):
        has_numbers = [v for v in table.values() if not (isinstance(v, list) and v and isinstance(v[0], dict))]
        if any(isinstance(v, int | float | list) for v in has_numbers) and not str(table.get("source", "")).strip():
            yield path
    for key, value in table.items():
        for i, part in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(part, dict) and path and str(table.get("source", "")).strip():
                continue
            if isinstance(part, dict):
                yield from numbers_without_source(part, (*path, key, i))


@pytest.mark.parametrize("name", built_in_targets())
def test_every_number_of_a_target_stands_beside_its_source(name):
    assert list(numbers_without_source(tomllib.loads(text_of(name)))) == []


def test_a_user_loads_a_target_of_his_own(tmp_path):
    path = tmp_path / "slow.toml"
    path.write_text(text_of("cortex-m7-cmsis-nn").replace("280e6", "140e6"), "utf-8")
    mine = load_target(str(path))
    assert isinstance(mine, Target)
    assert mine.clock.clock_hz == 140e6


def test_capacity_is_that_of_the_level_that_holds_the_tensors():
    def sizes(name, what):
        return [level.bytes for level in TARGETS[name].levels(what)]

    assert sizes("cortex-m7-cmsis-nn", "weights")[-1] == 2 * 2**20
    assert sizes("cortex-m7-cmsis-nn", "activations") == [1048576]
    assert sizes("bitfusion", "weights") == [None]


def test_an_unknown_name_lists_the_built_in_ones():
    with pytest.raises(TargetError, match="'cortex-m0': neither a file nor built in") as error:
        load_target("cortex-m0")
    assert all(name in str(error.value) for name in built_in_targets())


def test_a_file_that_is_not_toml_is_refused_in_one_line(tmp_path):
    assert refusal(tmp_path, "name = \n").startswith("not valid TOML (Invalid value (at line 1")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("n = " + "[" * 100_000, "nested too deep"),
        ("n = " + "1" * 5000, "a number of too many digits"),
        ("a" + ".a" * 20_000 + " = 1", "a key of more than 64 parts"),
    ],
)
def test_a_file_made_to_overwhelm_the_reader_is_refused_in_one_line(tmp_path, text, reason):
    assert refusal(tmp_path, text) == f"not valid TOML ({reason}); wanted a target file in TOML"


def test_a_file_that_is_not_text_is_refused_in_one_line(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TargetError, match="not UTF-8 text"):
        load_target(path)


@pytest.mark.parametrize(
    ("base", "pattern", "replacement", "message"),
    [
        (
            "bitfusion",
            "clock_hz = 500e6",
            "clock_hz = -1.0",
            "clock.clock_hz: found -1.0; wanted at least 1",
        ),
        ("bitfusion", "clock_hz = 500e6", "clock_hz = inf", "clock.clock_hz: found inf; wanted"),
        ("bitfusion", "clock_hz = 500e6", "clock_hz = '500 MHz'", "clock.clock_hz: found '500 MHz'; wanted"),
        (
            "bitfusion",
            "clock_hz = 500e6",
            "clock_mhz = 500",
            "clock.clock_hz: found nothing; wanted a value (1 more)",
        ),
        (
            "bitfusion",
            "rows = 16",
            "rows = true",
            "compute.rows: found true; wanted a whole number",
        ),
        ("bitfusion", "rows = 16", "rows = 16\nrings = 2", "compute.rings: found 2; wanted no such field"),
        (
            "bitfusion",
            'rule = "bit_flexible_array"',
            'rule = "magic"',
            "compute.rule: found 'magic'; wanted one of",
        ),
        ("bitfusion", 'family = "bit_flexible_array"', 'family = "toy"', "family: found 'toy'; wanted"),
        ("bitfusion", "pairs = \\[\\[8, 8\\]", "pairs = [[8, 64]", "precisions.pairs.0.1: found 64; wanted"),
        (
            "bitfusion",
            '\\["weights", "activations"\\]',
            '["weights"]',
            "memory: no level holds activations; wanted one",
        ),
        ("bitfusion", "(?s)\\[dilation\\].*?\n\n", "", "dilation: found nothing; wanted a value"),
        (
            "cortex-m7-cmsis-nn",
            'source = "inside the measured rate"',
            'source = "  "',
            "overheads.source: found '  '; wanted text that is not blank",
        ),
        (
            "cortex-m7-cmsis-nn",
            'source = "inside the measured rate"',
            "",
            "overheads.source: found nothing; wanted a value",
        ),
        (
            "cortex-m7-cmsis-nn",
            "pairs = \\[\\[8, 8\\], ",
            "pairs = [[8, 8], [4, 4], ",
            "compute.rates: found 0 rates for kernel 'conv', activation_bits 4, weight_bits 4; wanted one",
        ),
        (
            "cortex-m7-cmsis-nn",
            "pairs = \\[\\[8, 8\\], \\[8, 4\\]\\]",
            "pairs = [[8, 8]]",
            "compute.rates: rate ('conv', 8, 4) belongs to no pair of precisions.pairs",
        ),
        (
            "cortex-m7-cmsis-nn",
            "cycles_per_output = 63.4",
            "cycles_per_output = nan",
            "compute.rates.4.cycles_per_output: found nan; wanted",
        ),
        (
            "ethos-u55-128",
            'codec = "encoded"',
            'codec = "packed"',
            "storage.encoded_bytes_per_weight: wanted with codec 'encoded' and only with it",
        ),
        (
            "ethos-u55-128",
            ", \\[8, 0.958\\]",
            "",
            "storage.encoded_bytes_per_weight: wanted a size for 8-bit weights",
        ),
        (
            "ethos-u55-128",
            "\\[3, 0.279\\]",
            "[3, 0.1]",
            "storage.encoded_bytes_per_weight: wanted rising widths whose bytes do not fall",
        ),
    ],
)
def test_a_bad_field_is_refused_in_one_line_that_names_it(tmp_path, base, pattern, replacement, message):
    text = re.sub(pattern, replacement, text_of(base), count=1)
    assert text != text_of(base)
    assert refusal(tmp_path, text).startswith(message)


@pytest.mark.parametrize("name", ["compute", "buffers", "overhead", "slack"])
def test_a_memory_level_is_not_called_like_what_bounds_a_layer(tmp_path, name):
    text = text_of("bitfusion").replace('name = "dram"', f'name = "{name}"')
    assert refusal(tmp_path, text).startswith(f"memory: name '{name}'; wanted another")


@pytest.mark.parametrize("size", ["9223372036854775808", "4611686018427387904"])
def test_a_number_too_large_to_count_with_is_refused(tmp_path, size):
    text = text_of("cortex-m7-cmsis-nn").replace("bytes = 2097152", f"bytes = {size}")
    assert refusal(tmp_path, text).startswith("memory.0.bytes: found ")
