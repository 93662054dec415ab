"""The ONNX graph from sound to sound: the front end around the network of an exported file.

    mixture     [mics, samples]. Behind a spectral front end, (frames + hops - 1) * hop samples; frame t consists of the samples
                from t * hop to (t + hops) * hop
    direction   [1], of the target in degrees, behind a spectral front end
    level       the root mean square of the spectrum of microphone 0, [1] or that of each frame; without a spectral front end that
                of its sound, [1]
    target      [speakers, samples], the separated sound of all samples of the mixture. The first and the last samples lack
                frames, unless they are the first and the last of the recording.

A graph that *streams* continues from call to call. Its mixture is frames * hop new samples, and it has no level. Its target has
the length of the mixture and lags it by a frame less a hop. Each input `state.N` is the output `next.N` of the call before.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from hwsearch.export.description import INPUT, OUTPUT, ExportDescription
from hwsearch.export.onnx_writer import OnnxWriter
from hwsearch.export.sound.front_end_nodes import EVERYTHING, FrontEndNodes
from hwsearch.export.structure import ForeignGraphError
from hwsearch.network.context import context
from hwsearch.network.graph import Graph
from hwsearch.network.operations import Convolution, Pad, Slice, TransposedConvolution
from hwsearch.separator.form import SpectralForm

MIXTURE, DIRECTION, LEVEL, TARGET = "mixture", "direction", "level", "target"
"""Names of inputs and output."""

STATE, NEXT = "state.", "next."
"""What the names of the states begin with, before and behind a call."""

_OURS = "sound."
"""What the names of all tensors begin with that the network's own graph does not have."""

_MOST_NAMES, _NAMES_PER_OPERATION = 1024, 8
"""Most names that a front end takes, and each operation of the network."""

_MOST_PADDING = 2**31

_FRAMES = 2
"""Axis of the frames."""

_SMALLEST_WINDOW = 1e-8
"""Sums of squared windows are not smaller where sound is made."""

Number = np.uint8 | np.float32


@dataclass(frozen=True)
class State:
    """A state before the first call.

    Attributes:
        shape: of the tensor.
        first: its value; uint8 for the integers of a quantized tensor, else float32.
    """

    shape: tuple[int, ...]
    first: Number


def streams(description: ExportDescription) -> bool:
    """Return whether a network can go on from call to call: neither it nor the level of its features sees what comes later."""
    spectral = description.spectral
    return spectral is not None and spectral.level_seconds is not None and _is_causal(description.network.graph)


def end_to_end(model: ModelProto, description: ExportDescription) -> tuple[ModelProto, Sequence[State]]:
    """Put the front end around a network.

    Args:
        model: the graph of `export_onnx`, from features to mask.
        description: of the graph.

    Returns:
        The graph from sound to sound, without metadata, and the states that it begins with if it streams.

    Raises:
        ForeignGraphError: the graph is not of `export_onnx`.
    """
    around = _Around(model, description)
    form = description.form
    if not isinstance(form, SpectralForm):
        around.waveform()
    elif streams(description):
        around.streaming(form)
    else:
        around.spectral(form)
    return around.finished(form.microphones or 1, form.speakers), around.states


def network_inside(model: ModelProto, description: ExportDescription) -> ModelProto:
    """Return the network's own graph from one that claims to be of `end_to_end`; whether it is, `end_to_end` tells.

    Raises:
        ForeignGraphError: a layer that no export has.
    """
    convolutions = iter(_convolutions(description.network.graph))
    inside = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    inside.graph.name = model.graph.name
    for node in model.graph.node:
        if any(name.startswith((_OURS, NEXT)) or name in (INPUT, TARGET) for name in node.output):
            continue
        inside.graph.node.append(node)
        convolution = next(convolutions, None) if node.op_type == "Conv" else None
        if convolution is not None and node.input and node.input[0].startswith(_OURS):
            _, _, read = node.input[0].rpartition("/")
            if max(convolution.padding) >= _MOST_PADDING:
                raise ForeignGraphError(f"layer '{convolution.name}'")
            _replace(inside.graph.node[-1], read, convolution.padding)
    inside.graph.initializer.extend(each for each in model.graph.initializer if not each.name.startswith(_OURS))
    form = description.form
    inside.graph.input.append(_tensor(INPUT, [1, form.inputs, "frames"]))
    inside.graph.output.append(_tensor(OUTPUT, [1, form.outputs, "frames"]))
    return inside


