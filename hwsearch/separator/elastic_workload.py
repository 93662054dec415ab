"""The workload of a network of which parts can be left out."""

from collections.abc import Callable, Mapping
from typing import TypeVar

from hw_models.elastic import ElasticWorkload, Option
from hw_models.workload import Layer, Workload
from hwsearch.network.graph import Graph
from hwsearch.network.options import Options

_Part = TypeVar("_Part")


def build_elastic_workload(
    graph: Graph, options: Options, values: Mapping[str, tuple[int, ...]], workload_of: Callable[[Graph], Workload]
) -> ElasticWorkload:
    """Make the workload of a network and its options.

    Args:
        graph: the whole network.
        options: what can be left out of it.
        values: what may be kept of some options, by name, in rising order; the last value is the whole.
        workload_of: makes the workload of a network.

    Raises:
        ValueError: the last value of an option is not the whole.
    """
    whole = workload_of(graph)
    blocks = {block.name: block for block in options.blocks}
    found = []
    for name, kept in values.items():
        if kept[-1] != options.whole(name):
            raise ValueError(f"'{name}' is kept at {kept}; wanted {options.whole(name)} at the end")
        if name in blocks:
            removed = {layer.name: None for layer in whole.layers if layer.name in blocks[name].operations}
            found.append(Option(name, kept, {0: removed}, {}))
            continue
        narrow = {value: workload_of(options.narrowed(graph, {name: value})) for value in kept[:-1]}
        layers = {value: _changed(_layers(whole), _layers(each)) for value, each in narrow.items()}
        channels = {value: _changed(whole.site_channels, each.site_channels) for value, each in narrow.items()}
        found.append(Option(name, kept, layers, channels))
    return ElasticWorkload(whole, tuple(found))


def _changed(whole: Mapping[str, _Part], narrow: Mapping[str, _Part]) -> dict[str, _Part]:
    return {name: value for name, value in narrow.items() if value != whole[name]}


def _layers(workload: Workload) -> dict[str, Layer]:
    return {layer.name: layer for layer in workload.layers}
