"""The sites of what is kept of a network, and the sites that each option decides about."""

from hwsearch.network.channels import ChannelGroup
from hwsearch.network.graph import Graph
from hwsearch.network.options import Options, Structure
from hwsearch.network.sites import LAYERS, WEIGHT, find_sites


class ElasticSites:
    """The sites of what structures keep.

    Args:
        graph: the whole network; the values of its parameters do not matter.
        options: what can be left out of it.
    """

    def __init__(self, graph: Graph, options: Options) -> None:
        self._graph = graph
        self.options = options
        self._known: dict[frozenset[str], frozenset[str]] = {}
        """Sites by the blocks that are left out. How many channels are kept changes no site."""

    def relevant(self, structure: Structure) -> dict[str, int]:
        """Return a structure without what is whole, and without channels of blocks that are left out.

        Raises:
            ValueError: an unknown option, or a number that it cannot have.
        """
        return self.options.relevant(structure)

    def at(self, structure: Structure) -> frozenset[str]:
        """Return the sites of what a structure keeps."""
        out = frozenset(block.name for block in self.options.blocks if structure.get(block.name) == 0)
        if out not in self._known:
            narrow = self.options.narrowed(self._graph, dict.fromkeys(out, 0))
            self._known[out] = frozenset(find_sites(narrow).all)
        return self._known[out]

    def decided_by(self, option: str) -> frozenset[str]:
        """Return the sites that an option removes by itself, or, of a group of channels, those of its layers and tensors."""
        found = self.options.by_name[option]
        if not isinstance(found, ChannelGroup):
            return self.at({}) - self.at({option: 0})
        weights = {
            layer.name + WEIGHT for layer in self._graph.operations if isinstance(layer, LAYERS) and layer.name in found.layers
        }
        tensors = {site for site, tensor in find_sites(self._graph).tensors.items() if tensor in found.tensors}
        return frozenset(weights | tensors)