class _Around:
    """A graph around a network, in the making."""

    def __init__(self, model: ModelProto, description: ExportDescription) -> None:
        self._model = model
        self._description = description
        self._writer = OnnxWriter(_MOST_NAMES + _NAMES_PER_OPERATION * len(description.network.graph.operations), _OURS)
        self._makers = {name: node for node in model.graph.node for name in node.output}
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._inputs: list[ValueInfoProto] = []
        self.states: list[State] = []

    def waveform(self) -> None:
        """Write the nodes around a network on waveforms."""
        write, axis = self._writer.node, self._writer.constant(np.array([0]))
        self._inputs.append(_tensor(LEVEL, [1]))
        features = write("Unsqueeze", [write("Div", [MIXTURE, LEVEL]), axis])
        self._network(features)
        self._writer.named(write("Mul", [write("Squeeze", [OUTPUT, axis]), LEVEL]), TARGET)

    def spectral(self, form: SpectralForm) -> None:
        """Write the nodes around a network that makes masks."""
        nodes = FrontEndNodes(self._writer, form)
        self._inputs += [_tensor(DIRECTION, [1]), _tensor(LEVEL, ["levels"])]
        analysed = nodes.analyse(nodes.spectra(MIXTURE), DIRECTION, LEVEL)
        self._network(analysed.features)
        self._target(nodes, *nodes.synthesise(analysed, OUTPUT))

    def streaming(self, form: SpectralForm) -> None:
        """Write the nodes around a network that makes masks, and the states."""
        nodes, config = FrontEndNodes(self._writer, form), form.config
        self._inputs.append(_tensor(DIRECTION, [1]))
        history = config.n_fft - config.hop_length
        sound = self._joined((form.array.microphones, history), np.float32(0), MIXTURE, axis=1)
        spectra = nodes.spectra(sound)
        sums = self._state((1, 2), np.float32(0))
        levels, behind = nodes.running_level(nodes.power(spectra), sums, form.level_decay or 0.0)
        self._next(sums, behind)
        analysed = nodes.analyse(spectra, DIRECTION, levels)
        self._network(analysed.features, self._with_state)
        totals = [self._continued(nodes, total) for total in nodes.synthesise(analysed, OUTPUT)]
        self._target(nodes, *totals)

    def finished(self, microphones: int, speakers: int) -> ModelProto:
        """Return the model."""
        graph = self._writer.graph
        graph.input.extend([_tensor(MIXTURE, [microphones, "samples"]), *self._inputs])
        graph.output.insert(0, _tensor(TARGET, [speakers, "separated"]))
        model = helper.make_model(graph, opset_imports=self._model.opset_import, ir_version=self._model.ir_version)
        model.ClearField("producer_name")
        return model

    def _network(self, features: str, change: Callable[[NodeProto, Convolution], NodeProto] | None = None) -> None:
        """Add the network's nodes, with changed convolutions."""
        self._writer.named(features, INPUT)
        convolutions = iter(_convolutions(self._description.network.graph))
        for node in self._model.graph.node:
            convolution = next(convolutions) if node.op_type == "Conv" else None
            added = change(node, convolution) if change is not None and convolution is not None else node
            self._writer.graph.node.append(added)
        # Runtimes warn of constants that nothing reads, and the network's own file may hold some.
        read = {name for node in self._writer.graph.node for name in node.input}
        self._writer.graph.initializer.extend(each for each in self._model.graph.initializer if each.name in read)

    def _with_state(self, node: NodeProto, convolution: Convolution) -> NodeProto:
        """Put a state in place of the zeros that a convolution begins with."""
        span = convolution.padding[0]
        if not span:
            return node
        read, weight = node.input[0], self._description.network.graph.parameter(convolution, "weight")
        shape = 1, convolution.groups * weight.shape[1], span
        name = f"{_OURS}{len(self.states)}/{read}"
        maker = self._makers.get(read)
        if maker is not None and maker.op_type == "DequantizeLinear":
            # The state of a quantized tensor holds the integers that the kernel reads.
            integers, scale, zero = self._quantized(maker, convolution)
            joined = self._joined(shape, zero, integers, axis=2)
            self._writer.graph.node.append(helper.make_node("DequantizeLinear", [joined, *scale], [name]))
        else:
            self._writer.named(self._joined(shape, np.float32(0), read, axis=2), name)
        changed = NodeProto()
        changed.CopyFrom(node)
        _replace(changed, name, (0, 0))
        return changed

    def _quantized(self, maker: NodeProto, reader: Convolution) -> tuple[str, list[str], np.uint8]:
        """Return the names of a tensor's integers and of scale and zero point, and the zero point."""
        integers, *scale = maker.input
        stored = self._constants.get(scale[-1]) if len(scale) == 2 else None
        if stored is None or stored.data_type != TensorProto.UINT8 or stored.dims or len(stored.raw_data) != 1:
            raise ForeignGraphError(f"the tensor that layer '{reader.name}' reads")
        return integers, scale, np.uint8(stored.raw_data[0])

    def _joined(self, shape: tuple[int, ...], first: Number, new: str, axis: int) -> str:
        """Put a state before a tensor along an axis, and keep as much of its end."""
        writer, length = self._writer, shape[axis]
        state = self._state(shape, first)
        joined = writer.node("Concat", [state, new], axis=axis)
        ends = [writer.constant(np.array([value])) for value in (-length, EVERYTHING, axis)]
        self._next(state, writer.node("Slice", [joined, *ends]))
        return joined

    def _state(self, shape: tuple[int, ...], first: Number) -> str:
        name = f"{STATE}{len(self.states)}"
        self.states.append(State(shape, first))
        self._inputs.append(_tensor(name, shape, _kind(first)))
        return name

    def _next(self, state: str, made: str) -> None:
        """Make a tensor the value of a state in the next call."""
        number = int(state.removeprefix(STATE))
        name = f"{NEXT}{number}"
        self._writer.named(made, name)
        before = self.states[number]
        self._writer.graph.output.append(_tensor(name, before.shape, _kind(before.first)))

    def _target(self, nodes: FrontEndNodes, sound: str, windows: str) -> None:
        floor = nodes.floats(_SMALLEST_WINDOW)
        ratio = self._writer.node("Div", [sound, self._writer.node("Max", [windows, floor])])
        self._writer.named(self._writer.node("Reshape", [ratio, nodes.integers(1, -1)]), TARGET)

    def _continued(self, nodes: FrontEndNodes, total: str) -> str:
        """Add what earlier frames left to overlapping frames [frames + hops - 1, hop], and keep what later ones are added to."""
        write, kept = self._writer.node, nodes.hops - 1
        rest = self._state((kept, nodes.hop), np.float32(0))
        before = write("Add", [nodes.part(total, 0, kept, axis=0), rest])
        whole = write("Concat", [before, nodes.part(total, kept, EVERYTHING, axis=0)], axis=0)
        self._next(rest, nodes.part(whole, -kept, EVERYTHING, axis=0))
        return nodes.part(whole, 0, -kept, axis=0)


