import numpy as np
import pytest

from hw_models.compile import compile_target
from hw_models.report import COLUMNS, cost_rows
from tests.hw_models.networks import RUNNABLE_WIDTHS, TARGETS, overhead_cycles, tcn


@pytest.mark.parametrize("name", TARGETS)
def test_the_last_row_is_the_sum_of_the_others(name):
    network = tcn()
    widths = RUNNABLE_WIDTHS[name]
    bits = np.random.default_rng(0).choice(widths, len(network.sites))
    *rows, total = cost_rows(compile_target(TARGETS[name], network), bits)
    assert total["layer"] == "total"
    assert all(tuple(row)[: len(COLUMNS)] == COLUMNS and row.keys() == total.keys() for row in (*rows, total))
    for column in ("macs", "weight_bytes"):
        assert total[column] == sum(row[column] for row in rows)
    overhead = overhead_cycles(TARGETS[name], network)
    if TARGETS[name].family == "fpga":  # circuits work at once
        assert total["cycles"] >= max(row["cycles"] for row in rows)
        assert all(total[column] == sum(row[column] for row in rows) for column in ("lut", "bram18", "uram", "dsp"))
    else:
        assert total["cycles"] == pytest.approx(overhead + sum(row["cycles"] for row in rows))


def test_a_row_says_which_wider_widths_a_layer_runs_in():
    network = tcn()
    rows = cost_rows(compile_target(TARGETS["cortex-m7-cmsis-nn"], network), np.full(len(network.sites), 3))
    by_layer = {row["layer"]: row for row in rows}
    assert by_layer["blocks.0.expand"]["bits"] == "w3 a3"
    assert by_layer["blocks.0.expand"]["runs_as"] == "w4 a8"
    assert by_layer["blocks.0.add"]["runs_as"] == "a8"


def test_a_row_is_silent_where_the_chosen_widths_run():
    network = tcn()
    bits = np.full(len(network.sites), 8)
    bits[network.column["masks"]] = 4
    rows = cost_rows(compile_target(TARGETS["bitfusion"], network), bits)
    assert {row["runs_as"] for row in rows} == {""}
    assert rows[-2]["bits"] == "w8 a8 -> a4"
    assert {row["bound"] for row in rows} <= {"compute", "buffers", "dram", "overhead"}
    assert all(0 < row["utilisation"] <= 1 for row in rows if row["kind"] != "add")
