"""FINN's own estimates of nodes, and the foldings that its `SetFolding` chooses for chains of them.

`FINN_ROOT` names a checkout of github.com/Xilinx/finn. Only estimates are asked for, so the simulator that FINN imports
(PyVerilator) is replaced by an empty module.

    FINN_ROOT=... python tools/finn.py cases.json results.json
"""

import json
import os
import subprocess
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

PART = "xczu7ev-ffvc1156-2-e"
DOMAIN = "finn.custom_op.fpgadataflow"
STYLES = {"lutram": "distributed", "bram": "block", "uram": "ultra"}


def main() -> None:
    """Write FINN's answer to every case."""
    root = Path(os.environ["FINN_ROOT"])
    sys.path[0] = str(root / "src")  # in place of this folder, whose `finn` would hide the package
    stand_in_for_pyverilator()
    warnings.simplefilter("ignore")
    cases = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    results = [chain(case) if case["node"] == "chain" else node(case) for case in cases]
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    versions = {"finn": commit.stdout.strip() or "unknown", "qonnx": version("qonnx"), "python": sys.version.split()[0]}
    Path(sys.argv[2]).write_text(json.dumps({"versions": versions, "results": results}), "utf-8")


def stand_in_for_pyverilator() -> None:
    """Modules with the names that FINN imports and never calls here."""
    for name in ("pyverilator", "pyverilator.util", "pyverilator.util.axi_utils"):
        sys.modules[name] = ModuleType(name)
    sys.modules["pyverilator"].PyVerilator = None
    for function in ("reset_rtlsim", "toggle_clk", "rtlsim_multi_io", "_read_signal"):
        setattr(sys.modules["pyverilator.util.axi_utils"], function, None)


def node(case: dict[str, Any]) -> dict[str, float]:
    """Cycles and resources of a single node; of a sum with its thresholds."""
    match case["node"]:
        case "matrix" | "vector":
            return estimates([engine(case)])
        case "window":
            return estimates([window(case)])
        case "sum":
            common = {"NumChannels": case["channels"], "PE": case["pe"], "numInputVectors": [1, case["frames"], 1]}
            add = operator("AddStreams_hls", inputDataType=integer(case["a"]), **common)
            wide, steps = integer(case["a"] + 1), 2 ** case["b"] - 1
            types = {"inputDataType": wide, "weightDataType": wide, "outputDataType": integer(case["b"])}
            return estimates([add, operator("Thresholding_rtl", numSteps=steps, **types, **common)])
        case _:
            style = {"impl_style": "vivado", "ram_style": "block"} if case["words"] > 256 else {"impl_style": "rtl"}
            from finn.transformation.fpgadataflow.set_fifo_depths import optimize_depth

            depth = optimize_depth(case["words"])
            folded = {"folded_shape": [1, 1, case["lanes"]], "normal_shape": [1, case["lanes"]]}
            return estimates([operator("StreamingFIFO_rtl", depth=depth, dataType=integer(case["a"]), **folded, **style)])


def engine(case: dict[str, Any]) -> Any:
    """A matrix-vector or vector-vector unit with thresholds in lookup tables."""
    types = {
        "weightDataType": integer(case["w"]),
        "inputDataType": integer(case["a"], signed=case["signed"]),
        "outputDataType": integer(case["b"]),
    }
    built = {"PE": case["pe"], "SIMD": case["simd"], "resType": case["multipliers"], "ram_style": STYLES[case["memory"]]}
    if case["node"] == "matrix":
        size = {"MW": case["inputs"], "MH": case["outputs"], "numInputVectors": [1, case["frames"], 1]}
        return operator("MVAU_hls", ram_style_thresholds="distributed", **size, **types, **built)
    size = {"Channels": case["channels"], "Kernel": [case["taps"], 1], "Dim": [case["frames"], 1]}
    return operator("VVAU_hls", **size, **types, **built)


