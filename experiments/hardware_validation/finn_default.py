"""The built-in FINN boards against finn-plus's default build of whole networks at several widths and frame rates.

Each network is exported, and finn-plus chooses the folding for a frame rate (`target_fps`) with its own defaults; the target gets
the same rate. `lut`, `bram18` and `cycles` are of the grid, by which the model was made. `held_out_*` are of networks and rates
that were not looked at while it was made. `fast_*` is a rate that FINN's default build misses, because it limits the words of
weights (`mvau_wwidth_max`, 36 bits); `hw_models` has no such limit and keeps up.
"""

import tempfile
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Final

import finn_plus
import numpy as np
import torch
from torch import nn

from hw_models.dataflow.table import compile_dataflow, evaluate_dataflow
from hw_models.target import Target, load_target
from hwsearch.data.arrays import ARRAYS
from hwsearch.experiment import SeparatorConfig
from hwsearch.export.finn.folding import TARGETS, modelled_workload
from hwsearch.network.sites import Sites
from hwsearch.separator.allocation import BitAllocation, uniform
from hwsearch.separator.base import EMBEDDED_BASE, load_base
from hwsearch.separator.separator import Separator, build_separator
from hwsearch.separator.traced import traced

SETTING: Final = (
    "Whole networks, FINN's default build for a frame rate; estimates before synthesis and before FIFOs are inserted."
)
REQUIREMENTS, ALONE, INSTALLED_AS = finn_plus.REQUIREMENTS, finn_plus.ALONE, finn_plus.INSTALLED_AS

WIDTHS = tuple(product((2, 4, 8), (4, 8)))
"""Bits of all weights and of all activations."""

RATES = (50, 150, 350)
"""Inferences a second, of 64 frames each."""

FAST_RATES = (2000,)


@dataclass(frozen=True)
class Subject:
    """A network at its widths, and the rates to build it for.

    Attributes:
        config: of the network, None for the embedded base.
        weights: bits of all weights; None: each layer has its own, drawn at random from 2 to 8.
        activations: bits of all activations.
        rates: inferences a second.
        group: prefix of the metrics.
    """

    config: SeparatorConfig | None
    weights: int | None
    activations: int
    rates: tuple[int, ...]
    group: str = ""

    @property
    def name(self) -> str:
        """Network and widths."""
        shape = "embedded base"
        if (config := self.config) is not None:
            shape = f"B {config.B}, H {config.H}, P {config.P}, X {config.X}, R {config.R}, FFT {config.n_fft}"
            shape += ", causal" if config.causal else ""
        return f"{shape}, {'mixed weights ' if self.weights is None else f'w{self.weights}'}a{self.activations}"

    def separator(self) -> Separator:
        """The network: trained, or with random numbers."""
        return load_base(EMBEDDED_BASE)[0] if self.config is None else untrained(self.config)

    def widths(self, sites: Sites) -> BitAllocation:
        """The allocation."""
        allocation = uniform(sites, self.weights or 8, self.activations)
        if self.weights is not None:
            return allocation
        drawn = np.random.default_rng(0).integers(2, 9, len(sites.weights))
        return BitAllocation.of(allocation.by_site | {site: int(bits) for site, bits in zip(sites.weights, drawn, strict=True)})


def untrained(config: SeparatorConfig) -> Separator:
    """A separator with random weights and statistics."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        separator = build_separator(config, ARRAYS["linear6"], 8000).eval()
        for module in separator.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.normal_(0.0, 0.3)
                module.running_var.uniform_(0.3, 1.5)
        nn.init.normal_(separator.network.mask_head.weight, 0.0, 0.3)  # a fresh head is zero
    return separator


BLOCKS = SeparatorConfig(B=64, H=128, X=2, R=1, n_fft=512, hop_length=128)
"""The embedded base with two of its twelve blocks, which finn-plus builds in a sixth of the time."""

GRID = tuple(Subject(BLOCKS, weights, activations, RATES) for weights, activations in WIDTHS)
FAST = tuple(Subject(BLOCKS, weights, 8, FAST_RATES, "fast_") for weights in (2, 4, 8))
HELD_OUT = (
    Subject(SeparatorConfig(B=48, H=96, P=5, X=3, R=1, n_fft=256, hop_length=128, causal=True), 3, 6, (70, 220), "held_out_"),
    Subject(SeparatorConfig(B=24, H=40, P=3, X=7, R=1, n_fft=128, hop_length=64), 8, 8, (90, 500), "held_out_"),
    Subject(SeparatorConfig(B=96, H=192, P=7, X=2, R=1, n_fft=512, hop_length=128), 4, 5, (40, 130), "held_out_"),
    Subject(SeparatorConfig(B=32, H=80, P=3, X=2, R=2, n_fft=256, hop_length=128), None, 8, (120, 400), "held_out_"),
)


def cases() -> list[dict[str, Any]]:
    """Every network, board and rate, with what `hw_models` says of it."""
    root = Path(tempfile.mkdtemp(prefix="finn-default-"))
    exports: dict[tuple[object, ...], tuple[str, Any]] = {}
    found: list[dict[str, Any]] = []
    for subject in (*GRID, *FAST, *HELD_OUT):
        key = (subject.config, subject.weights, subject.activations)
        if key not in exports:
            folder = root / str(len(exports))
            separator = subject.separator()
            made = finn_plus.export(separator, traced(separator), subject.widths, folder)
            exports[key] = str(folder), modelled_workload(made.network, finn_plus.FRAMES)
        folder_name, (workload, bits) = exports[key]
        for rate, board in product(subject.rates, TARGETS):
            costs = evaluate_dataflow(compile_dataflow(at_rate(load_target(board), rate), workload), bits)
            modelled = {"lut": costs.lut[0], "bram18": costs.bram18[0], "cycles": costs.interval_cycles[0]}
            found.append(
                {
                    "name": f"{subject.name}, {rate} inferences a second",
                    "target": board,
                    "folder": folder_name,
                    "rate": rate,
                    "group": subject.group,
                    "modelled": {subject.group + name: float(value) for name, value in modelled.items()},
                }
            )
    return found


def at_rate(target: Target, rate: int) -> Target:
    """The target with a rate in inferences a second."""
    compute = target.compute.model_copy(update={"frames_per_second": float(rate * finn_plus.FRAMES)})
    return target.model_copy(update={"compute": compute})


def predictions(cases: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Logic, memory and cycles of `hw_models`."""
    return [case["modelled"] for case in cases]
