"""ONNX Runtime timed on this machine: its target fitted at one length, checked at others.

One thread, uint8 activations and per-channel integer weights (QLinearConv, QLinearAdd) or float32. Weights of up to 7 bits are
int8, those of 8 bits uint8 where int8 could saturate, as in exported files. A trunk of 16 bits is summed in float32 and rounded
after each sum; its readers quantize it to 8 bits. Features are normalised and quantized before the first layer. Which target that
is, follows from the kernels that ONNX Runtime takes here: `x86-onnxruntime` with VNNI, `x86-onnxruntime-avx2` without. Fitted:
single layers and chains of layers at `FIT_FRAMES`. Checked: separators at other lengths, as a whole, and their layers one by one
from ONNX Runtime's own profile.
Absolute speeds differ between machines, so fit and check come from one run: the graphs take turns, and the least time of many
turns counts, on the clock of the one thread, since other work on the machine only ever adds to a time.


    python experiments/hardware_validation/onnxruntime_measured.py measurements.json target.toml

writes what was timed, and the target fitted to two thirds of it, of all lengths.
"""

import argparse
import json
import math
import platform
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Final

import hwsearch  # noqa: F401 - before ONNX Runtime, which reports to its makers where nobody has switched that off

# isort: split
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from hw_models.breakdown import per_layer
from hw_models.calibration import Check, Errors, Fit, calibrate, target_toml
from hw_models.compile import compile_target
from hw_models.cost import evaluate
from hw_models.measurements import Measurement, Measurements
from hw_models.rules.rates import RateCompute
from hw_models.target import Target, load_target
from hw_models.workload import FLOAT_BITS, LayerKind, Workload
from hwsearch.experiment import SeparatorConfig
from hwsearch.export.saturation import UNSIGNED_ZERO_POINT, holds_unsigned_weights, kernels_saturate
from hwsearch.separator.tcn import MaskNetwork
from hwsearch.separator.untrained import network_of

SETTING: Final = "One thread of one machine with VNNI; fitted at 250 frames in the same run, checked at 100 to 500."
REQUIREMENTS: tuple[str, ...] = ()
VNNI_TARGET: Final = "x86-onnxruntime"
AVX2_TARGET: Final = "x86-onnxruntime-avx2"
FIT_FRAMES: Final = 250
CHECK_FRAMES: Final = (100, 150, 400, 500)
CHAIN: Final = 16
"""Layers of a chain: the ends, where the layout changes, and the call itself count little."""
PAIRS: Final = {"int8": (8, 7), "uint8": (8, 8), "float32": (32, 32)}
"""(activation, weight) bits of what is timed, by how weights are stored."""
TRUNK: Final = "trunk"
"""The precision of a trunk of 16 bits, which has no weights."""
TRUNK_BITS: Final = 16
TRUNK_CHANNELS: Final = (64, 128, 256)
FEATURES: Final = (1028, 2056, 4112)
"""Numbers of features whose normalising and quantizing is timed."""
SIZES: Final = ((64, 64), (64, 128), (128, 128), (128, 256), (128, 512), (256, 256), (256, 512))
RAGGED_SIZES: Final = ((64, 390), (128, 260), (128, 774))
"""Sizes of convolutions that are no multiple of a vector instruction, like the ends of a separator."""
SEPARATORS: Final = (
    SeparatorConfig(n_fft=256, B=64, H=128, X=4, R=1),
    SeparatorConfig(n_fft=512, B=64, H=256, X=5, R=2),
    SeparatorConfig(n_fft=512, B=128, H=256, X=6, R=1),
    SeparatorConfig(n_fft=512, B=128, H=512, X=4, R=2),
)
ROUNDS: Final = 60
CALLS: Final = 3
"""Calls of a session in a row: the first finds cold caches, the next warm ones."""
PROFILED_CALLS: Final = 60

_PROFILED_NODE: Final = re.compile(r"layer(?P<layer>\d+)(_token_\d+)?_kernel_time")
"""A layer of `graph` in a profile; the token is added where ONNX Runtime changes the layout."""

Case = dict[str, Any]


