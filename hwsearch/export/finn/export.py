"""Export for FINN (arXiv 1612.07119): the integer graph, and what is needed beside it.

- `model.finn.onnx`: the graph (`hwsearch.export.finn.graph`)
- `host.npz`, `host.py`: the host's part: normalisation, and the grids of the graph's input and output
- `folding-TARGET.json`: the folding that `hw_models` chooses on each built-in FINN target
- `build.py`: builds the design with the user's FINN; estimates only, unless more is asked for
"""

import io
from importlib import resources
from pathlib import Path

import numpy as np

from hwsearch.errors import UserError
from hwsearch.export.description import ExportDescription, seal
from hwsearch.export.finn.folding import TARGETS, folding_configuration, folding_file
from hwsearch.export.finn.graph import finn_graph, signed_sites
from hwsearch.export.finn.host import Host
from hwsearch.export.finn.limits import check_operations, check_slopes, check_widths
from hwsearch.export.network import ExportedNetwork
from hwsearch.files.writing import atomic_write_bytes, atomic_write_json
from hwsearch.network.sites import tied

HOST_FILE = "host.npz"
SCRIPTS = ("host.py", "build.py")
"""Scripts of an export, copies of modules of this package."""


def export_finn(network: ExportedNetwork, path: Path, description: ExportDescription, frames: int) -> Host:
    """Write the graph for a number of frames, and the files beside it; return the host's part.

    Raises:
        UserError: the network has an operation, a slope or a width that FINN does not take, or sums of several scales.
    """
    quantized = network.network
    graph = quantized.master_copy()
    check_operations(graph)
    if tied(graph, quantized.graph_sites).ties != quantized.graph_sites.ties:
        raise UserError("quantization.tied_adds is not true; FINN adds integers of one scale: wanted a search where it is")
    check_slopes(graph)
    check_widths(quantized.graph_sites, {site: (bits,) for site, bits in quantized.allocation.widths})
    atomic_write_bytes(path, seal(finn_graph(network, frames), description))
    atomic_write_bytes(path.with_name(HOST_FILE), host_arrays(network))
    for target in TARGETS:
        atomic_write_json(path.with_name(folding_file(target)), folding_configuration(network, frames, target))
    for name in SCRIPTS:
        atomic_write_bytes(path.with_name(name), resources.files("hwsearch.export.finn").joinpath(name).read_bytes())
    return Host(path.with_name(HOST_FILE))


def host_arrays(network: ExportedNetwork) -> bytes:
    """Return the arrays of the host's part, as an npz file."""
    quantized = network.network
    grids, signed = quantized.activation_grids(), signed_sites(network)
    first, last = (quantized.graph_sites.grids[name] for name in (quantized.graph.inputs[0], quantized.graph.outputs[0]))
    read, made = grids[first], grids[last]
    if read is None or made is None:
        raise UserError("the network's input or output is in floating point; FINN wants integers of at most 8 bits")
    arrays = {
        "mean": network.mean[:, 0].numpy(),
        "gain": network.scale[:, 0].numpy(),
        "input_scale": np.float32(read.scale),
        "input_least": np.int32(-read.zero_point),
        "input_most": np.int32(read.levels - read.zero_point),
        "input_zero": np.int32(0 if first in signed else read.zero_point),
        "output_scale": np.float32(made.scale),
        "output_zero": np.int32(0 if last in signed else made.zero_point),
    }
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **{name: np.asarray(array) for name, array in arrays.items()})
    return content.getvalue()
