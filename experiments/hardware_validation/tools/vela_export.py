"""Compiles the files of the cases with Vela and reads its estimates.

    python tools/vela_export.py cases.json results.json

Runs in an environment with ethos-u-vela, flatbuffers and tflite.
"""

import base64
import json
import re
import sys
from importlib.metadata import version
from pathlib import Path

from vela import compile_file, weight_bytes


def main(cases_path: Path, results_path: Path) -> None:
    """Results in the order of the cases."""
    results = []
    for case in json.loads(cases_path.read_text("utf-8")):
        content = base64.b64decode(case["file"])
        rows = compile_file(case["name"], content, case["target"], "Performance")[1]
        used = re.search(r"Total SRAM used +([\d.]+) KiB", compile_file(case["name"], content, case["target"], "Size")[0])
        if used is None:
            raise RuntimeError(f"{case['name']}: vela names no SRAM used")
        results.append(
            {
                "cycles": float(sum(int(row["op_cycles"]) for row in rows)),
                "weight_bytes": float(weight_bytes(rows)),
                "peak_activation_bytes": 1024 * float(used[1]),
            }
        )
    results_path.write_text(
        json.dumps({"versions": {"ethos-u-vela": version("ethos-u-vela")}, "results": results}, indent=1), "utf-8"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
