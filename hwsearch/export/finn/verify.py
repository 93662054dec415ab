"""Proof that a FINN graph computes what its network does, number by number.

QONNX's executor runs the graph on what the host part makes of features. Every number of every site must be the exactly rounded
one (`hwsearch.export.finn.exact`), ties to even: none may differ. The Brevitas network, whose sums are floating point, may differ
at ties, which are counted as for the other formats.
"""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from torch import Tensor

from hwsearch.export.finn.exact import Numbers, exact_numbers
from hwsearch.export.finn.graph import site_offsets
from hwsearch.export.finn.host import Host
from hwsearch.export.network import ExportedNetwork
from hwsearch.export.verify import Run, VerificationError, VerificationReport, judge


def verify_finn(path: Path, host: Host, network: ExportedNetwork, batches: Sequence[Tensor]) -> VerificationReport:
    """Run a FINN graph in QONNX's executor and compare it with its network.

    Args:
        path: the graph.
        host: the host part beside it.
        network: what it was made from.
        batches: raw features [1, features, frames], as many frames as the graph has.

    Raises:
        VerificationError: a number differs from the exact one, or `verify.judge` refuses the run.
    """
    model, offsets = ModelWrapper(str(path)), site_offsets(network)

    def run(features: Tensor) -> Run:
        given = host.to_board(features.numpy()).astype(np.float32)
        context = execute_onnx(model, {model.graph.input[0].name: given}, return_full_exec_context=True)
        numbers: dict[str, Numbers] = {
            site: context[site][:, :, 0, :].transpose(0, 2, 1).astype(np.float64) + offset for site, offset in offsets.items()
        }
        for site, exact in exact_numbers(network, numbers).items():
            if differing := int((numbers[site] != exact).sum()):
                raise VerificationError(f"{path}: at '{site}' {differing} of {exact.size} numbers are not the exact ones")
        return Run(host.from_board(context[model.graph.output[0].name]), numbers)

    return judge(path, network, batches, [run(features) for features in batches], f"qonnx {version('qonnx')}")
