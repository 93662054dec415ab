"""Builds a FINN design from an export: estimates of its resources and speed, unless you ask for more.

    python build.py                                # for the ZCU104, estimates only
    python build.py --target finn-pynq-z2 --full   # a bitfile and a driver; wants Vivado

It runs in the environment of your FINN: github.com/Xilinx/finn, or finn-plus. Results go to the folder `finn`.
"""

import argparse
from pathlib import Path

BOARDS = {"finn-zcu104": "ZCU104", "finn-pynq-z2": "Pynq-Z2"}
HERE = Path(__file__).resolve().parent
CLOCK_NS = 10.0


def main() -> None:
    """Parse the options, which needs no FINN, and build."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=BOARDS, default="finn-zcu104", help="The board, which also chooses the folding.")
    parser.add_argument("--full", action="store_true", help="Synthesise a bitfile, and write a driver for the board.")
    parser.add_argument("--output", type=Path, default=HERE / "finn", help="Folder for the results.")
    options = parser.parse_args()
    from finn.builder import build_dataflow, build_dataflow_config

    outputs = build_dataflow_config.DataflowOutputType
    wanted = [outputs.ESTIMATE_REPORTS]
    steps = build_dataflow_config.estimate_only_dataflow_steps
    if options.full:
        wanted += [outputs.STITCHED_IP, outputs.BITFILE, outputs.PYNQ_DRIVER, outputs.DEPLOYMENT_PACKAGE]
        steps = build_dataflow_config.default_build_dataflow_steps
    configuration = build_dataflow_config.DataflowBuildConfig(
        output_dir=str(options.output),
        synth_clk_period_ns=CLOCK_NS,
        board=BOARDS[options.target],
        shell_flow_type=build_dataflow_config.ShellFlowType.VIVADO_ZYNQ,
        folding_config_file=str(HERE / f"folding-{options.target}.json"),
        generate_outputs=wanted,
        steps=steps,
    )
    build_dataflow.build_dataflow_cfg(str(HERE / "model.finn.onnx"), configuration)


if __name__ == "__main__":
    main()