def _is_causal(graph: Graph) -> bool:
    """Whether every frame depends on itself and earlier ones alone, through convolutions that begin with zeros."""
    return context(graph) is not None and not any(
        isinstance(operation, TransposedConvolution | Pad)
        or (isinstance(operation, Slice) and operation.axis == _FRAMES)
        or (isinstance(operation, Convolution) and not _keeps_frames(operation, graph))
        for operation in graph.operations
    )


def _keeps_frames(convolution: Convolution, graph: Graph) -> bool:
    """Whether a convolution makes each frame from the same one and those before it."""
    span = convolution.dilation * (graph.parameter(convolution, "weight").shape[2] - 1)
    return convolution.stride == 1 and convolution.padding == (span, 0)


def _convolutions(graph: Graph) -> list[Convolution]:
    return [operation for operation in graph.operations if isinstance(operation, Convolution)]


def _replace(node: NodeProto, read: str, padding: tuple[int, int]) -> None:
    """Change the input and the padding of a convolution."""
    node.input[0] = read
    next(attribute for attribute in node.attribute if attribute.name == "pads").ints[:] = padding


def _tensor(name: str, shape: Sequence[int | str], kind: int = TensorProto.FLOAT) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _kind(first: Number) -> int:
    return int(TensorProto.UINT8 if isinstance(first, np.uint8) else TensorProto.FLOAT)
