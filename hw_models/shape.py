"""The shape in which a chip runs a layer, after the effect of dilation on kernel and frames.

Chips have three classes of kernels. Convolutions and depthwise layers are two of them. A transposed convolution runs as the
matrix product of its input with all taps at once; the addition of overlapping results is not charged. Every layer without weights
runs as a sum of the same number of elements; norms and softmaxes pass over their elements twice.
"""

from dataclasses import dataclass

from hw_models.sections import Dilation
from hw_models.workload import PASSES, Layer, LayerKind


@dataclass(frozen=True)
class Shape:
    """A layer as executed.

    Attributes:
        kind: class of kernels: `conv`, `depthwise` or `add`.
        in_channels: channels of each operand.
        out_channels: channels of the result.
        taps: taps of the kernel, including those that the dilation mode adds.
        frames: positions of the result, including those that the dilation mode adds.
        inserted_zeros: weights that the dilation mode adds.
        history: frames of state that are read.
        groups: groups of channels of a `conv`.
        operands: number of tensors read, of `in_channels` each.
        input_frames: positions of the operands, or None for `frames`.
        passes: number of passes of a layer without weights over its elements.
    """

    kind: LayerKind
    in_channels: int
    out_channels: int
    taps: int
    frames: int
    inserted_zeros: int
    history: int = 0
    groups: int = 1
    operands: int | None = None
    input_frames: int | None = None
    passes: int = 1

    @property
    def macs(self) -> int:
        """Executed multiply-accumulates, including those on inserted zeros and padded frames; 0 for an `add`."""
        if self.kind is LayerKind.ADD:
            return 0
        inputs = self.in_channels // self.groups if self.kind is LayerKind.CONV else 1
        return inputs * self.taps * self.out_channels * self.frames

    @property
    def outputs(self) -> int:
        """Number of elements written."""
        return self.out_channels * self.frames

    @property
    def inputs(self) -> int:
        """Number of elements of all operands."""
        operands = (2 if self.kind is LayerKind.ADD else 1) if self.operands is None else self.operands
        frames = self.frames if self.input_frames is None else self.input_frames
        return operands * self.in_channels * (frames + self.history)

    @property
    def worked_frames(self) -> int:
        """Positions of a layer without weights over all passes: the larger of those of the result and of an operand."""
        return self.passes * max(self.frames, self.input_frames or 0)

    @property
    def elements(self) -> int:
        """Elements of a layer without weights over all passes."""
        return self.out_channels * self.worked_frames


def executed_shape(layer: Layer, frames: int, dilation: Dilation, *, streaming: bool = False) -> Shape:
    """The shape in which a chip with this dilation mode runs a layer over `frames` frames.

    Streaming gathers the taps from the state, so dilation costs nothing there.

    `expand` has a native factor n (Ethos-U: 2, `fixup_dilation_gt2` of Vela 5.2.0). The hardware takes n of a dilation d that is
    a multiple of n. The rest, d / n or d, expands the kernel to (K - 1) * rest + 1 taps.
    """
    positions, read = layer.written(frames), layer.read(frames)
    if layer.kind is LayerKind.TRANSPOSED:
        columns = layer.out_channels * layer.taps
        return Shape(LayerKind.CONV, layer.in_channels, columns, 1, read, 0, groups=layer.groups)
    if layer.kind not in (LayerKind.CONV, LayerKind.DEPTHWISE):
        passes = PASSES.get(layer.kind, 1)
        operands = 2 if layer.kind in (LayerKind.ADD, LayerKind.MULTIPLY) else passes
        return Shape(
            LayerKind.ADD,
            layer.in_channels,
            layer.out_channels,
            1,
            positions,
            0,
            operands=operands,
            input_frames=_unlike(read, positions),
            passes=passes,
        )
    frames, taps = positions, layer.kernel_size
    if taps > 1 and layer.dilation > 1 and not streaming:
        match dilation.mode:
            case "expand":
                native = dilation.native_factor
                rest = layer.dilation // native if layer.dilation % native == 0 else layer.dilation
                taps = (layer.kernel_size - 1) * rest + 1
            case "fold_time":
                frames = -(-frames // layer.dilation) * layer.dilation
            case "native":
                pass
    taps *= layer.kernel_height
    per_tap = layer.out_channels * (layer.in_channels // layer.groups if layer.kind is LayerKind.CONV else 1)
    zeros = (taps - layer.taps) * per_tap
    history = layer.kernel_size - 1 if streaming else 0
    input_frames = _unlike(read, positions)
    return Shape(
        layer.kind, layer.in_channels, layer.out_channels, taps, frames, zeros, history, layer.groups, input_frames=input_frames
    )


def _unlike(read: int, written: int) -> int | None:
    """Positions of the input, or None if they equal those of the output."""
    return None if read == written else read
