"""finn-plus's estimates of exported networks: resources and cycles of its whole design, and nodes that are left to the host.

It runs its usual steps to the estimate reports. These need neither vendor tools nor torch: the simulator and torch, which it
imports and does not call, are replaced by empty modules, and the folder of Vivado, of which it only keeps the name, is given as
none.

    python tools/finn_network.py cases.json results.json
"""

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

BOARD = "ZCU104"
CLOCK_NS = 10.0
PARTITION = "StreamingDataflowPartition"


def main() -> None:
    """Write finn-plus's answer to every case."""
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


def estimates(case: dict[str, Any]) -> dict[str, float]:
    """Build one export up to its estimates."""
    from finn.builder import build_dataflow, build_dataflow_config

    folder = Path(case["folder"])
    output = folder / "finn"
    configuration = build_dataflow_config.DataflowBuildConfig(
        output_dir=str(output),
        synth_clk_period_ns=CLOCK_NS,
        board=BOARD,
        folding_config_file=str(folder / f"folding-{case['target']}.json"),
        generate_outputs=[build_dataflow_config.DataflowOutputType.ESTIMATE_REPORTS],
        steps=build_dataflow_config.estimate_only_dataflow_steps,
        enable_build_pdb_debug=False,
    )
    if build_dataflow.build_dataflow_cfg(str(folder / "model.finn.onnx"), configuration):
        raise RuntimeError(f"{case['name']}: finn-plus did not get to its estimates; see {output}")
    return read(output)


def read(output: Path) -> dict[str, float]:
    """Read the reports of a build, and the nodes that it left to the host."""
    from qonnx.core.modelwrapper import ModelWrapper

    models = output / "intermediate_models"
    parent = ModelWrapper(str(models / "dataflow_parent.onnx"))
    taken = json.loads((output / "report" / "estimate_layer_resources.json").read_text("utf-8"))["total"]
    speed = json.loads((output / "report" / "estimate_network_performance.json").read_text("utf-8"))
    return {
        "lut": float(taken["LUT"]),
        "bram18": float(taken["BRAM_18K"]),
        "cycles": float(speed["max_cycles"]),
        "host_nodes": float(sum(node.op_type != PARTITION for node in parent.graph.node)),
    }


if __name__ == "__main__":
    main()