def fit_cases() -> list[Case]:
    """Chains and single layers of one length, to which the target is fitted before it is checked at others."""
    sizes = SIZES + RAGGED_SIZES
    singles = [
        _case(f"conv {narrow}-{wide}", precision, FIT_FRAMES, [_layer("conv", narrow, wide)])
        for precision in PAIRS
        for narrow, wide in sizes
    ]
    return _chains(FIT_FRAMES, sizes, sorted({wide for _, wide in SIZES})) + singles


def _chains(frames: int, sizes: Sequence[tuple[int, int]], channels: Sequence[int]) -> list[Case]:
    found = []
    for precision in PAIRS:
        for narrow, wide in sizes:
            there_and_back = [_layer("conv", narrow, wide), _layer("conv", wide, narrow)]
            found.append(_case(f"conv {narrow}-{wide} chain", precision, frames, there_and_back, CHAIN // 2))
        for count in channels:
            for dilation in (1, 16):
                layers = [_layer("depthwise", count, count, 3, dilation)]
                found.append(_case(f"depthwise {count} d{dilation} chain", precision, frames, layers, CHAIN))
            found.append(_case(f"add {count} chain", precision, frames, [_layer("add", count, count)], CHAIN))
    return found + _trunks(frames, TRUNK_CHANNELS)


def _trunks(frames: int, channels: Sequence[int]) -> list[Case]:
    """Chains of reads and sums of a trunk, and reads alone."""
    found = []
    for count in channels:
        read, total = _layer("function", count, count), _layer("add", count, count)
        found.append(_case(f"sums of {count} chain", TRUNK, frames, [read, total], CHAIN // 2))
        found.append(_case(f"read of {count}", TRUNK, frames, [read]))
    return found


def other_cases() -> list[Case]:
    """Chains of the shortest and the longest length, which only the target that ships is fitted to."""
    lengths = (min(CHECK_FRAMES), max(CHECK_FRAMES))
    return [case for frames in lengths for case in _chains(frames, SIZES[::2] + RAGGED_SIZES[::2], (64, 256))]


def cases() -> list[Case]:
    """Whole separators and each of their layers, at lengths that the fit has not seen."""
    found = []
    for number, config in enumerate(SEPARATORS):
        for precision in PAIRS:
            for frames in CHECK_FRAMES:
                bins = config.n_fft // 2 + 1
                workload = network_of(MaskNetwork(config, 3 * bins), 3 * bins).workload(
                    frames, config.hop_length / 16000, per_channel=True
                )
                layers = [
                    _layer(str(layer.kind), layer.in_channels, layer.out_channels, layer.kernel_size, layer.dilation)
                    for layer in workload.layers
                ]
                whole = _case(f"separator {number}", precision, frames, layers)
                found.append({**whole, "group": "network"})
                found += [
                    {**whole, "name": f"{whole['name']}, {layer.name}", "group": "layer", "layer": i}
                    for i, layer in enumerate(workload.layers)
                ]
    return found


def predictions(cases: list[Case]) -> list[dict[str, float]]:
    """The latency by the target fitted in this process."""
    target = _fit().target
    tables = {_whole(case): compile_target(target, _measurement(case).workload) for case in cases if case["group"] == "network"}
    results = []
    for case in cases:
        table, bits = tables[_whole(case)], _measurement(case).bits
        whole = case["group"] == "network"
        milliseconds = evaluate(table, bits[None]).latency_ms[0] if whole else per_layer(table, bits)[case["layer"]].latency_ms
        results.append({_metric(case): 1e3 * float(milliseconds)})
    return results


def measured() -> list[dict[str, float]]:
    """The latency of `cases()` on this machine, timed beside what the target is fitted to."""
    seconds = _timed()
    layers = {_whole(case): _profiled_seconds(case) for case in cases() if case["group"] == "network"}
    return [
        {_metric(case): 1e6 * (seconds[case["name"]] if case["group"] == "network" else layers[_whole(case)][case["layer"]])}
        for case in cases()
    ]


def _metric(case: Case) -> str:
    """Networks and layers, and precisions, are compared apart."""
    precision = next(name for name, (_, weight_bits) in PAIRS.items() if weight_bits == case["weight_bits"])
    return f"{case['group']}_latency_us_{precision}"


def versions() -> dict[str, str]:
    """What was measured with and on."""
    return {"onnxruntime": onnxruntime.__version__, "processor": _processor()}


def measurements(*, lengths_held_out: bool = False) -> Measurements:
    """Everything timed as a whole; what has other lengths than the rest is held out or used like it."""
    seconds = _timed()
    networks = [case for case in cases() if case["group"] == "network"]
    entries = [
        _measurement(case, seconds[case["name"]], held_out=lengths_held_out and case["frames"] != FIT_FRAMES)
        for case in (*fit_cases(), *other_cases(), *networks)
    ]
    when = datetime.now(UTC).date().isoformat()
    kernels = "AVX2" if kernels_saturate() else "VNNI"
    where = f"one thread, {kernels} kernels, on {_processor()}"
    source = f"ONNX Runtime {onnxruntime.__version__}, {where}; onnxruntime_measured.py, {when}"
    return Measurements(source=source, measurements=tuple(entries))


@cache
def target_name() -> str:
    """The target of the kernels that ONNX Runtime takes on this machine."""
    return AVX2_TARGET if kernels_saturate() else VNNI_TARGET


def unfitted() -> Target:
    """The target as if it had never been fitted: what the measurements do not say must not come from an earlier fit."""
    target = load_target(target_name())
    if not isinstance(target.compute, RateCompute):
        raise TypeError(f"target '{target.name}' has rule '{target.compute.rule}'; wanted rates")
    guesses = {
        "conv": {"cycles_per_mac": 1.0, "cycles_per_output": 0.0},
        "depthwise": {"cycles_per_mac": 1.0, "cycles_per_output": 0.0},
        "add": {"cycles_per_mac": 0.0, "cycles_per_output": 1.0},
        "function": {"cycles_per_mac": 0.0, "cycles_per_output": 1.0},
    }
    rates = tuple(
        rate.model_copy(update={"layer_cycles": 0.0, "cycles_per_channel": 0.0, **guesses[rate.kernel]})
        for rate in target.compute.rates
    )
    overheads = target.overheads.model_copy(update={"inference_cycles": 0.0, "cycles_per_input": 0.0})
    return target.model_copy(update={"compute": target.compute.model_copy(update={"rates": rates}), "overheads": overheads})


def one_depthwise_kernel(target: Target) -> Target:
    """The target with the rates of 7-bit depthwise weights for 8-bit ones, too: the same kernel runs both."""
    if not isinstance(target.compute, RateCompute):
        raise TypeError(f"target '{target.name}' has rule '{target.compute.rule}'; wanted rates")
    fitted = {(rate.kernel, rate.weight_bits): rate for rate in target.compute.rates}
    source = "as with 7-bit weights: the kernel is the same, and does not saturate"
    same = fitted["depthwise", 7].model_copy(update={"weight_bits": 8, "source": source})
    rates = tuple(same if rate is fitted["depthwise", 8] else rate for rate in target.compute.rates)
    return target.model_copy(update={"compute": target.compute.model_copy(update={"rates": rates})})


def with_inputs(target: Target) -> Target:
    """The target with the cycles that normalising and quantizing an element of the features takes, from timing it here."""
    sizes, seconds = np.array(_features_seconds()).T
    cycles = seconds * target.clock.clock_hz
    slope = float(np.polyfit(sizes, cycles, 1, w=1 / cycles)[0])
    overheads = target.overheads
    source = f"{overheads.source}; cycles_per_input: slope over {len(sizes)} sizes of features, of the same run"
    return target.model_copy(
        update={"overheads": overheads.model_copy(update={"cycles_per_input": float(f"{slope:.4g}"), "source": source})}
    )


def trunk_graph(workload: Workload) -> bytes:
    """The ONNX file of reads and sums of a trunk of 16 bits, as exported files hold them: rounded float32, read as uint8."""
    numbers = {"scale": np.float32(0.02), "step": np.float32(1e-4), "low": np.float32(-32768), "high": np.float32(32767)}
    initializers = [numpy_helper.from_array(np.array(value), name) for name, value in numbers.items()]
    initializers.append(numpy_helper.from_array(np.array(128, np.uint8), "zero"))
    nodes, read = [], set()
    for i, layer in enumerate(workload.layers):
        if layer.kind is LayerKind.FUNCTION:
            nodes.append(helper.make_node("QuantizeLinear", [layer.input_sites[0], "scale", "zero"], [layer.output_site]))
            read.add(layer.output_site)
            continue
        operands = []
        for site in layer.input_sites:
            operands.append(f"{site}-{i}" if site in read else site)
            if site in read:
                nodes.append(helper.make_node("DequantizeLinear", [site, "scale", "zero"], [operands[-1]]))
        steps = [("Add", operands), ("Div", ["step"]), ("Round", []), ("Clip", ["low", "high"]), ("Mul", ["step"])]
        last = None
        for operator, others in steps:
            made = layer.output_site if operator == "Mul" else f"{operator}{i}"
            nodes.append(helper.make_node(operator, others if last is None else [last, *others], [made]))
            last = made
    return _model(workload, nodes, initializers, lambda site: TensorProto.UINT8 if site in read else TensorProto.FLOAT)


def features_graph(count: int) -> bytes:
    """The ONNX file that normalises and quantizes features."""
    numbers = {"mean": np.zeros((1, count, 1), np.float32), "factor": np.ones((1, count, 1), np.float32)}
    numbers |= {"scale": np.array(0.02, np.float32), "zero": np.array(128, np.uint8)}
    nodes = [
        helper.make_node("Sub", ["features", "mean"], ["centred"]),
        helper.make_node("Mul", ["centred", "factor"], ["normal"]),
        helper.make_node("QuantizeLinear", ["normal", "scale", "zero"], ["quantized"]),
    ]
    ends = [("features", TensorProto.FLOAT), ("quantized", TensorProto.UINT8)]
    read, written = ([helper.make_tensor_value_info(name, kind, [1, count, "frames"])] for name, kind in ends)
    initializers = [numpy_helper.from_array(value, name) for name, value in numbers.items()]
    return _bytes(helper.make_graph(nodes, "features", read, written, initializers))


def _features_seconds() -> list[tuple[int, float]]:
    """Elements of features, and the seconds of normalising and quantizing them: the best of many calls, sizes in turns."""
    sizes = [(count, frames) for count in FEATURES for frames in (FIT_FRAMES, max(CHECK_FRAMES))]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    sessions = {
        count: onnxruntime.InferenceSession(features_graph(count), options, ["CPUExecutionProvider"]) for count in FEATURES
    }
    random = np.random.default_rng(0)
    noise = {size: random.normal(size=(1, *size)).astype(np.float32) for size in sizes}
    best = dict.fromkeys(sizes, math.inf)
    for _ in range(ROUNDS):
        for size in sizes:
            start = time.thread_time()
            sessions[size[0]].run(None, {"features": noise[size]})
            best[size] = min(best[size], time.thread_time() - start)
    return [(count * frames, seconds) for (count, frames), seconds in best.items()]


def graph(workload: Workload, weight_bits: int) -> bytes:
    """The ONNX file of a workload at a width of all weights; node `i` is named by its position."""
    quantized = weight_bits != FLOAT_BITS
    rng = np.random.default_rng(0)
    initializers = [
        numpy_helper.from_array(np.array(0.02, np.float32), "scale"),
        numpy_helper.from_array(np.array(128, np.uint8), "zero"),
    ]
    nodes = []
    for i, layer in enumerate(workload.layers):
        if layer.kind is LayerKind.ADD:
            first, second = layer.input_sites
            pair = [first, "scale", "zero", second, "scale", "zero", "scale", "zero"] if quantized else [first, second]
            operator, domain = ("QLinearAdd", "com.microsoft") if quantized else ("Add", "")
            nodes.append(helper.make_node(operator, pair, [layer.output_site], name=f"layer{i}", domain=domain))
            continue
        group = layer.in_channels if layer.kind is LayerKind.DEPTHWISE else 1
        shape = (layer.out_channels, layer.in_channels // group, layer.kernel_size)
        limit = 2 ** (weight_bits - 1) - 1
        unsigned = holds_unsigned_weights(group, weight_bits, 8)
        tensors = _integer_weights(shape, limit, rng, unsigned=unsigned) if quantized else _float_weights(shape, rng)
        initializers += [numpy_helper.from_array(value, f"{name}{i}") for name, value in tensors.items()]
        own = {name: f"{name}{i}" for name in tensors}
        inputs = [layer.input_sites[0], *own.values()]
        if quantized:
            inputs = [layer.input_sites[0], "scale", "zero", own["w"], own["ws"], own["wz"], "scale", "zero", own["b"]]
        pad = (layer.kernel_size - 1) * layer.dilation // 2
        shapes = {"group": group, "dilations": [layer.dilation], "pads": [pad, pad], "kernel_shape": [layer.kernel_size]}
        operator = "QLinearConv" if quantized else "Conv"
        nodes.append(helper.make_node(operator, inputs, [layer.output_site], name=f"layer{i}", **shapes))
    kind = TensorProto.UINT8 if quantized else TensorProto.FLOAT
    return _model(workload, nodes, initializers, lambda _: kind)


def _model(
    workload: Workload, nodes: list[onnx.NodeProto], initializers: list[onnx.TensorProto], kind: Callable[[str], int]
) -> bytes:
    """The file of nodes that read and write the tensors of a workload; `kind` tells the type of a tensor."""
    written = {layer.output_site for layer in workload.layers}
    read = {site for layer in workload.layers for site in layer.input_sites}

    def tensors_of(sites: Iterable[str]) -> list[onnx.ValueInfoProto]:
        shapes = {site: [1, workload.site_channels[site], workload.frames] for site in sites}
        return [helper.make_tensor_value_info(site, kind(site), shape) for site, shape in shapes.items()]

    inputs = tensors_of(site for site in workload.site_channels if site not in written)
    outputs = tensors_of(site for site in workload.site_channels if site not in read)
    return _bytes(helper.make_graph(nodes, "measured", inputs, outputs, initializers))


def _bytes(made: onnx.GraphProto) -> bytes:
    model = helper.make_model(
        made,
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)],
        ir_version=9,
    )
    return bytes(model.SerializeToString())


def _integer_weights(
    shape: tuple[int, int, int], limit: int, rng: np.random.Generator, *, unsigned: bool
) -> dict[str, np.ndarray]:
    zero, kind = (UNSIGNED_ZERO_POINT, np.uint8) if unsigned else (0, np.int8)
    return {
        "w": (rng.integers(-limit, limit + 1, shape) + zero).astype(kind),
        "ws": np.full(shape[0], 0.001, np.float32),
        "wz": np.full(shape[0], zero, kind),
        "b": np.zeros(shape[0], np.int32),
    }


def _float_weights(shape: tuple[int, int, int], rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"w": 0.05 * rng.normal(size=shape).astype(np.float32), "b": np.zeros(shape[0], np.float32)}


class _Timer:
    """A session of one case with its input."""

    def __init__(self, case: Case, profile: Path | None = None) -> None:
        workload = _measurement(case).workload
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        in_trunk = case["activation_bits"] == TRUNK_BITS
        content = trunk_graph(workload) if in_trunk else graph(workload, case["weight_bits"])
        self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        rng = np.random.default_rng(1)
        self.inputs = {}
        for tensor in self.session.get_inputs():
            noise = rng.normal(size=tensor.shape)
            integers = (128 + 30 * noise).clip(0, 255).astype(np.uint8)
            self.inputs[tensor.name] = integers if tensor.type == "tensor(uint8)" else noise.astype(np.float32)
        self.best = math.inf

    def run(self, calls: int) -> None:
        """Keep the best time of `calls` more inferences, in seconds."""
        for _ in range(calls):
            start = time.thread_time()  # a call longer than a time slice of a busy machine never runs uninterrupted
            self.session.run(None, self.inputs)
            self.best = min(self.best, time.thread_time() - start)


@cache
def _timed() -> dict[str, float]:
    """Seconds of every case that is timed as a whole, by name."""
    networks = [case for case in cases() if case["group"] == "network"]
    timers = {case["name"]: _Timer(case) for case in (*fit_cases(), *other_cases(), *networks)}
    for _ in range(ROUNDS):
        for timer in timers.values():
            timer.run(CALLS)
    return {name: timer.best for name, timer in timers.items()}


def _profiled_seconds(case: Case) -> list[float]:
    """Seconds of every layer of a network, the best of many calls, from ONNX Runtime's profile (whole microseconds)."""
    with tempfile.TemporaryDirectory() as folder:
        timer = _Timer(case, Path(folder) / "profile")
        timer.run(PROFILED_CALLS)
        events = json.loads(Path(timer.session.end_profiling()).read_text("utf-8"))
    best = [math.inf] * len(case["layers"])
    for event in events:
        if found := _PROFILED_NODE.fullmatch(event["name"]):
            layer = int(found["layer"])
            best[layer] = min(best[layer], 1e-6 * event["dur"])
    return best


@cache
def _fit() -> Fit:
    return calibrate(unfitted(), measurements(lengths_held_out=True), file="this run", name=target_name())


def _layer(kind: str, in_channels: int, out_channels: int, kernel_size: int = 1, dilation: int = 1) -> dict[str, Any]:
    return {
        "kind": kind,
        "in_channels": in_channels,
        "out_channels": out_channels,
        "kernel_size": kernel_size,
        "dilation": dilation,
    }


def _case(what: str, precision: str, frames: int, layers: list[dict[str, Any]], repeats: int = 1) -> Case:
    activation_bits, weight_bits = (PAIRS | {TRUNK: (TRUNK_BITS, 8)})[precision]
    return {
        "name": f"{what}, {precision}, {frames} frames",
        "target": target_name(),
        "frames": frames,
        "activation_bits": activation_bits,
        "weight_bits": weight_bits,
        "layers": layers,
        "repeats": repeats,
    }


def _whole(case: Case) -> str:
    return str(case["name"]).rpartition(",")[0] if case["group"] == "layer" else str(case["name"])


def _measurement(case: Case, seconds: float = 1.0, *, held_out: bool = False) -> Measurement:
    fields = {name: case[name] for name in ("name", "frames", "activation_bits", "weight_bits", "layers", "repeats")}
    content = {**fields, "latency_ms": 1e3 * seconds, "held_out": held_out}
    return Measurement.model_validate_json(json.dumps(content))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("measurements", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    everything = measurements()
    lines = ",\n  ".join(entry.model_dump_json(exclude_defaults=True) for entry in everything.measurements)
    content = f'{{\n "source": {json.dumps(everything.source)},\n "measurements": [\n  {lines}\n ]\n}}\n'
    arguments.measurements.write_text(content, "utf-8")
    fit = calibrate(unfitted(), everything, file=arguments.measurements.name, name=target_name())
    arguments.target.write_text(target_toml(with_inputs(one_depthwise_kernel(fit.target))), "utf-8")
    print("fitted to all lengths:", Errors.of_latency(fit.fitted))
    print("  held out:", Errors.of_latency(fit.held_out), "open:", ", ".join(fit.undetermined))
    print(f"fitted to {FIT_FRAMES} frames:", Errors.of_latency(_fit().fitted), "open:", ", ".join(_fit().undetermined))
    asked = cases()
    pairs = list(zip(asked, predictions(asked), measured(), strict=True))
    for group in ("network", "layer"):
        for precision, (_, weight_bits) in PAIRS.items():
            checks = [
                Check(case["name"], real[_metric(case)] / 1e3, predicted[_metric(case)] / 1e3, None, None)
                for case, predicted, real in pairs
                if case["group"] == group and case["weight_bits"] == weight_bits
            ]
            print(f"{group}s in {precision}:", Errors.of_latency(checks))
            for check in checks:
                if group == "network":
                    print(
                        f"  {check.name}: {check.latency_ms:.3f} ms, predicted {check.predicted_ms / check.latency_ms - 1:+.1%}"
                    )


if __name__ == "__main__":
    main()
