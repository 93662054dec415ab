"""The size of an ONNX file, known from the bit-widths alone.

Every part of a file takes the same bytes in every file, and depends on the width of one site. So the size is a sum over sites.
The sum is that of a file whose activations all have at most 8 bits. Beside wider ones, biases take fewer bytes, and the exporter
fills the file up to the sum.
"""

from collections.abc import Callable, Mapping

import torch

from hwsearch.export.description import ExportDescription, describe
from hwsearch.export.onnx_graph import most_names, write_graph, write_parameters
from hwsearch.export.onnx_parts import Shared, write_float_read, write_quantizer
from hwsearch.export.onnx_writer import OnnxWriter
from hwsearch.network.graph import Graph
from hwsearch.network.operations import Operation, Read
from hwsearch.network.shapes import tensor_shapes
from hwsearch.network.sites import WEIGHT, find_sites
from hwsearch.separator.allocation import BitAllocation
from hwsearch.separator.front_end import FrontEnd
from hwsearch.separator.quantizers import MAX_BITS, ActivationGrid, QuantizedWeight, is_float
from hwsearch.separator.rounded_weights import scaled_channels, shaped_scale

_LENGTH_BYTES = 3
"""Most bytes that the length of the graph takes beyond those of a graph without parameters."""

_EXAMPLE_FRAMES = 4096
"""Frames that are enough for the strides and kernels of any network."""

_KNOWN: dict[tuple[object, ...], int] = {}
"""Bytes of parts by all that they depend on. The parts of networks that keep less of one are mostly alike."""


class OnnxSize:
    """The size of the ONNX files of a network, in bytes.

    Attributes:
        constant: what every file takes.
    """

    def __init__(self, graph: Graph, features: int, description: ExportDescription, *, per_channel: bool) -> None:
        """Measure a file without its parameters.

        Args:
            graph: the network; the values of its parameters do not matter.
            features: channels of its input.
            description: of any candidate of the network.
            per_channel: whether weights have a scale for each output channel.
        """
        self._graph = graph
        self._sites = find_sites(graph)
        self._most_names = most_names(graph, self._sites)
        self._per_channel = per_channel
        self.constant = self._measured_constant(features, description) + _LENGTH_BYTES

    def of_site(self, site: str, bits: int) -> int:
        """Return what a site adds at a width: the weights of a layer with its bias, or a quantizer."""
        if site not in self._sites.tensors:
            return self._of_layer(self._graph.by_name[site.removesuffix(WEIGHT)], bits)
        reads = isinstance(self._graph.by_name.get(self._sites.tensors[site]), Read)
        return self._measured(("quantizer", bits, reads), lambda: self._of_quantizer(bits, reads=reads))

    def of(self, widths: Mapping[str, int]) -> int:
        """Return the bytes of the file of an allocation, given the width of every site."""
        return self.constant + sum(self.of_site(site, bits) for site, bits in widths.items())

    def _of_layer(self, layer: Operation, bits: int) -> int:
        weight, bias = (self._graph.parameter(layer, part) for part in ("weight", "bias"))
        scale = shaped_scale(layer, torch.ones(scaled_channels(layer, weight) if self._per_channel else 1))
        key = (type(layer), tuple(weight.shape), tuple(bias.shape), tuple(scale.shape), bits)

        def measure() -> int:
            zeros = torch.zeros(weight.shape, dtype=torch.int32)
            numbers = torch.zeros(weight.shape) if is_float(bits) else QuantizedWeight(bits, zeros, scale)
            writer, shared = self._writer()
            read = ActivationGrid(MAX_BITS, 1.0, 0), writer.name()
            write_parameters(writer, shared, layer, numbers, torch.zeros(bias.shape), read, unsigned=True)
            return writer.bytes

        return self._measured(key, measure)

    def _of_quantizer(self, bits: int, *, reads: bool) -> int:
        writer, shared = self._writer()
        if not is_float(bits):
            write_quantizer(writer, shared, writer.name(), ActivationGrid(bits, 1.0, 0))
        elif reads:
            write_float_read(writer, shared, writer.name())
        return writer.bytes

    def _writer(self) -> tuple[OnnxWriter, Shared]:
        """Return an empty graph, and shared constants that are in another one."""
        return OnnxWriter(self._most_names), Shared.of(OnnxWriter(self._most_names))

    def _measured(self, key: tuple[object, ...], measure: Callable[[], int]) -> int:
        whole = self._most_names, *key
        if whole not in _KNOWN:
            _KNOWN[whole] = measure()
        return _KNOWN[whole]

    def _measured_constant(self, features: int, description: ExportDescription) -> int:
        graph, writer = self._graph, OnnxWriter(self._most_names)
        Shared.of(writer)
        channels, *_ = tensor_shapes(graph, {graph.inputs[0]: (features, _EXAMPLE_FRAMES)})[graph.outputs[0]]
        zeros = torch.zeros(features, 1)
        some = writer.name()
        model = write_graph(writer, graph, (zeros, zeros), channels, lambda _, name: name, lambda _: (some, some))
        describe(model, description)
        size: int = model.ByteSize()
        return size


def onnx_size(graph: Graph, front_end: FrontEnd, *, per_channel: bool) -> OnnxSize:
    """Measure the files of the candidates of a network behind a front end, whose statistics do not matter."""
    description = ExportDescription.of(
        graph, BitAllocation.of(dict.fromkeys(find_sites(graph).all, MAX_BITS)), front_end, "0" * 64
    )
    return OnnxSize(graph, front_end.inputs, description, per_channel=per_channel)
