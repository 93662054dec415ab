"""finn-plus's default build of exported networks for a frame rate, up to its estimate reports.

All rates and boards of a network share the steps before the folding: what they make of these networks is the same for every
device without DSP58 slices. `step_minimize_bit_width`, which takes long and does not depend on the folding, is among them;
finn-plus has it after the folding.

    python tools/finn_default.py cases.json results.json
"""

from pathlib import Path
from typing import Any

from _finn_plus import CLOCK_NS, answer, reported

BOARDS = {"finn-zcu104": "ZCU104", "finn-pynq-z2": "Pynq-Z2"}
FOLDING = ["step_target_fps_parallelization", "step_apply_folding_config"]
REPORT = "step_generate_estimate_reports"


def estimates(case: dict[str, Any]) -> dict[str, float]:
    """Build one network for a board and a rate."""
    from finn.builder.build_dataflow_config import estimate_only_dataflow_steps as steps

    folder, board, rate = Path(case["folder"]), BOARDS[case["target"]], case["rate"]
    before = [step for step in steps if step not in (*FOLDING, REPORT)]
    ready = folder / "unfolded" / "intermediate_models" / f"{before[-1]}.onnx"
    if not ready.is_file():
        build(folder / "model.finn.onnx", folder / "unfolded", before, board, rate)
    output = folder / f"{board}-{rate}"
    if not (output / "report").is_dir():
        build(ready, output, [*FOLDING, REPORT], board, rate)
    return {case["group"] + name: value for name, value in reported(output).items()}


def build(model: Path, output: Path, steps: list[str], board: str, rate: int) -> None:
    """Run some steps of finn-plus on a model."""
    from finn.builder import build_dataflow, build_dataflow_config

    outputs = [build_dataflow_config.DataflowOutputType.ESTIMATE_REPORTS] if REPORT in steps else []
    configuration = build_dataflow_config.DataflowBuildConfig(
        output_dir=str(output),
        synth_clk_period_ns=CLOCK_NS,
        board=board,
        target_fps=rate,
        generate_outputs=outputs,
        steps=steps,
        enable_build_pdb_debug=False,
    )
    if build_dataflow.build_dataflow_cfg(str(model), configuration):
        raise RuntimeError(f"{model}: finn-plus did not get through {', '.join(steps)}; see {output}")


if __name__ == "__main__":
    answer(estimates)
