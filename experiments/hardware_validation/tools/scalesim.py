"""Runs SCALE-Sim on layers of a TCN, in an environment of its own (`scalesim==3.0.0`, `numpy<2.3`, `pandas<3`).

    python tools/scalesim.py cases.json results.json

Bandwidth mode `CALC`: the memory keeps up, so that cycles are compute cycles. A layer over T frames with K taps becomes a
convolution over T + K - 1 rows of one column (the padded frames); a depthwise one is named `DP`, which the simulator splits into
one layer per channel.
"""

import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

# This file bears the name of the package it runs, which the folder of a script, first on the path, would hide.
sys.path = [folder for folder in sys.path if Path(folder).resolve() != Path(__file__).resolve().parent]

from scalesim.scale_sim import scalesim  # type: ignore[import-not-found]  # noqa: E402

DATAFLOWS = {"weight_stationary": "ws", "output_stationary": "os", "input_stationary": "is"}

CONFIG = """
[general]
run_name = case
[architecture_presets]
ArrayHeight: {rows}
ArrayWidth: {columns}
IfmapSramSzkB: 4096
FilterSramSzkB: 4096
OfmapSramSzkB: 4096
IfmapOffset: 0
FilterOffset: 10000000
OfmapOffset: 20000000
Bandwidth: 10
Dataflow: {dataflow}
ReadRequestBuffer: 32
WriteRequestBuffer: 32
[layout]
IfmapCustomLayout: False
IfmapSRAMBankBandwidth: 10
IfmapSRAMBankNum: 1
IfmapSRAMBankPort: 2
FilterCustomLayout: False
FilterSRAMBankBandwidth: 10
FilterSRAMBankNum: 1
FilterSRAMBankPort: 2
[sparsity]
SparsitySupport: false
[run_presets]
InterfaceBandwidth: CALC
UseRamulatorTrace: False
"""


def simulate(case: dict[str, Any]) -> dict[str, float]:
    """Cycles, utilisation and buffer accesses of one layer."""
    depthwise = case["kind"] == "depthwise"
    name, filters = ("DP", 1) if depthwise else ("conv", case["out_channels"])
    sizes = (case["frames"] + case["taps"] - 1, 1, case["taps"], 1, case["in_channels"], filters, 1)
    config = CONFIG.format(rows=case["rows"], columns=case["columns"], dataflow=DATAFLOWS[case["dataflow"]])
    with tempfile.TemporaryDirectory() as folder:
        files = {
            "config": (Path(folder) / "array.cfg", config),
            "topology": (Path(folder) / "layers.csv", "header\n" + ",".join(map(str, (name, *sizes))) + ",\n"),
            "layout": (Path(folder) / "layouts.csv", "header\n"),
        }
        for path, text in files.values():
            path.write_text(text, "utf-8")
        paths = {what: str(path) for what, (path, _) in files.items()}
        simulator = scalesim(save_disk_space=True, verbose=False, **paths)
        simulator.run_scale(top_path=str(Path(folder) / "reports"))
        layers = simulator.runner.single_layer_sim_object_list

    cycles, busy, inputs, weights, outputs = 0, 0.0, 0, 0, 0
    for layer in layers:
        _, layer_cycles, stalls, utilisation, _, _ = layer.get_compute_report_items()
        if stalls:
            raise RuntimeError(f"case '{case['name']}': found {stalls} stall cycles; wanted none")
        accesses = layer.get_detail_report_items()
        cycles += layer_cycles
        busy += utilisation * layer_cycles
        inputs += accesses[2]
        weights += accesses[5]
        # What leaves the output buffer is what was written to it: the simulator's own count of writes adds rows + columns to
        # every output-stationary fold.
        outputs += accesses[17]
    return {
        "cycles": float(cycles),
        "utilisation_percent": float(busy / cycles),
        "input_buffer_reads": float(inputs),
        "weight_buffer_reads": float(weights),
        "output_buffer_writes": float(outputs),
    }


def main() -> None:
    """Reads the cases, writes versions and results."""
    cases_file, results_file = map(Path, sys.argv[1:])
    cases = json.loads(cases_file.read_text("utf-8"))
    results = {
        "versions": {package: version(package) for package in ("scalesim", "numpy", "pandas")},
        "results": [simulate(case) for case in cases],
    }
    results_file.write_text(json.dumps(results, indent=1), "utf-8")


if __name__ == "__main__":
    main()
