"""Verification of TensorFlow Lite files in LiteRT's interpreter, with its plain kernels and with those of XNNPACK.

The plain kernels compute in integers alone. They multiply a sum of products by an integer that stands for a quotient of scales,
and shift the result to the right. So they round twice: first to a part of a step, then to a step. Where the quotient is 1/4 to
1/2, that part is half a step, and an integer may lie 3/4 of a step from the exact value. TensorFlow Lite Micro computes the same
integers. XNNPACK, which LiteRT prefers on large processors, rounds once.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from numpy.typing import NDArray
from torch import Tensor

from hwsearch.export.network import ExportedNetwork
from hwsearch.export.tflite.graph import TfliteGraph
from hwsearch.export.tflite.parts import Placed
from hwsearch.export.verify import Run, VerificationError, VerificationReport, judge
from hwsearch.process.interrupts import checkpoint

ROUNDED_TWICE = 0.25
"""How much further from the exact value an integer may lie that is rounded twice, in steps."""

_KERNELS = {"plain kernels": OpResolverType.BUILTIN_REF, "XNNPACK": OpResolverType.BUILTIN}


def verify_tflite(
    path: Path, graph: TfliteGraph, network: ExportedNetwork, batches: Sequence[Tensor]
) -> list[VerificationReport]:
    """Run a file on both kinds of kernels and compare it with its network, layer by layer.

    Args:
        path: the file.
        graph: what was written in it.
        network: its network.
        batches: raw features, [1, features, frames] each; frames are those of the file.

    Returns:
        The reports on the plain kernels and on XNNPACK's.

    Raises:
        VerificationError: an integer inside is too far from the exact value, or reading inner tensors changes the output.
    """
    grids = {site: placed.grid.grid for site, placed in graph.sites.items()}
    output = network.network.graph_sites.of_tensor[network.network.graph.outputs[0]]
    reports = []
    for name, kernels in _KERNELS.items():
        plain, tapped = _Session(path.read_bytes(), kernels), _Session(graph.content(tapped=True), kernels)
        runs = []
        for features in batches:
            stored = graph.stored_input(network.normalise(features))
            (mask,), taps = plain.run(stored), tapped.run(stored)
            found = {site: _integers(tap, placed) for (site, placed), tap in zip(graph.sites.items(), taps, strict=True)}
            integers, grid = _integers(mask, graph.output), graph.output.grid.grid
            if not np.array_equal(integers, found[output]):
                raise VerificationError(f"{path}: its output changes when inner tensors are read; it cannot be verified")
            runs.append(Run(((integers - grid.zero_point) * grid.scale).astype(np.float32), found))
        runtime = f"ai-edge-litert {version('ai-edge-litert')}, {name}"
        reports.append(judge(path, network, batches, runs, runtime, grids, ROUNDED_TWICE))
    return reports


def fast_call(path: Path, graph: TfliteGraph, network: ExportedNetwork, features: Tensor) -> Callable[[], object]:
    """Return a call that runs a file on XNNPACK's kernels, on one thread. Arguments are those of `verify_tflite`."""
    session, stored = _Session(path.read_bytes(), OpResolverType.BUILTIN), graph.stored_input(network.normalise(features))
    return lambda: session.run(stored)


def _integers(stored: NDArray[Any], placed: Placed) -> NDArray[np.float64]:
    """The integers [1, channels, frames] from 0 on of a stored tensor [1, 1, frames, channels]."""
    return stored[:, 0].transpose(0, 2, 1).astype(np.float64) - placed.grid.offset


class _Session:
    """An interpreter of a file."""

    def __init__(self, content: bytes, kernels: OpResolverType) -> None:
        with _quiet():
            self._interpreter = Interpreter(model_content=content, experimental_op_resolver_type=kernels, num_threads=1)
            self._interpreter.allocate_tensors()
        (self._input,) = (each["index"] for each in self._interpreter.get_input_details())
        self._outputs = [each["index"] for each in self._interpreter.get_output_details()]

    def run(self, stored: NDArray[Any]) -> list[NDArray[Any]]:
        """Compute the outputs, in the order of the file."""
        checkpoint()
        self._interpreter.set_tensor(self._input, stored)
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(output) for output in self._outputs]


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop what the interpreter's own code writes to the standard error: that it has made a delegate."""
    kept = os.dup(2)
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
