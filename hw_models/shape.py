"""The shape of a layer as a chip runs it: what dilation makes of the kernel and of the frames."""

from dataclasses import dataclass

from hw_models.sections import Dilation
from hw_models.workload import Layer, LayerKind


@dataclass(frozen=True)
class Shape:
    """A layer as executed; `taps` and `frames` hold what the dilation mode adds, `history` the frames of state it reads."""

    kind: LayerKind
    in_channels: int
    out_channels: int
    taps: int
    frames: int
    inserted_zeros: int
    history: int = 0

    @property
    def macs(self) -> int:
        """Multiply-accumulates executed, on inserted zeros and padded frames too; 0 for an `add`."""
        if self.kind is LayerKind.ADD:
            return 0
        inputs = self.in_channels if self.kind is LayerKind.CONV else 1
        return inputs * self.taps * self.out_channels * self.frames

    @property
    def outputs(self) -> int:
        """Elements written."""
        return self.out_channels * self.frames

    @property
    def inputs(self) -> int:
        """Elements read once: both operands of an `add`."""
        operands = 2 if self.kind is LayerKind.ADD else 1
        return operands * self.in_channels * (self.frames + self.history)


def executed_shape(layer: Layer, frames: int, dilation: Dilation, *, streaming: bool = False) -> Shape:
    """The shape that a chip with this dilation mode runs for a layer over `frames` frames.

    Streaming gathers the taps from the state, wherever they lie, so that dilation costs nothing.

    `expand` with a native factor n (Ethos-U: 2, `fixup_dilation_gt2` of Vela 5.2.0): a dilation d that n
    divides leaves d / n to the kernel, any other leaves d, so the kernel grows to (K - 1) * rest + 1 taps.
    """
    taps = layer.kernel_size
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
    per_tap = layer.out_channels * (layer.in_channels if layer.kind is LayerKind.CONV else 1)
    zeros = (taps - layer.kernel_size) * per_tap
    history = layer.kernel_size - 1 if streaming else 0
    return Shape(layer.kind, layer.in_channels, layer.out_channels, taps, frames, zeros, history)
