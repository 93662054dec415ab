import pytest

from hw_models.errors import TargetError
from hw_models.shape import Shape
from hw_models.target import load_target
from hw_models.workload import LayerKind

PYNQ = load_target("finn-pynq-z2")


def variant(tmp_path, *changes):
    text = (load_target.__globals__["BUILT_IN"] / "finn-pynq-z2.toml").read_text("utf-8")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "target.toml"
    path.write_text(text, "utf-8")
    return path


def test_budget_is_the_usable_share_of_the_device():
    assert PYNQ.compute.budget == (37240, 224, 0, 176)
    assert load_target("finn-zcu104").compute.budget == (161000, 488, 73, 1382)


def test_peak_is_the_room_for_one_more_input():
    # w4a4: 3 * 8 lookup tables to multiply, 2 * 8 to add, 10 % for routing
    assert PYNQ.compute.peak_macs_per_cycle(4, 4) == pytest.approx(37240 / (1.1 * 40))
    dsp = PYNQ.compute.model_copy(update={"multipliers": "dsp"})
    assert dsp.peak_macs_per_cycle(4, 4) == 176


def test_a_layer_has_no_cycles_of_its_own():
    with pytest.raises(TargetError, match="conv layer at a4w2"):
        PYNQ.compute.work(Shape(LayerKind.CONV, 8, 8, 1, 10, 0), 4, 2)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('unsupported = "refuse"', 'unsupported = "widen"', "unsupported = 'refuse'"),
        ("    [1, 1], ", "    ", "every pair of 1 to 8 bits"),
        ("accumulator_bits = 32", "accumulator_bits = 32\noutput_bits = 8", "output_bits"),
        ('weight_memory = "auto"', 'weight_memory = "uram"', "'uram' and a device without any"),
        ('thresholds = "uncounted"', 'thresholds = "free"', "compute.thresholds: .*'engine', 'standalone' or 'uncounted'"),
        ('window_memory = "lutram"', 'window_memory = "uram"', "compute.window_memory"),
        ('accumulators = "by_weight"', 'accumulators = "narrow"', "compute.accumulators"),
        ('residual_fifos = "uncounted"', "residual_fifos = false", "compute.residual_fifos"),
        ("dsp = 220", "dsp = 0", "'dsp' and a device without any"),
        ("lut_share = 0.7", "lut_share = 1.2", "compute.lut_share"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path, old, new, message):
    changes = [(old, new)] + ([('multipliers = "lut"', 'multipliers = "dsp"')] if old == "dsp = 220" else [])
    with pytest.raises(TargetError, match=message) as refusal:
        load_target(variant(tmp_path, *changes))
    assert "\n" not in str(refusal.value)


def test_the_boards_count_what_finns_default_build_counts():
    for board in (PYNQ, load_target("finn-zcu104")):
        rule = board.compute
        assert (rule.weight_memory, rule.window_memory, rule.thresholds) == ("auto", "lutram", "uncounted")
        assert (rule.accumulators, rule.residual_fifos) == ("by_weight", "uncounted")
        assert not board.precisions.activation_signed


def test_a_file_without_the_options_counts_everything(tmp_path):
    options = ("window_memory", "thresholds", "accumulators", "residual_fifos")
    lines = (load_target.__globals__["BUILT_IN"] / "finn-pynq-z2.toml").read_text("utf-8").splitlines()
    path = tmp_path / "target.toml"
    path.write_text("\n".join(line for line in lines if not line.startswith(options)), "utf-8")
    rule = load_target(path).compute
    assert [getattr(rule, option) for option in options] == ["by_depth", "engine", "by_type", "counted"]
