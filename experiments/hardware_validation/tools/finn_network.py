"""finn-plus's estimates of exported networks: resources and cycles of its whole design, and nodes that are left to the host.

It runs its usual steps to the estimate reports.

    python tools/finn_network.py cases.json results.json
"""

from pathlib import Path
from typing import Any

from _finn_plus import CLOCK_NS, answer, reported

BOARD = "ZCU104"
PARTITION = "StreamingDataflowPartition"


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

    parent = ModelWrapper(str(output / "intermediate_models" / "dataflow_parent.onnx"))
    return reported(output) | {"host_nodes": float(sum(node.op_type != PARTITION for node in parent.graph.node))}


if __name__ == "__main__":
    answer(estimates)
