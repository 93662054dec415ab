"""Compiles the networks of the cases with Vela and reads its estimates.

    python tools/vela.py cases.json results.json

Runs in an environment with ethos-u-vela, flatbuffers and tflite.
"""

import csv
import io
import json
import re
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tflite_writer import write_tflite

SYSTEMS = {  # target: accelerator, system configuration and memory mode of Vela's own vela.ini
    "ethos-u55-128": ("ethos-u55-128", "Ethos_U55_High_End_Embedded", "Shared_Sram"),
    "ethos-u55-256": ("ethos-u55-256", "Ethos_U55_High_End_Embedded", "Shared_Sram"),
    "ethos-u65-256": ("ethos-u65-256", "Ethos_U65_Client_Server", "Dedicated_Sram_384KB"),
}
SHARED_SRAM = "Shared_Sram"

Row = dict[str, str]


def compile_network(case: dict[str, Any], optimise: str) -> tuple[str, list[Row]]:
    """What `compile_file` says of the network of a case."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "network.tflite"
        write_tflite(case["network"], case["weight_bits"], case["activation_bits"], model)
        return compile_file(case["name"], model.read_bytes(), case["target"], optimise)


def compile_file(name: str, content: bytes, target: str, optimise: str) -> tuple[str, list[Row]]:
    """Vela's printed summary, and one row of its performance tables for each operation that it schedules."""
    accelerator, system, memory_mode = SYSTEMS[target]
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "network.tflite"
        model.write_bytes(content)
        command = [sys.executable, "-m", "ethosu.vela", str(model), "--output-dir", folder, "--optimise", optimise]
        command += ["--accelerator-config", accelerator, "--config", "Arm/vela.ini"]
        command += ["--system-config", system, "--memory-mode", memory_mode, "--verbose-performance", "--enable-debug-db"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            raise RuntimeError(f"{name}: vela failed: {done.stdout[-500:]}{done.stderr[-500:]}")
        if "CPU operators = 0" not in done.stdout:
            raise RuntimeError(f"{name}: vela leaves operations to the CPU")
        tables = _tables((Path(folder) / "network_debug.xml").read_text("utf-8"))
    details = {name: {row["id"]: row for row in tables[name]} for name in ("perf_debug", "perf_debug_main")}
    # A fused ReLU has a row of its own in `perf`, without cycles, and none in `perf_debug_main`.
    rows = [
        {**row, **details["perf_debug"][row["id"]], **details["perf_debug_main"][row["id"]]}
        for row in tables["perf"]
        if row["id"] in details["perf_debug_main"]
    ]
    return done.stdout, rows


def weight_bytes(rows: list[Row]) -> int:
    """Encoded weights and scales; scales are listed as read, once for every column of tiles."""
    total = 0
    for row in rows:
        if row["weight_total_bytes"]:
            frames, block = int(row["ofm_shape_w"]), int(row["ofm_block_w"])
            read = sum(int(value) for name, value in row.items() if name.endswith("Scales_read") and value)
            total += int(row["weight_total_bytes"]) + read // -(-frames // min(frames, block))
    return total


def main(cases_path: Path, results_path: Path) -> None:
    """Results in the order of the cases."""
    fastest: dict[str, list[Row]] = {}
    results = []
    for case in json.loads(cases_path.read_text("utf-8")):
        key = json.dumps([case["target"], case["network"], case["weight_bits"], case["activation_bits"]])
        if key not in fastest:
            fastest[key] = compile_network(case, "Performance")[1]
        rows = fastest[key]
        if "layer" in case:
            site = next(layer["output"] for layer in case["network"]["layers"] if layer["name"] == case["layer"])
            results.append({"layer_cycles": float(sum(int(row["op_cycles"]) for row in rows if row["name"] == site))})
            continue
        result = {"cycles": float(sum(int(row["op_cycles"]) for row in rows)), "weight_bytes": float(weight_bytes(rows))}
        if SYSTEMS[case["target"]][2] == SHARED_SRAM:
            used = re.search(r"Total SRAM used +([\d.]+) KiB", compile_network(case, "Size")[0])
            if used is None:
                raise RuntimeError(f"{case['name']}: vela names no SRAM used")
            result["peak_activation_bytes"] = 1024 * float(used[1])
        results.append(result)
    versions = {name: version(name) for name in ("ethos-u-vela", "flatbuffers", "tflite")}
    results_path.write_text(json.dumps({"versions": versions, "results": results}, indent=1), "utf-8")


def _tables(debug_database: str) -> dict[str, list[Row]]:
    found = re.findall(r'<table name="(\w+)">\s*<!\[CDATA\[\s*(.*?)\]\]>', debug_database, re.DOTALL)
    return {name: list(csv.DictReader(io.StringIO(text))) for name, text in found}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
