"""The dataflow rule against FINN's own estimates: cycles, logic and memory of single nodes, foldings of whole chains; exact.

The cycles of a depthwise window, and with them the folding of a depthwise layer, follow finn-plus instead (`finn_default`).

FINN is not on PyPI: `tools/finn.py` wants the path of a checkout of github.com/Xilinx/finn in `FINN_ROOT`. Its estimates are what
FINN's builder reports before synthesis, so this validates our reading of FINN, not FINN against a board.
"""

from itertools import product
from typing import Any, Final

import numpy as np

from hw_models.dataflow import resources
from hw_models.dataflow.folding import Folding, choose_folding, node_cycles
from hw_models.dataflow.resources import Resources, Widths
from hw_models.workload import Layer, LayerKind

SETTING: Final = (
    "Single nodes at foldings and options of every kind, not only FINN's defaults; foldings of chains. "
    "Estimates before synthesis."
)
REQUIREMENTS: tuple[str, ...] = ("qonnx==1.0.0", "numpy<2.5")
ENVIRONMENT = "FINN_ROOT"

FRAMES = 250
WIDTHS = ((1, 1, 1), (2, 2, 2), (2, 4, 3), (3, 5, 4), (4, 4, 4), (4, 8, 8), (8, 4, 6), (8, 8, 8))  # weights, inputs, outputs
ENGINES = ((514, 64, 1, 2), (64, 128, 2, 64), (128, 64, 4, 32), (128, 64, 64, 128), (192, 64, 1, 3), (40, 17, 17, 8))
VECTORS = ((128, 3, 1, 1), (128, 3, 16, 1), (128, 3, 128, 3), (96, 5, 8, 1), (512, 3, 4, 1))  # channels, taps, pe, simd
WINDOWS = ((64, 3, 1, 8), (128, 3, 1, 1), (128, 3, 128, 1), (128, 3, 16, 2), (96, 5, 4, 8), (512, 3, 64, 1))
SUMS = ((64, 1), (64, 8), (128, 128), (17, 1))  # channels, pe
FIFOS = ((2, 1), (20, 8), (200, 16), (257, 4), (3000, 64), (9000, 1))  # words, channels in a word
MEMORIES = ("lutram", "bram", "uram")
CHAIN = ((3, 12, 24, 1), (3, 20, 40, 4), (5, 16, 32, 2))  # taps, bottleneck, hidden channels, dilation
TARGET_CYCLES = (100_000, 20_000, 5000, 1100, 700)


def cases() -> list[dict[str, Any]]:
    """Single nodes at many widths and foldings, then chains of pointwise, depthwise, pointwise and dense layers to fold."""
    found: list[dict[str, Any]] = []
    for (inputs, outputs, pe, simd), (w, a, b), memory, signed in product(ENGINES, WIDTHS, MEMORIES, (True, False)):
        shape = {"inputs": inputs, "outputs": outputs, "pe": pe, "simd": simd}
        built = {"memory": memory, "multipliers": "dsp" if memory == "bram" else "lut", "signed": signed}
        found.append({"node": "matrix", **shape, **built, "w": w, "a": a, "b": b})
    for (channels, taps, pe, simd), (w, a, b), memory, signed in product(VECTORS, WIDTHS, MEMORIES, (True, False)):
        shape = {"channels": channels, "taps": taps, "pe": pe, "simd": simd}
        built = {"memory": memory, "multipliers": "dsp" if memory == "bram" else "lut", "signed": signed}
        found.append({"node": "vector", **shape, **built, "w": w, "a": a, "b": b})
    for (channels, taps, dilation, simd), a, depthwise in product(WINDOWS, (1, 4, 8), (True, False)):
        styles = (True, False) if channels == simd or depthwise else (False,)
        for parallel in styles:
            shape = {"channels": channels, "taps": taps, "dilation": dilation, "simd": simd, "parallel": parallel}
            found.append({"node": "window", **shape, "a": a, "depthwise": depthwise})
    found += [{"node": "sum", "channels": c, "pe": pe, "a": a, "b": b} for (c, pe), a, b in product(SUMS, (1, 4, 7), (1, 4, 8))]
    found += [{"node": "fifo", "words": words, "lanes": lanes, "a": a} for (words, lanes), a in product(FIFOS, (1, 4, 8))]
    found += [
        {"node": "chain", "taps": taps, "bottleneck": bottleneck, "hidden": hidden, "dilation": dilation, "target_cycles": target}
        for (taps, bottleneck, hidden, dilation), target in product(CHAIN, TARGET_CYCLES)
    ]
    for case in found:
        rest = " ".join(f"{key} {value}" for key, value in case.items() if key != "node")
        case |= {"name": f"{case['node']}: {rest}", "target": "dataflow", "frames": FRAMES}
    return found


