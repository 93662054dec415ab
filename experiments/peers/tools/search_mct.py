"""Searches the bit-widths of the exported base with Sony's Model Compression Toolkit (MCT).

    python tools/search_mct.py FOLDER

Reads FOLDER/case.json and FOLDER/case.safetensors, and writes FOLDER/answer.json. Runs in an environment with
model-compression-toolkit and safetensors.

MCT quantizes no 1-D convolutions, so it gets the same network of 2-D ones. Its metric is the SI-SNR lost. Its own count of memory
is the widths of the weights; here it is their bytes in the packed file. Weights are quantized per channel with thresholds of
least squared error; activations stay in floating point.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import library

try:
    import torchvision  # noqa: F401 (MCT wants it)
except RuntimeError:  # a build for CUDA beside PyTorch for the CPU lacks its own operators, which the search never calls
    operators = library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

# isort: split
import model_compression_toolkit as mct
from mct_quantizers import PytorchQuantizationWrapper, QuantizationMethod
from model_compression_toolkit.core import BitWidthConfig, CoreConfig, MixedPrecisionQuantizationConfig, QuantizationConfig
from model_compression_toolkit.core.common import BaseNode
from model_compression_toolkit.core.common.mixed_precision.resource_utilization_tools.resource_utilization_calculator import (
    ResourceUtilizationCalculator,
    Utilization,
)
from model_compression_toolkit.core.common.network_editors import NodeNameFilter
from model_compression_toolkit.target_platform_capabilities.constants import BIAS_ATTR, KERNEL_ATTR, WEIGHTS_N_BITS
from model_compression_toolkit.target_platform_capabilities.schema import mct_current_schema as schema
from separator import Case, Mixture, Network, load_case
from torch import Tensor, nn

METHOD = "Sony MCT"

OFFSET_DB = 10.0
"""Added to the metric: MCT's integer program has no solution where a metric is negative, and noise may raise the SI-SNR."""


def seconds() -> float:
    """Processor time of this process and of the solvers that it has run."""
    return sum(os.times()[:4])


def capabilities(widths: Sequence[int]) -> schema.TargetPlatformCapabilities:
    """A target whose convolutions take weights of some widths, and whose activations are in floating point."""
    kernel = schema.AttributeQuantizationConfig(
        weights_quantization_method=QuantizationMethod.SYMMETRIC,
        weights_n_bits=max(widths),
        weights_per_channel_threshold=True,
        enable_weights_quantization=True,
    )
    rest = kernel.clone_and_edit(enable_weights_quantization=False, weights_per_channel_threshold=False)
    widest = schema.OpQuantizationConfig(
        default_weight_attr_config=rest,
        attr_weights_configs_mapping={KERNEL_ATTR: kernel, BIAS_ATTR: rest},
        activation_quantization_method=QuantizationMethod.POWER_OF_TWO,
        activation_n_bits=8,
        supported_input_activation_n_bits=8,
        enable_activation_quantization=False,
        quantization_preserving=False,
        signedness=schema.Signedness.AUTO,
    )
    convolution = schema.QuantizationConfigOptions(
        quantization_configurations=tuple(
            widest.clone_and_edit(attr_to_edit={KERNEL_ATTR: {WEIGHTS_N_BITS: bits}}) for bits in sorted(widths, reverse=True)
        ),
        base_config=widest,
    )
    others = widest.clone_and_edit(attr_weights_configs_mapping={})
    return schema.TargetPlatformCapabilities(
        default_qco=schema.QuantizationConfigOptions(quantization_configurations=(others,)),
        tpc_minor_version=1,
        tpc_patch_version=0,
        tpc_platform_type="custom",
        operator_set=(schema.OperatorsSet(name=schema.OperatorSetNames.CONV, qc_options=convolution),),
        fusing_patterns=(),
        add_metadata=False,
        name="weights",
    )


