"""The layers of one inference with their shapes, without any framework, and the bit-widths of its tensors."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from hw_models.errors import TargetError

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

FLOAT_BITS: Final = 32
"""Width that means float32."""
WIDTHS: Final = (*range(1, 17), FLOAT_BITS)
"""All bit-widths that a tensor can have."""

_MAX_NAMED = 3


class LayerKind(StrEnum):
    """Operation of a layer."""

    CONV = "conv"  # convolution; pointwise with one tap, a linear layer with one tap and one position
    DEPTHWISE = "depthwise"
    TRANSPOSED = "transposed"  # transposed convolution
    ADD = "add"  # elementwise sum of two tensors of one shape
    MULTIPLY = "multiply"  # elementwise product of two tensors of one shape
    FUNCTION = "function"  # elementwise function that is not part of another layer, such as a sigmoid
    POOL = "pool"  # mean or maximum over windows of positions
    CONCATENATE = "concatenate"  # several tensors joined along channels or positions
    NORM = "norm"  # zero mean and unit variance over channels or positions, then a gain and an offset per channel
    SOFTMAX = "softmax"  # exponentials over their sum, along channels or positions


WEIGHTED: Final = (LayerKind.CONV, LayerKind.DEPTHWISE, LayerKind.TRANSPOSED)
"""Kinds of layers with weights."""

PASSES: Final = {LayerKind.NORM: 2, LayerKind.SOFTMAX: 2}
"""Number of times that a layer of a kind reads its input; 1 for all others. The first pass computes a sum, the second the
output."""

_PAIRS: Final = (LayerKind.ADD, LayerKind.MULTIPLY)


@dataclass(frozen=True)
class Layer:
    """One operation on `[channels, positions]` tensors. Positions are frames, or the pixels of a feature map.

    `weight_site`, `input_sites` and `output_site` name the tensors whose bit-widths an allocation chooses. A function whose input
    and output site are the same works in place.

    Attributes:
        kernel_size: taps along the frames, `dilation` frames apart.
        positions: positions of the output, or None for the workload's frames.
        input_positions: positions of the input, or None for those of the output; a stride makes them more.
        kernel_height: taps along the second axis of a feature map.
        groups: groups of a convolution's channels; 1 for a depthwise layer.
        whole: whether the layer reads and writes whole tensors. After a split, a crop or padding a layer reads another number of
            channels or positions than the tensor has, a broadcasting sum reads a tensor repeatedly, and a layer before a
            concatenation writes part of a tensor.
        over_positions: whether a norm or softmax is over the positions and needs all of them first.
        ahead: frames of look-ahead of the kernel, or None to follow the workload's `causal`.
        constants: number of trained float32 values other than weights and biases: gains and offsets of a norm, slopes of the
            layer's activation function.
    """

    name: str
    kind: LayerKind
    in_channels: int
    out_channels: int
    kernel_size: int
    dilation: int
    weight_site: str | None
    input_sites: tuple[str, ...]
    output_site: str
    bias: bool
    positions: int | None = None
    input_positions: int | None = None
    kernel_height: int = 1
    groups: int = 1
    whole: bool = True
    over_positions: bool = False
    ahead: int | None = None
    constants: int = 0

    def __post_init__(self) -> None:
        """Raise `TargetError` for an impossible shape."""
        sizes = (self.in_channels, self.out_channels, self.kernel_size, self.dilation, self.kernel_height, self.groups)
        if min(sizes) < 1:
            raise TargetError(
                f"layer '{self.name}': channels, kernel_size, dilation, kernel_height, groups are {sizes}; wanted 1 or more"
            )
        if any(count is not None and count < 1 for count in (self.positions, self.input_positions)):
            found = f"{self.input_positions} positions in and {self.positions} out"
            raise TargetError(f"layer '{self.name}': {found}; wanted 1 or more")
        self._check_sites()
        self._check_channels()

    def _check_sites(self) -> None:
        wanted = 2 if self.kind in _PAIRS or (self.kind is LayerKind.CONCATENATE and self.whole) else 1
        sites = len(self.input_sites)
        if sites < wanted or (sites > wanted and self.kind is not LayerKind.CONCATENATE):
            raise TargetError(f"layer '{self.name}': {sites} input sites; a {self.kind} has {wanted}")
        if (self.weight_site is None) == (self.kind in WEIGHTED):
            wanted_site = "one" if self.kind in WEIGHTED else "none"
            raise TargetError(f"layer '{self.name}': weight_site is {self.weight_site!r}; a {self.kind} has {wanted_site}")

    def _check_channels(self) -> None:
        found = f"{self.in_channels} channels in and {self.out_channels} out"
        if self.kind not in (LayerKind.CONV, LayerKind.TRANSPOSED):
            if self.in_channels != self.out_channels:
                raise TargetError(f"layer '{self.name}': {found}; a {self.kind} layer keeps their number")
            if self.groups > 1:
                raise TargetError(f"layer '{self.name}': {self.groups} groups; a {self.kind} layer has none")
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise TargetError(f"layer '{self.name}': {found}; wanted multiples of its {self.groups} groups")

    @property
    def taps(self) -> int:
        """Taps of the kernel along both axes."""
        return self.kernel_size * self.kernel_height

    @property
    def fan_in(self) -> int:
        """Number of weights of one output element, in a transposed convolution for one tap; 0 without weights."""
        match self.kind:
            case LayerKind.CONV:
                return self.taps * self.in_channels // self.groups
            case LayerKind.DEPTHWISE:
                return self.taps
            case LayerKind.TRANSPOSED:
                return self.in_channels // self.groups
        return 0

    @property
    def weight_count(self) -> int:
        """Elements of the weight tensor."""
        return self.fan_in * self.out_channels * (self.taps if self.kind is LayerKind.TRANSPOSED else 1)

    def macs(self, frames: int) -> int:
        """Multiply-accumulates of an inference over `frames` frames: every weight once per position.

        The positions are those of the output, in a transposed convolution those of the input.
        """
        return self.weight_count * (self.read(frames) if self.kind is LayerKind.TRANSPOSED else self.written(frames))

    def written(self, frames: int) -> int:
        """Positions of the output of an inference over `frames` frames."""
        return frames if self.positions is None else self.positions

    def read(self, frames: int) -> int:
        """Positions of the input of an inference over `frames` frames."""
        return self.written(frames) if self.input_positions is None else self.input_positions

    @property
    def keeps_frames(self) -> bool:
        """Whether the layer works frame by frame along one axis and keeps their number."""
        everywhere = self.positions is None and self.input_positions is None
        return everywhere and self.kernel_height == 1 and not self.over_positions

    @property
    def in_place(self) -> bool:
        """Whether the layer overwrites its input."""
        return self.kind is LayerKind.FUNCTION and self.input_sites == (self.output_site,)


@dataclass(frozen=True)
class Workload:
    """One inference: layers in execution order over `frames` frames.

    `site_channels` maps each activation site to its channels, in the order of the activation columns of `bits`. A site that no
    layer writes is an input of the network; one that no layer reads is an output. The channels of a concatenation's inputs add up
    to its own. Several layers may write a site, each a part of it.

    The kernels of a `causal` network end at the current frame, those of others are centred on it. A `streaming` workload is one
    frame of an endless input; past frames that its kernels need are kept (`state_frames`).
    """

    name: str
    layers: tuple[Layer, ...]
    frames: int
    frame_seconds: float
    per_channel_scales: bool
    site_channels: Mapping[str, int] = field(hash=False)
    causal: bool = False
    streaming: bool = False

    def __post_init__(self) -> None:
        """Raise `TargetError` unless the layers form a graph that can run in order."""
        if not self.layers or self.frames < 1 or self.frame_seconds <= 0:
            found = f"{len(self.layers)} layers, {self.frames} frames of {self.frame_seconds} s"
            raise TargetError(f"workload '{self.name}': {found}; wanted a layer, a frame and a positive hop")
        if self.streaming and self.frames != 1:
            raise TargetError(f"workload '{self.name}': streaming {self.frames} frames at once; wanted one")
        if self.streaming and (other := [layer.name for layer in self.layers if not layer.keeps_frames]):
            raise TargetError(
                f"workload '{self.name}': streaming layer '{other[0]}'; wanted layers that work frame by frame, along one axis"
            )
        for what, names in (
            ("layer", [layer.name for layer in self.layers]),
            ("weight site", self.weight_sites),
            ("written site", self._written_whole),
            ("site", self.sites),
        ):
            if duplicates := _duplicates(names):
                raise TargetError(f"workload '{self.name}': {what} '{duplicates[0]}' occurs twice")
        self._check_graph()

    @property
    def _written_whole(self) -> list[str]:
        """Sites in the order in which layers write them; a site that several layers write in parts occurs once."""
        whole = [layer.output_site for layer in self.layers if layer.whole and not layer.in_place]
        return [*whole, *{layer.output_site for layer in self.layers if not layer.whole and not layer.in_place}]

    @cached_property
    def writers(self) -> Mapping[str, tuple[int, ...]]:
        """Indices of the layers that write each site, without functions in place."""
        found: dict[str, list[int]] = {}
        for number, layer in enumerate(self.layers):
            if not layer.in_place:
                found.setdefault(layer.output_site, []).append(number)
        return {site: tuple(numbers) for site, numbers in found.items()}

    def _check_graph(self) -> None:
        for i, layer in enumerate(self.layers):
            self._check_channels(layer)
            for site in layer.input_sites:
                written = self.writers.get(site, (-1,))
                if (written[0] if layer.in_place else written[-1]) >= i:
                    raise TargetError(f"layer '{layer.name}': site '{site}' is read before a layer writes it")
                if layer.whole and self.site_positions[site] != layer.read(self.frames):
                    found = f"site '{site}' has {self.site_positions[site]} positions"
                    raise TargetError(f"layer '{layer.name}': {found}; the layer reads {layer.read(self.frames)}")
        used = {site for layer in self.layers for site in (*layer.input_sites, layer.output_site)}
        if unused := [site for site in self.site_channels if site not in used]:
            raise TargetError(f"workload '{self.name}': no layer reads or writes site '{unused[0]}'")

    def _check_channels(self, layer: Layer) -> None:
        for site in (*layer.input_sites, layer.output_site):
            if site not in self.site_channels:
                raise TargetError(f"layer '{layer.name}': activation site '{site}' is not in site_channels")
        if not layer.whole:
            self._check_parts(layer.output_site)
            return
        if layer.kind is LayerKind.CONCATENATE:
            together = sum(self.site_channels[site] for site in layer.input_sites)
            if together != layer.in_channels:
                raise TargetError(
                    f"layer '{layer.name}': its inputs have {together} channels; the layer wants {layer.in_channels}"
                )
        for site, channels in _declared_channels(layer):
            if self.site_channels[site] != channels:
                found = f"site '{site}' has {self.site_channels[site]} channels"
                raise TargetError(f"layer '{layer.name}': {found}; the layer wants {channels}")

    def _check_parts(self, site: str) -> None:
        """Raise `TargetError` unless the parts of a tensor add up to it along one axis and are whole along the other."""
        parts = [self.layers[i] for i in self.writers.get(site, ())]
        channels = [layer.out_channels for layer in parts]
        along_channels = sum(channels) == self.site_channels[site] and len({part.written(self.frames) for part in parts}) == 1
        if parts and not along_channels and set(channels) != {self.site_channels[site]}:
            found = f"site '{site}' has {self.site_channels[site]} channels"
            raise TargetError(f"layer '{parts[-1].name}': {found}; the layers that write it have {sum(channels)}")

    @cached_property
    def site_positions(self) -> Mapping[str, int]:
        """Frames or pixels of each activation site: those that its layers write, or that are read of an input.

        An input of which only parts are read has the workload's frames.
        """
        positions: dict[str, int] = {}
        for site, numbers in self.writers.items():
            written = [self.layers[i].written(self.frames) for i in numbers]
            along_channels = sum(self.layers[i].out_channels for i in numbers) == self.site_channels.get(site)
            positions[site] = max(written) if along_channels else sum(written)
        for layer in self.layers:
            for site in layer.input_sites if layer.whole else ():
                positions.setdefault(site, layer.read(self.frames))
        return dict.fromkeys(self.site_channels, self.frames) | positions

    @cached_property
    def weight_sites(self) -> tuple[str, ...]:
        """Sites of weights, in execution order."""
        return tuple(layer.weight_site for layer in self.layers if layer.weight_site is not None)

    def streamed(self) -> "Workload":
        """The same network run frame by frame."""
        return replace(self, frames=1, streaming=True)

    @property
    def seconds(self) -> float:
        """Duration of the input of one inference."""
        return self.frames * self.frame_seconds

    @cached_property
    def delay_frames(self) -> Mapping[str, int]:
        """Frames by which each activation site lags behind the network's input, because centred kernels look ahead."""
        delays = dict.fromkeys(self.site_channels, 0)
        for layer in self.layers:
            delays[layer.output_site] = max(delays[layer.output_site], self._delay(layer, delays))
        return delays

    def _delay(self, layer: Layer, delays: Mapping[str, int]) -> int:
        """Frames by which the output of a layer lags behind."""
        centred = 0 if self.causal else (layer.kernel_size - 1) * layer.dilation // 2
        return max(delays[site] for site in layer.input_sites) + (centred if layer.ahead is None else layer.ahead)

    @cached_property
    def state_frames(self) -> Mapping[str, int]:
        """Past frames of each activation site kept between two frames of a streaming inference; 0 in any other.

        Dilated kernels need them, and so do sums and concatenations whose operands have different delays.
        """
        kept = dict.fromkeys(self.site_channels, 0)
        if self.streaming:
            for layer in self.layers:
                latest = max(self.delay_frames[site] for site in layer.input_sites)
                for site in layer.input_sites:
                    reach = (layer.kernel_size - 1) * layer.dilation + latest - self.delay_frames[site]
                    kept[site] = max(kept[site], reach)
                waits = self.delay_frames[layer.output_site] - self._delay(layer, self.delay_frames)
                if not layer.in_place:
                    kept[layer.output_site] = max(kept[layer.output_site], waits)
        return kept

    @cached_property
    def input_channels(self) -> int:
        """Number of channels of the network's inputs."""
        written = {layer.output_site for layer in self.layers}
        return sum(channels for site, channels in self.site_channels.items() if site not in written)

    @cached_property
    def input_elements(self) -> int:
        """Number of values of the network's inputs in one inference."""
        written = {layer.output_site for layer in self.layers}
        inputs = self.site_channels.keys() - written
        return sum(self.site_channels[site] * self.site_positions[site] for site in inputs)

    @cached_property
    def activation_sites(self) -> tuple[str, ...]:
        """Activation sites, in the order of `site_channels`."""
        return tuple(self.site_channels)

    @cached_property
    def sites(self) -> tuple[str, ...]:
        """All sites, in the order of the columns of `bits`: weights, then activations."""
        return (*self.weight_sites, *self.activation_sites)

    @cached_property
    def column(self) -> dict[str, int]:
        """Column of `bits` of each site."""
        return {site: i for i, site in enumerate(self.sites)}

    @cached_property
    def weight_layers(self) -> tuple[Layer, ...]:
        """Layers with weights, in execution order: one per weight column."""
        return tuple(layer for layer in self.layers if layer.weight_site is not None)

    @cached_property
    def weight_counts(self) -> IntArray:
        """Elements `[weight layers]` of each weight tensor."""
        return np.array([layer.weight_count for layer in self.weight_layers], np.int64)

    @cached_property
    def scale_counts(self) -> IntArray:
        """Scales `[weight layers]` of each weight tensor; the groups of a transposed convolution share theirs."""
        if not self.per_channel_scales:
            return np.ones(len(self.weight_layers), np.int64)
        sharing = [layer.groups if layer.kind is LayerKind.TRANSPOSED else 1 for layer in self.weight_layers]
        return np.array([layer.out_channels for layer in self.weight_layers], np.int64) // np.array(sharing, np.int64)

    @cached_property
    def constant_count(self) -> int:
        """Number of biases and other constants, which are float32 at all widths."""
        return sum(layer.out_channels * layer.bias + layer.constants for layer in self.layers)

    @property
    def parameters(self) -> int:
        """Number of weights, biases and other constants."""
        return int(self.weight_counts.sum()) + self.constant_count

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the whole inference."""
        return sum(layer.macs(self.frames) for layer in self.layers)


def bits_matrix(workload: Workload, allocations: Sequence[Mapping[str, int]]) -> IntArray:
    """Bit-widths `[allocations, sites]`, columns in the order of `workload.sites`; 32 means float32.

    Raises:
        TargetError: an allocation lacks a site, names an unknown one, or has a width not in `WIDTHS`.
    """
    wanted = workload.column.keys()
    for allocation in allocations:
        if unknown := allocation.keys() - wanted:
            raise TargetError(f"allocation: unknown site {_some(unknown)}, not of workload '{workload.name}'")
        if missing := wanted - allocation.keys():
            raise TargetError(f"allocation: no bits for site {_some(missing)} of workload '{workload.name}'")
    rows = [[allocation[site] for site in workload.sites] for allocation in allocations]
    bits = np.array(rows, np.int64).reshape(len(rows), len(workload.sites))
    check_bits(workload, bits)
    return bits


def check_bits(workload: Workload, bits: IntArray) -> None:
    """Raise `TargetError` for a matrix that is not `[allocations, sites]` with widths in `WIDTHS`."""
    if bits.ndim != 2 or bits.shape[1] != len(workload.sites):
        wanted = f"[allocations, {len(workload.sites)}]"
        raise TargetError(f"bits of shape {bits.shape}; wanted {wanted} for workload '{workload.name}'")
    wrong = (bits < 1) | ((bits > 16) & (bits != FLOAT_BITS))
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        site = workload.sites[column]
        raise TargetError(f"site '{site}': found {bits[row, column]} bits; wanted 1 to 16, or 32 for float32")


def _declared_channels(layer: Layer) -> tuple[tuple[str, int], ...]:
    inputs = () if layer.kind is LayerKind.CONCATENATE else tuple((site, layer.in_channels) for site in layer.input_sites)
    return (*inputs, (layer.output_site, layer.out_channels))


def _duplicates(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    rest = f" and {len(ordered) - _MAX_NAMED} more" if len(ordered) > _MAX_NAMED else ""
    return ", ".join(f"'{name}'" for name in ordered[:_MAX_NAMED]) + rest
