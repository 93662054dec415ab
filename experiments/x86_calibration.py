"""Measures ONNX Runtime on this machine and prints the rates for `hw_models/targets/x86-onnxruntime.toml`.

One thread, chains of equal layers (so that the layout conversions at the ends are shared), uint8 activations
and int8 weights against float32. Each kernel class is fitted as `cycles = per_layer + per_channel * output
channels + per_mac * MACs + per_output * outputs` by non-negative least squares on relative errors. Held out:
chains of other sizes, and whole TCN stacks (pointwise, dilated depthwise, pointwise, residual add), which no
fit has seen.

    python experiments/x86_calibration.py --clock-hz 2.6e9
"""

import argparse
import time
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from scipy.optimize import nnls

CHAIN = 16  # long enough that the cost of one `run` call disappears among the layers
FIT_SIZES = [(64, 64), (64, 128), (128, 128), (128, 512), (256, 256), (512, 512)]
FIT_FRAMES = [100, 250, 500]
HELD_OUT_SIZES = [(96, 192), (192, 384)]
HELD_OUT_FRAMES = [150, 400]
STACKS = [(64, 128, 125), (64, 128, 500), (128, 256, 250), (128, 512, 300)]


@dataclass(frozen=True)
class Step:
    """One layer of a measured graph."""

    kind: str
    in_channels: int
    out_channels: int
    kernel_size: int = 1
    dilation: int = 1

    def macs(self, frames: int) -> int:
        if self.kind == "add":
            return 0
        inputs = 1 if self.kind == "depthwise" else self.in_channels
        return self.out_channels * inputs * self.kernel_size * frames


def graph(steps: list[Step], frames: int, *, quantized: bool) -> bytes:
    """An ONNX model that runs `steps` in a row; an `add` adds the tensor that entered its block."""
    rng = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def constant(name: str, value: np.ndarray) -> str:
        weights.append(numpy_helper.from_array(value, name))
        return name

    constant("scale", np.array(0.02, np.float32))
    constant("zero", np.array(128, np.uint8))
    current, block_input = "x", "x"
    for i, step in enumerate(steps):
        out = f"t{i}"
        if step.kind == "add":
            if quantized:
                pair = [current, "scale", "zero", block_input, "scale", "zero", "scale", "zero"]
                nodes.append(helper.make_node("QLinearAdd", pair, [out], domain="com.microsoft"))
            else:
                nodes.append(helper.make_node("Add", [current, block_input], [out]))
            block_input = out
        else:
            group = step.in_channels if step.kind == "depthwise" else 1
            shape = (step.out_channels, step.in_channels // group, step.kernel_size)
            pad = (step.kernel_size - 1) * step.dilation // 2
            attributes = {
                "group": group,
                "dilations": [step.dilation],
                "pads": [pad, pad],
                "kernel_shape": [step.kernel_size],
            }
            if quantized:
                w = constant(f"w{i}", rng.integers(-127, 128, shape).astype(np.int8))
                ws = constant(f"ws{i}", np.full(step.out_channels, 0.001, np.float32))
                wz = constant(f"wz{i}", np.zeros(step.out_channels, np.int8))
                b = constant(f"b{i}", np.zeros(step.out_channels, np.int32))
                names = [current, "scale", "zero", w, ws, wz, "scale", "zero", b]
                nodes.append(helper.make_node("QLinearConv", names, [out], **attributes))
            else:
                w = constant(f"w{i}", rng.normal(size=shape).astype(np.float32) * 0.05)
                b = constant(f"b{i}", np.zeros(step.out_channels, np.float32))
                nodes.append(helper.make_node("Conv", [current, w, b], [out], **attributes))
        current = out
    kind = TensorProto.UINT8 if quantized else TensorProto.FLOAT
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "calibration",
            [helper.make_tensor_value_info("x", kind, [1, steps[0].in_channels, frames])],
            [helper.make_tensor_value_info(current, kind, [1, steps[-1].out_channels, frames])],
            weights,
        ),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)],
        ir_version=9,
    )
    return bytes(model.SerializeToString())


