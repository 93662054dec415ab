"""Small networks whose sums have tied scales, as FINN takes them."""

from functools import cache

from hwsearch.experiment import QuantizationConfig, SeparatorConfig
from hwsearch.export.network import ExportedNetwork
from hwsearch.network.graph import Graph
from hwsearch.network.sites import Sites, find_sites, tied, with_reads
from hwsearch.separator.allocation import BitAllocation, uniform
from hwsearch.separator.calibration import Calibration, calibrate
from hwsearch.separator.quantized import build_quantized
from hwsearch.separator.separator import Separator
from hwsearch.separator.traced import traced
from tests.separator.small import normalised_features, small_separator

TIED = QuantizationConfig(tied_adds=True)


@cache
def tied_network(config: SeparatorConfig, trunk: int) -> tuple[Separator, Graph, Sites, Calibration]:
    """A separator, its graph with a trunk of some bits, its sites, and the calibration of both."""
    separator = small_separator(config)
    graph = traced(separator)
    graph = with_reads(graph) if trunk > 8 else graph
    sites = tied(graph, find_sites(graph))
    features = [normalised_features(separator, 3000, mixture) for mixture in (1, 2)]
    return separator, graph, sites, calibrate(graph, features, sites.ties)


def tied_allocation(config: SeparatorConfig, trunk: int, weights: int, activations: int = 8) -> BitAllocation:
    """One width for all weights, one for activations; 8 bits for what a trunk of 16 bits adds."""
    _, _, sites, _ = tied_network(config, trunk)
    widths = uniform(sites, weights, activations, trunk if trunk > 8 else None).by_site
    kept = {site: 8 for tie in sites.ties if tie.sums for site in tie.sites}
    return BitAllocation.of(widths | kept)


def tied_export(config: SeparatorConfig, trunk: int, allocation: BitAllocation) -> ExportedNetwork:
    """A network at an allocation, as it is exported."""
    separator, graph, _, calibration = tied_network(config, trunk)
    return ExportedNetwork(build_quantized(graph, allocation, calibration, TIED), separator.front_end).eval()
