"""Searches the bit-widths of the exported base with NVIDIA ModelOpt's `auto_quantize`, by gradients and by KL divergence.

    python tools/search_modelopt.py FOLDER

Reads FOLDER/case.json and FOLDER/case.safetensors, and writes FOLDER/answer.json. Runs in an environment with nvidia-modelopt.

A format costs the bits per weight that it takes in the packed file (ModelOpt's `effective_bits`), and a budget is the bits per
weight that the packed file may have. Weights are quantized per channel with scales of least squared error; activations stay in
floating point. The gradient method gets hwsearch's training loss. The KL method compares softmaxes of the network's output, which
suits classifiers; here the logits are the log powers of the separated speaker at every time and frequency, so that the softmax is
where the energy lies.
"""

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import modelopt.torch.quantization as mtq
import torch
from separator import Case, Mixture, Network, load_case
from torch import Tensor

METHODS = {"ModelOpt gradient": "gradient", "ModelOpt KL": "kl_div"}
LEAST_POWER = 1e-8


def seconds() -> float:
    """Processor time of this process and of the solvers that it has run."""
    return sum(os.times()[:4])


def weights_only(bits: int, cost: float) -> dict[str, Any]:
    """ModelOpt's configuration for weights of a width, with one scale per output channel, and with a cost in bits."""
    return {
        "quant_cfg": [
            {"quantizer_name": "*", "enable": False},
            {"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": bits, "axis": 0}, "enable": True},
        ],
        "algorithm": "mse",
        "effective_bits": cost,
    }


def search_spaces(case: Case) -> list[dict[str, Any]]:
    """The widths of every layer, none of which is in floating point."""
    formats = {
        module: [weights_only(bits, case.effective_bits(size, [site])) for bits, size in case.bytes[site].items()]
        for module, site in case.sites.items()
    }
    return [
        {"module_name_patterns": [module], "quantization_formats": allowed, "allow_no_quant": False}
        for module, allowed in formats.items()
    ]


def log_powers(case: Case, mask: Tensor, mixture: Mixture) -> Tensor:
    """Log power of the separated speaker at all times and frequencies, [1, values]."""
    return (case.estimate(mask, mixture).abs().square() + LEAST_POWER).log().flatten(1)


def search(case: Case, method: str) -> list[dict[str, Any]]:
    """An allocation for every budget; the other budgets are solved again on the scores of the first."""
    mixtures = case.mixtures()

    def forward(network: Network, mixture: Mixture) -> Tensor:
        mask = network(mixture.features)
        return log_powers(case, mask, mixture) if METHODS[method] == "kl_div" else mask

    budgets = {name: case.effective_bits(size, case.sites.values()) for name, size in case.budgets.items()}
    spaces = search_spaces(case)
    start = seconds()
    _, state = mtq.auto_quantize(
        Network(case),
        constraints={"effective_bits": max(budgets.values())},
        quantization_formats=spaces[0]["quantization_formats"],  # for layers without a space of their own: there are none
        module_search_spaces=spaces,
        data_loader=mixtures,
        forward_step=forward,
        loss_func=case.loss if METHODS[method] == "gradient" else None,
        num_calib_steps=1,
        num_score_steps=len(mixtures),
        method=METHODS[method],
    )
    scored = seconds() - start
    found = []
    for budget, effective_bits in budgets.items():
        start = seconds()
        config = mtq.get_auto_quantize_config(state, {"effective_bits": effective_bits})
        widths = {entry["quantizer_name"].removesuffix(".weight_quantizer"): entry.get("cfg") for entry in config["quant_cfg"]}
        weights = {site: widths[module]["num_bits"] for module, site in case.sites.items()}
        found.append({"method": method, "bits": budget, "weights": weights, "seconds": scored + seconds() - start})
    return found


def main() -> None:
    """Search by both methods."""
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    case = load_case(folder)
    with torch.no_grad():
        network = Network(case)
        losses = [float(case.loss(network(mixture.features), mixture)) for mixture in case.mixtures()]
    answer = {
        "versions": {name: version(name) for name in ("nvidia-modelopt", "torch", "pulp")},
        "losses_db": losses,
        "allocations": [allocation for method in METHODS for allocation in search(case, method)],
    }
    (folder / "answer.json").write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
