"""What the tools that run finn-plus share: its start without vendor tools and torch, its report, and their answers.

Estimates need neither: the simulator and torch, which finn-plus imports and does not call, are replaced by empty modules, and the
folder of Vivado, of which it only keeps the name, is given as none.
"""

import json
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

CLOCK_NS = 10.0


def answer(estimates: Callable[[dict[str, Any]], dict[str, float]]) -> None:
    """Write finn-plus's answer to every case; the files of cases and of results are the arguments of the command."""
    # Scripts in this folder bear the names of packages.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]
    os.environ.setdefault("XILINX_VIVADO", "none")
    for name in ("finn.xsi", "torch", "torch.nn", "torch.nn.functional"):
        sys.modules[name] = ModuleType(name)
    sys.modules["finn.xsi"].SimEngine = None
    sys.modules["torch"].Tensor = type("Tensor", (), {})  # SciPy asks whether an array is one
    from finn.util.settings import initialize_dummy_settings

    initialize_dummy_settings()
    results = [estimates(case) for case in json.loads(Path(sys.argv[1]).read_text("utf-8"))]
    versions = {name: version(name) for name in ("finn-plus", "qonnx")}
    Path(sys.argv[2]).write_text(json.dumps({"versions": versions, "results": results}), "utf-8")


def reported(output: Path) -> dict[str, float]:
    """Read the estimates of a build."""
    taken = json.loads((output / "report" / "estimate_layer_resources.json").read_text("utf-8"))["total"]
    speed = json.loads((output / "report" / "estimate_network_performance.json").read_text("utf-8"))
    return {"lut": float(taken["LUT"]), "bram18": float(taken["BRAM_18K"]), "cycles": float(speed["max_cycles"])}
