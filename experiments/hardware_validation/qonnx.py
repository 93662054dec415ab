"""MACs, bit operations and weight bits of the project's TCN against QONNX's `inference_cost`: the same count, exact.

Without its discount for zero weights, QONNX counts per convolution MACs * weight bits * input bits, and weights * weight bits.
It counts nothing for biases, sums and quantizers, as `bops` does. The outputs it reports are left out: it takes the 32 bits of
the accumulator for each, before the quantizer that follows, so they do not depend on the allocation.
"""

from typing import Any, Final

import numpy as np

from hw_models.bops import bit_operations
from hw_models.packed import average_weight_bits
from hw_models.workload import FLOAT_BITS, Layer, LayerKind, Workload, bits_matrix
from hwsearch.experiment import SeparatorConfig
from hwsearch.separator.tcn import MaskNetwork
from hwsearch.separator.untrained import network_of

SETTING: Final = "Counts of the separator as QONNX sees it, without a discount for zero weights."
REQUIREMENTS: tuple[str, ...] = ()  # the project's own environment holds QONNX

NETWORKS: Final = {
    "small": (SeparatorConfig(), 514, 250),
    "wide kernels, odd sizes": (SeparatorConfig(n_fft=128, hop_length=32, B=20, H=36, P=5, X=3, R=1), 65, 61),
}
WIDTHS: Final = (1, 2, 3, 4, 5, 6, 8, 16, FLOAT_BITS)
SEED: Final = 0


def cases() -> list[dict[str, Any]]:
    """Both networks at one width everywhere and at widths drawn for each site."""
    rng = np.random.default_rng(SEED)
    found = []
    for name, (config, features, frames) in NETWORKS.items():
        workload = network_of(MaskNetwork(config, features), features).workload(
            frames, config.hop_length / 8000, per_channel=True
        )
        allocations = {f"all {bits} bits": dict.fromkeys(workload.sites, bits) for bits in (8, FLOAT_BITS)}
        for i in range(3):
            allocations[f"mixed {i}"] = {site: int(rng.choice(WIDTHS)) for site in workload.sites}
        found += [_case(f"{name}, {which}", workload, allocation) for which, allocation in allocations.items()]
    return found


def predictions(cases: list[dict[str, Any]]) -> list[dict[str, float]]:
    """The counts of `hw_models`."""
    results = []
    for case in cases:
        workload = _workload(case)
        bits = bits_matrix(workload, [case["bits"]])
        weights = sum(layer.weight_count for layer in workload.weight_layers)
        results.append(
            {
                "macs": float(workload.macs),
                "bops": float(bit_operations(workload, bits)[0]),
                "weight_bits": float(round(average_weight_bits(workload, bits)[0] * weights)),
            }
        )
    return results


def _case(name: str, workload: Workload, allocation: dict[str, int]) -> dict[str, Any]:
    layers = [
        {
            "name": layer.name,
            "kind": layer.kind.value,
            "in_channels": layer.in_channels,
            "out_channels": layer.out_channels,
            "kernel_size": layer.kernel_size,
            "dilation": layer.dilation,
            "weight_site": layer.weight_site,
            "input_sites": list(layer.input_sites),
            "output_site": layer.output_site,
            "bias": layer.bias,
        }
        for layer in workload.layers
    ]
    sites = dict(workload.site_channels)
    return {
        "name": name,
        "target": "bops",
        "frames": workload.frames,
        "layers": layers,
        "site_channels": sites,
        "bits": allocation,
    }


def _workload(case: dict[str, Any]) -> Workload:
    layers = tuple(
        Layer(**{**layer, "kind": LayerKind(layer["kind"]), "input_sites": tuple(layer["input_sites"])})
        for layer in case["layers"]
    )
    return Workload(case["name"], layers, case["frames"], 1.0, per_channel_scales=True, site_channels=case["site_channels"])