def count_packed_bytes(case: Case) -> None:
    """Make MCT count the bytes of the packed file as the memory of weights."""
    counted = ResourceUtilizationCalculator.compute_node_weights_utilization
    packed = {module: case.bytes[site] for module, site in case.sites.items()}

    def count(this: ResourceUtilizationCalculator, node: BaseNode, *args: Any) -> tuple[Utilization, dict[str, Utilization]]:
        _, plain = counted(this, node, *args)
        found = {
            name: Utilization(weights, packed[node.name].get(round(8 * size / weights), size))
            for name, (weights, size) in plain.items()
        }
        return sum(found.values(), Utilization(0, 0)), found

    ResourceUtilizationCalculator.compute_node_weights_utilization = count


class Metric:
    """The mean SI-SNR in dB that MCT's model loses against full precision, plus `OFFSET_DB`.

    MCT measures every layer and width anew for each budget. This keeps what was measured for the same state of the quantizers.

    Attributes:
        saved: processor seconds that this has saved.
    """

    def __init__(self, case: Case, mixtures: Sequence[Mixture], full_precision: float) -> None:
        self.case, self.mixtures, self.full_precision, self.saved = case, mixtures, full_precision, 0.0
        self._known: dict[tuple[tuple[str, int | None], ...], tuple[float, float]] = {}

    def __call__(self, network: nn.Module) -> float:
        state = tuple(
            (name, quantizer.active_quantization_config_index)
            for name, layer in network.named_modules()
            if isinstance(layer, PytorchQuantizationWrapper)
            for quantizer in layer.weights_quantizers.values()
        )
        if state in self._known:
            lost, took = self._known[state]
            self.saved += took
            return lost
        start = seconds()
        lost = fmean(losses(self.case, network, self.mixtures)) - self.full_precision + OFFSET_DB
        self._known[state] = lost, seconds() - start
        return lost


def losses(case: Case, network: nn.Module, mixtures: Sequence[Mixture]) -> list[float]:
    """The loss of a planar network on each mixture."""
    with torch.no_grad():
        return [float(case.loss(_mask(network, mixture), mixture)) for mixture in mixtures]


def _mask(network: nn.Module, mixture: Mixture) -> Tensor:
    """The mask [1, channels, frames] that a planar network gives."""
    mask = network(mixture.features[:, :, None])
    return (mask[0] if isinstance(mask, list | tuple) else mask)[:, :, 0]


def search(case: Case, metric: Callable[[nn.Module], float], budget: float) -> dict[str, int]:
    """The width of every weight site within a budget in bytes."""
    modules = {site: module for module, site in case.sites.items()}
    fixed = BitWidthConfig()
    for site, sizes in case.bytes.items():
        if len(sizes) == 1:
            fixed.set_manual_weights_bit_width(NodeNameFilter(modules[site]), *sizes, "weight")
    network, _ = mct.ptq.pytorch_post_training_quantization(
        Network(case, planar=True),
        lambda: ([mixture.features[:, :, None].numpy()] for mixture in case.mixtures()),
        mct.core.ResourceUtilization(weights_memory=budget),
        CoreConfig(
            QuantizationConfig(linear_collapsing=False, residual_collapsing=False, shift_negative_activation_correction=False),
            MixedPrecisionQuantizationConfig(custom_metric_fn=metric),
            fixed,
        ),
        capabilities(sorted({bits for sizes in case.bytes.values() for bits in sizes})),
    )
    layers = dict(network.named_modules())
    return {site: layers[module].weights_quantizers["weight"].num_bits for site, module in modules.items()}


def main() -> None:
    """Search for every budget."""
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    case = load_case(folder)
    mixtures = case.mixtures()
    full_precision = losses(case, Network(case, planar=True), mixtures)
    metric = Metric(case, mixtures, fmean(full_precision))
    allocations: list[dict[str, Any]] = []
    count_packed_bytes(case)
    for budget, size in case.budgets.items():
        start, saved = seconds(), metric.saved
        weights = search(case, metric, size)
        took = seconds() - start + metric.saved - saved
        allocations.append({"method": METHOD, "bits": budget, "weights": weights, "seconds": took})
    versions = {name: version(name) for name in ("model-compression-toolkit", "mct-quantizers", "torch", "pulp")}
    answer = {"versions": versions, "losses_db": full_precision, "allocations": allocations}
    (folder / "answer.json").write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
