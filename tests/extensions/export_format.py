"""An export format: the names and shapes of the network's parameters, as text."""

from collections.abc import Sequence
from pathlib import Path

from hwsearch.data.example import Example
from hwsearch.export.description import ExportDescription
from hwsearch.export.exporter import Exporter, Written
from hwsearch.export.network import ExportedNetwork
from hwsearch.export.verify import VerificationReport


def write(path: Path, network: ExportedNetwork, description: ExportDescription, examples: Sequence[Example]) -> Written:
    del description
    path.write_text("".join(f"{name} {list(tensor.shape)}\n" for name, tensor in network.network.graph.parameters.items()))
    return Written(VerificationReport("nothing", len(examples), 0, 0, 0, 0, 0.0, 0.0, 0.0, None, None), {"listed": True})


LISTING = Exporter("parameters.txt", write)
