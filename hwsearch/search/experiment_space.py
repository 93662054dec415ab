"""The search space of an experiment's network."""

from hwsearch.errors import UserError
from hwsearch.experiment import NARROW_BITS, WIDE_BITS, Experiment
from hwsearch.network.elastic_sites import ElasticSites
from hwsearch.network.options import ENOUGH_FRAMES
from hwsearch.search.space import SearchSpace, build_space
from hwsearch.separator.untrained import untrained_network


def experiment_space(experiment: Experiment) -> SearchSpace:
    """Build the space over the sites of an experiment's network, and over what can be left out of it.

    Raises:
        UserError: the network cannot be built, or a pattern of the experiment does not fit it; see `build_space`.
    """
    network = untrained_network(experiment)
    elastic = ElasticSites(network.graph, network.options(ENOUGH_FRAMES)) if experiment.search.structure else None
    space = build_space(experiment.search, network.sites, elastic)
    blocks = [name for name, _ in space.options if elastic is not None and elastic.options.is_block(name)]
    if blocks and experiment.quantization.tied_adds and not experiment.search.wide_trunk:
        raise UserError(
            f"search.structure: '{blocks[0]}' may be left out, which quantization.tied_adds does not allow where the trunk has "
            f"at most {NARROW_BITS} bits; wanted search.trunk_bits = [{WIDE_BITS}], or channels alone"
        )
    return space
