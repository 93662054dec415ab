"""Prefix reuse: quantizing a site changes nothing before it, so that part of the network runs once per mixture.

One full-precision pass keeps the tensor of every activation site. A pass with one site changed computes only what depends on
that site, and takes everything else from the kept tensors. A tensor that is no site is computed again from the kept ones.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace

from torch import Tensor

from hwsearch.network.graph import Graph
from hwsearch.network.operations import Concatenate, Operation
from hwsearch.network.run import Compute, run
from hwsearch.network.sites import WEIGHT, Sites
from hwsearch.separator.fast import fast_compute

SiteTensors = Mapping[str, Tensor]
"""The full-precision tensor at every activation site, batch of one."""


def run_keeping(graph: Graph, sites: Sites, x: Tensor, how: Compute = fast_compute) -> tuple[Tensor, dict[str, Tensor]]:
    """Run a network on its input `x` [1, channels, frames], and keep the tensor of every activation site.

    Args:
        graph: a network of one input and one output.
        sites: its sites.
        x: the input.
        how: computes each operation.

    Returns:
        The output, and the tensors by site. Each is a variable of its own, even if an operation returns what it reads.

    Raises:
        ValueError: several inputs or outputs.
    """
    network_input, _ = _ends(graph)
    site_of = {tensor: site for site, tensor in sites.tensors.items()}
    kept: dict[str, Tensor] = {}

    def keep(name: str, made: Tensor) -> Tensor:
        if name in site_of:
            made = kept[site_of[name]] = made.view_as(made)
        return made

    (output,) = run(graph, {network_input: x}, keep, how)
    return output, kept


class Continuation:
    """The part of a network behind each site, determined when it is first needed."""

    def __init__(self, graph: Graph, sites: Sites, how: Compute = fast_compute) -> None:
        """Take a network of one input and one output, its sites, and what computes each operation.

        Raises:
            ValueError: several inputs or outputs.
        """
        self._graph, self._sites, self._how = graph, sites, how
        self._site_of = {tensor: site for site, tensor in sites.tensors.items()}
        self._output = _ends(graph)[1]
        self._behind: dict[str, Graph] = {}
        self._layers: dict[str, Graph] = {}

    def continue_from(self, site: str, x: Tensor, tensors: SiteTensors) -> Tensor:
        """The network's output [batch, channels, frames] with another tensor at an activation site.

        Args:
            site: an activation site.
            x: replaces the full-precision tensor there, [batch, channels, frames].
            tensors: full-precision tensors of the same mixture, batch of one each.

        Raises:
            ValueError: no activation site of that name.
        """
        if site not in self._sites.tensors:
            raise ValueError(f"no activation site '{site}'")
        tensor = self._sites.tensors[site]
        if site not in self._behind:
            self._behind[site] = _part(self._graph, self._untouched(tensor) | {tensor}, self._output)
        output = self._run(self._behind[site], {**tensors, site: x})
        return output.expand(len(x), *output.shape[1:])

    def layer_output(self, layer: str, weight: Tensor, bias: Tensor, tensors: SiteTensors) -> Tensor:
        """The tensor at the activation site behind a layer, with another weight and bias in place of the layer's own."""
        if layer not in self._layers:
            behind = self._sites.tensors[self.site_behind(layer)]
            self._layers[layer] = _part(self._graph, self._untouched(layer), behind)
        part = self._layers[layer]
        return self._run(replace(part, parameters={**part.parameters, layer + WEIGHT: weight, f"{layer}.bias": bias}), tensors)

    def site_behind(self, layer: str) -> str:
        """The activation site where a change of a layer's weights first shows."""
        tensor = layer
        while tensor not in self._site_of:
            (reader,) = self._graph.readers[tensor]  # one that is rounded in its place
            tensor = reader.name
        return self._site_of[tensor]

    def _untouched(self, tensor: str) -> set[str]:
        """The tensors of sites that do not depend on the given tensor."""
        touched = {tensor}
        for operation in self._graph.operations:
            if not touched.isdisjoint(operation.inputs):
                touched.add(operation.name)
        return self._site_of.keys() - touched

    def _run(self, part: Graph, tensors: SiteTensors) -> Tensor:
        (output,) = run(part, {name: tensors[self._site_of[name]] for name in part.inputs}, how=self._compute)
        return output

    def _compute(self, operation: Operation, graph: Graph, inputs: tuple[Tensor, ...]) -> Tensor:
        """Compute an operation whose inputs differ in batch size. All operations but a concatenation broadcast."""
        if isinstance(operation, Concatenate):
            batch = max(map(len, inputs))
            inputs = tuple(x.expand(batch, *x.shape[1:]) for x in inputs)
        return self._how(operation, graph, inputs)


def _ends(graph: Graph) -> tuple[str, str]:
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        found = f"{len(graph.inputs)} inputs and {len(graph.outputs)} outputs"
        raise ValueError(f"sensitivities of a network with {found}; wanted one of each")
    return graph.inputs[0], graph.outputs[0]


def _part(graph: Graph, known: Collection[str], output: str) -> Graph:
    """The part of a graph that makes a tensor from known ones."""
    wanted, kept = {output}, list[Operation]()
    for operation in reversed(graph.operations):
        if operation.name in wanted and operation.name not in known:
            kept.append(operation)
            wanted |= set(operation.inputs)
    inputs = tuple(name for name in (*graph.inputs, *graph.by_name) if name in wanted and name in known)
    parameters = {
        f"{operation.name}.{part}": graph.parameter(operation, part) for operation in kept for part in operation.parameters
    }
    return Graph(inputs, tuple(reversed(kept)), (output,), parameters)