def predictions(cases: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Cycles, lookup tables, block RAMs, UltraRAMs and DSP slices of nodes; parallelism and cycles of chains."""
    return [_chain(case) if case["node"] == "chain" else _node(case) for case in cases]


def _node(case: dict[str, Any]) -> dict[str, float]:
    a = np.array(case["a"])
    if case["node"] in ("matrix", "vector"):
        widths = Widths.of(case["w"], case["a"], case["b"], signed=case["signed"])
        built = (case["pe"], case["simd"], widths, case["multipliers"], case["memory"])
    match case["node"]:
        case "matrix":
            layer = _layer(LayerKind.CONV, case["inputs"], case["outputs"])
            folding = Folding(case["pe"], case["simd"], 0, parallel_window=False)
            return _metrics(
                resources.matrix_engine(case["inputs"], case["outputs"], *built), node_cycles(layer, FRAMES, folding)[0]
            )
        case "vector":
            layer = _layer(LayerKind.DEPTHWISE, case["channels"], case["channels"], case["taps"])
            folding = Folding(case["pe"], case["simd"], case["pe"], parallel_window=case["simd"] > 1)
            return _metrics(
                resources.vector_engine(case["channels"], case["taps"], *built), node_cycles(layer, FRAMES, folding)[-1]
            )
        case "window":
            kind = LayerKind.DEPTHWISE if case["depthwise"] else LayerKind.CONV
            layer = _layer(kind, case["channels"], case["channels"], case["taps"], case["dilation"])
            folding = Folding(1, 1, case["simd"], parallel_window=case["parallel"])
            shape = (case["channels"], case["taps"], case["dilation"], case["simd"])
            taken = resources.sliding_window(*shape, a, parallel=case["parallel"])
            metrics = _metrics(taken, node_cycles(layer, FRAMES, folding)[-2])
            return {name: value for name, value in metrics.items() if name != "cycles" or not case["depthwise"]}
        case "sum":
            layer = _layer(LayerKind.ADD, case["channels"], case["channels"])
            folding = Folding(case["pe"], 1, 0, parallel_window=False)
            taken = resources.search_thresholds(case["channels"], case["pe"], a + 1, np.array(case["b"]))
            return _metrics(taken, sum(node_cycles(layer, FRAMES, folding)))
        case _:
            return _metrics(resources.stream_fifo(case["words"], case["lanes"] * a), 0)


def _chain(case: dict[str, Any]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for i, layer in enumerate(chain_layers(case)):
        if layer.kind is LayerKind.DEPTHWISE:
            continue
        folding = choose_folding(layer, FRAMES, case["target_cycles"])
        metrics |= {f"pe_{i}": folding.pe, f"simd_{i}": folding.simd}
        metrics |= {f"window_simd_{i}": folding.window_simd, f"parallel_window_{i}": float(folding.parallel_window)}
        metrics[f"cycles_{i}"] = max(node_cycles(layer, FRAMES, folding)[-2:])
    return metrics


def chain_layers(case: dict[str, Any]) -> tuple[Layer, ...]:
    """Expansion, depthwise filter, projection, dense filter."""
    taps, bottleneck, hidden, dilation = case["taps"], case["bottleneck"], case["hidden"], case["dilation"]
    return (
        _layer(LayerKind.CONV, bottleneck, hidden),
        _layer(LayerKind.DEPTHWISE, hidden, hidden, taps, dilation),
        _layer(LayerKind.CONV, hidden, bottleneck),
        _layer(LayerKind.CONV, bottleneck, bottleneck, taps, dilation),
    )


def _layer(kind: LayerKind, inputs: int, outputs: int, taps: int = 1, dilation: int = 1) -> Layer:
    weight, sources = (None, ("x", "z")) if kind is LayerKind.ADD else ("w", ("x",))
    return Layer("only", kind, inputs, outputs, taps, dilation, weight, sources, "y", bias=False)


def _metrics(taken: Resources, cycles: int) -> dict[str, float]:
    counts = {"lut": taken.lut, "bram18": taken.bram18, "uram": taken.uram, "dsp": taken.dsp}
    return {"cycles": float(cycles)} | {name: float(count) for name, count in counts.items()}
