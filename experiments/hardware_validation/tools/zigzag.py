"""Cycles and energy of layers by ZigZag, on the array that each case describes.

python tools/zigzag.py cases.json results.json
"""

import json
import logging
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any


def main() -> None:
    """Write ZigZag's answer to every case."""
    logging.disable(logging.CRITICAL)
    # This file has the package's name: its own folder must not be looked through first.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]
    cases = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    results = [run(case) for case in cases]
    versions = {"zigzag-dse": version("zigzag-dse"), "python": sys.version.split()[0]}
    Path(sys.argv[2]).write_text(json.dumps({"versions": versions, "results": results}), "utf-8")


def run(case: dict[str, Any]) -> dict[str, float]:
    """The loop order of least latency that ZigZag finds for one layer."""
    import yaml
    from zigzag.api import get_hardware_performance_zigzag

    rows, columns = case["accelerator"]["operational_array"]["sizes"]
    mapping = {
        "name": "default",
        "spatial_mapping": {"D1": [f"C, {rows}"], "D2": [f"K, {columns}"]},
        "memory_operand_links": {"O": "O", "W": "I2", "I": "I1"},
    }
    precision = {"W": case["bits"], "I": case["bits"], "O": case["partial_sum_bits"], "O_final": case["output_bits"]}
    layer = {
        "id": 0,
        "name": "layer",
        "operator_type": "Conv",
        "equation": "O[b][k][oy][ox]+=W[k][c][fy][fx]*I[b][c][iy][ix]",
        "dimension_relations": ["ix=1*ox+1*fx", "iy=1*oy+1*fy"],
        "loop_dims": ["B", "K", "C", "OY", "OX", "FY", "FX"],
        "loop_sizes": [1, case["out_channels"], case["in_channels"], 1, case["frames"], 1, case["taps"]],
        "operand_precision": precision,
        "operand_source": {"I": 0, "W": 0},
    }
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        # The order of the memories is theirs from the array outwards.
        for what, content in (("workload", [layer]), ("accelerator", case["accelerator"]), ("mapping", [mapping])):
            files[what] = str(Path(folder) / f"{what}.yaml")
            Path(files[what]).write_text(yaml.safe_dump(content, sort_keys=False), "utf-8")
        energy, cycles, _ = get_hardware_performance_zigzag(
            **files, opt="latency", dump_folder=folder, loma_show_progress_bar=False, nb_spatial_mappings_generated=1
        )
    return {"cycles": float(cycles), "energy_pj": float(energy)}


if __name__ == "__main__":
    main()