def seconds(steps: list[Step], frames: int, *, quantized: bool, repeats: int = 60) -> float:
    """Best of `repeats` runs on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(graph(steps, frames, quantized=quantized), options, providers=["CPUExecutionProvider"])
    shape = (1, steps[0].in_channels, frames)
    rng = np.random.default_rng(1)
    x = rng.integers(0, 256, shape).astype(np.uint8) if quantized else rng.normal(size=shape).astype(np.float32)
    best = np.inf
    for _ in range(repeats):
        start = time.perf_counter()
        session.run(None, {"x": x})
        best = min(best, time.perf_counter() - start)
    return float(best)


def chain(kind: str, channels: tuple[int, int], dilation: int = 1) -> list[Step]:
    narrow, wide = channels
    if kind == "conv":
        return [Step("conv", narrow, wide), Step("conv", wide, narrow)] * (CHAIN // 2)
    if kind == "depthwise":
        return [Step("depthwise", wide, wide, 3, dilation)] * CHAIN
    return [Step("add", wide, wide)] * CHAIN


def stack(narrow: int, wide: int, blocks: int = 4) -> list[Step]:
    return [
        step
        for i in range(blocks)
        for step in (
            Step("conv", narrow, wide),
            Step("depthwise", wide, wide, 3, 2**i),
            Step("conv", wide, narrow),
            Step("add", narrow, narrow),
        )
    ]


def features(steps: list[Step], frames: int) -> np.ndarray:
    """`[4]`: layers, output channels, MACs and outputs of a graph of one kernel class."""
    channels = sum(s.out_channels for s in steps)
    return np.array([len(steps), channels, sum(s.macs(frames) for s in steps), channels * frames], float)


def measure(kind: str, sizes: list[tuple[int, int]], all_frames: list[int], *, quantized: bool) -> tuple[np.ndarray, np.ndarray]:
    """Features `[measurements, 4]` and seconds `[measurements]` of chains of one kind."""
    dilations = (1, 16) if kind == "depthwise" else (1,)
    cases = [(chain(kind, size, d), frames) for size in sizes for frames in all_frames for d in dilations]
    times = [seconds(steps, frames, quantized=quantized) for steps, frames in cases]
    return np.array([features(steps, frames) for steps, frames in cases]), np.array(times)


def calibrate(clock: float, *, quantized: bool) -> None:
    """Fit and check one precision, and print what was found."""
    print("int8" if quantized else "float32")
    rates: dict[str, np.ndarray] = {}
    errors: list[float] = []
    for kind in ("conv", "depthwise", "add"):
        x, times = measure(kind, FIT_SIZES, FIT_FRAMES, quantized=quantized)
        relative = x / (times * clock)[:, None]
        rates[kind], _ = nnls(relative, np.ones(len(times)))
        fit = np.abs(relative @ rates[kind] - 1)
        x, times = measure(kind, HELD_OUT_SIZES, HELD_OUT_FRAMES, quantized=quantized)
        held_out = np.abs(x @ rates[kind] / (times * clock) - 1)
        errors += held_out.tolist()
        per_layer, per_channel, per_mac, per_output = rates[kind]
        print(f"  {kind}: layer_cycles {per_layer:.0f} cycles_per_channel {per_channel:.1f}", end=" ")
        print(f"cycles_per_mac {per_mac:.5f} cycles_per_output {per_output:.4f}", end=" ")
        print(f"| fit median {np.median(fit):.1%} max {fit.max():.1%}, held out max {held_out.max():.1%}")
    for narrow, wide, frames in STACKS:
        steps = stack(narrow, wide)
        kinds = {kind: [step for step in steps if step.kind == kind] for kind in rates}
        predicted = sum(features(kinds[kind], frames) @ rate for kind, rate in rates.items())
        measured = seconds(steps, frames, quantized=quantized) * clock
        errors.append(abs(predicted / measured - 1))
        print(f"  stack {narrow}x{wide}x{frames}: {predicted / measured - 1:+.1%} of {measured:.0f} cycles")
    print(f"  held out: median {np.median(errors):.1%}, max {max(errors):.1%} of {len(errors)}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clock-hz", type=float, required=True, help="clock that turns seconds into cycles")
    clock = parser.parse_args().clock_hz
    for quantized in (True, False):
        calibrate(clock, quantized=quantized)


if __name__ == "__main__":
    main()