def window(case: dict[str, Any]) -> Any:
    """A sliding window; lookup tables where all taps are read at once or the buffer is at most 128 words deep."""
    span = (case["taps"] - 1) * case["dilation"]
    shallow = case["parallel"] or (span + 1) * (case["channels"] // case["simd"]) <= 128
    return operator(
        "ConvolutionInputGenerator_rtl",
        ConvKernelDim=[case["taps"], 1],
        IFMChannels=case["channels"],
        IFMDim=[case["frames"] + span, 1],
        OFMDim=[case["frames"], 1],
        SIMD=case["simd"],
        Stride=[1, 1],
        Dilation=[case["dilation"], 1],
        inputDataType=integer(case["a"]),
        outputDataType=integer(case["a"]),
        depthwise=int(case["depthwise"]),
        parallel_window=int(case["parallel"]),
        ram_style="distributed" if shallow else "block",
        is1D=1,
    )


def chain(case: dict[str, Any]) -> dict[str, float]:
    """Foldings and cycles of expansion, depthwise filter, projection and dense filter.

    SetFolding wants less than its target where ours is at most the target; its limit on the width of weights is put out of reach.
    """
    from finn.transformation.fpgadataflow.set_folding import SetFolding
    from onnx import TensorProto, helper
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.custom_op.registry import getCustomOp
    from qonnx.util.basic import qonnx_make_model

    taps, bottleneck, hidden, frames = case["taps"], case["bottleneck"], case["hidden"], case["frames"]
    common = {
        "frames": frames,
        "w": 2,
        "a": 2,
        "b": 2,
        "signed": True,
        "multipliers": "lut",
        "memory": "bram",
        "pe": 1,
        "simd": 1,
    }
    filtering = {"taps": taps, "dilation": case["dilation"], "simd": 1, "a": 2, "frames": frames, "parallel": False}
    layers = [
        [engine(common | {"node": "matrix", "inputs": bottleneck, "outputs": hidden})],
        [
            window(filtering | {"channels": hidden, "depthwise": True}),
            engine(common | {"node": "vector", "channels": hidden, "taps": taps}),
        ],
        [engine(common | {"node": "matrix", "inputs": hidden, "outputs": bottleneck})],
        [
            window(filtering | {"channels": bottleneck, "depthwise": False}),
            engine(common | {"node": "matrix", "inputs": taps * bottleneck, "outputs": bottleneck}),
        ],
    ]
    nodes = [built.onnx_node for layer in layers for built in layer]
    for i, made in enumerate(nodes):
        made.input[:], made.output[:], made.name = [f"t{i}", f"w{i}"], [f"t{i + 1}"], f"node{i}"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("t0", f"t{len(nodes)}")]
    model = ModelWrapper(qonnx_make_model(helper.make_graph(nodes, "chain", ends[:1], ends[1:])))
    folding = SetFolding(case["target_cycles"] + 1, mvau_wwidth_max=10**6, two_pass_relaxation=False)
    operators = iter([getCustomOp(made) for made in model.transform(folding).graph.node])
    metrics: dict[str, float] = {}
    for i, layer in enumerate(layers):
        folded = [next(operators) for _ in layer]
        last, first = folded[-1], folded[0] if len(folded) == 2 else None
        metrics |= {f"pe_{i}": last.get_nodeattr("PE"), f"simd_{i}": last.get_nodeattr("SIMD")}
        metrics[f"window_simd_{i}"] = first.get_nodeattr("SIMD") if first else 0
        metrics[f"parallel_window_{i}"] = float(first.get_nodeattr("parallel_window")) if first else 0.0
        metrics[f"cycles_{i}"] = max(int(one.get_exp_cycles()) for one in folded)
    return metrics


def operator(op_type: str, **attributes: Any) -> Any:
    """A custom operator of FINN, its implementation by the suffix of its name."""
    from onnx import helper
    from qonnx.custom_op.registry import getCustomOp

    domain = f"{DOMAIN}.{op_type.rpartition('_')[2]}"
    return getCustomOp(helper.make_node(op_type, ["x", "w", "t"], ["y"], domain=domain, backend="fpgadataflow", **attributes))


def estimates(operators: list[Any]) -> dict[str, float]:
    """Sums over nodes."""
    found = [one.node_res_estimation(PART) for one in operators]
    names = {"lut": "LUT", "bram18": "BRAM_18K", "uram": "URAM", "dsp": "DSP"}
    cycles = 0 if operators[0].onnx_node.op_type == "StreamingFIFO_rtl" else sum(int(one.get_exp_cycles()) for one in operators)
    return {"cycles": float(cycles)} | {ours: float(sum(each[theirs] for each in found)) for ours, theirs in names.items()}


def integer(bits: int, *, signed: bool = True) -> str:
    """FINN's name of an integer type; signed single bits are +1 and -1."""
    if bits == 1:
        return "BIPOLAR" if signed else "BINARY"
    return f"{'INT' if signed else 'UINT'}{bits}"


if __name__ == "__main__":
    main()
