"""The shape of every layer of an elastic workload in some configurations, and what follows from shapes and widths alone.

Every layer has a row for each shape that it can have; row 0 stands for a layer that is gone. A tensor that passes a sum takes the
place of the sum's result, with its own bit-width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from hw_models.elastic import ElasticWorkload, Option
from hw_models.errors import TargetError
from hw_models.packed import FILE_HEADER_BYTES, FLOAT_BYTES, INPUT_CHANNEL_BYTES, RECORD_BYTES, stream_bytes
from hw_models.workload import FloatArray, IntArray, Layer, LayerKind, Workload, check_bits

BoolArray = npt.NDArray[np.bool_]

_Form = TypeVar("_Form")


@dataclass(frozen=True, eq=False)
class Chosen:
    """What an option decides for each layer or site.

    Attributes:
        option: `[layers or sites]` column of the option, or of a constant behind the last option.
        value: `[layers or sites, values]` by position of the option's value.
    """

    option: IntArray
    value: IntArray

    def of(self, structures: IntArray) -> IntArray:
        """Values `[layers or sites, structures]`, given positions of values `[options + 1, structures]`."""
        found: IntArray = self.value[np.arange(len(self.value))[:, None], structures[self.option]]
        return found


@dataclass(frozen=True, eq=False)
class ElasticShapes:
    """The shapes that layers and sites can have.

    Attributes:
        elastic: the network and its options.
        layers: the rows of the layers.
        there: 0 where a layer is gone, else 1.
        forms: the layer of each row but the first.
        counts: `[rows, 4]` weights, scales, other constants and multiply-accumulates.
        sites: the rows of the activation sites in `channels`.
        channels: `[rows]` channels of an activation.
    """

    elastic: ElasticWorkload
    layers: Chosen
    there: Chosen
    forms: tuple[Layer, ...]
    counts: IntArray
    sites: Chosen
    channels: tuple[int, ...]

    @property
    def workload(self) -> Workload:
        """The whole network."""
        return self.elastic.workload

    def check(self, bits: IntArray, structures: IntArray) -> None:
        """Raise `TargetError` for a wrong shape or width of configurations; see `Kept`."""
        check_bits(self.workload, bits)
        wanted = (len(bits), len(self.elastic.options))
        if structures.shape != wanted:
            raise TargetError(f"structures of shape {structures.shape}; wanted {wanted}")


def elastic_shapes(elastic: ElasticWorkload) -> ElasticShapes:
    """List the shapes of an elastic workload."""
    workload = elastic.workload
    layers = [_forms(elastic, layer.name, layer, lambda option: option.layers) for layer in workload.layers]
    sites = [_forms(elastic, site, count, lambda option: option.channels) for site, count in workload.site_channels.items()]
    forms = tuple(layer for _, own in layers for layer in own)
    return ElasticShapes(
        elastic=elastic,
        layers=_numbered(elastic, layers, first=1),
        there=_there(elastic),
        forms=forms,
        counts=np.array([[0, 0, 0, 0], *(_counts(workload, layer) for layer in forms)], np.int64),
        sites=_numbered(elastic, sites, first=0),
        channels=tuple(count for _, counts in sites for count in counts),
    )


class Kept:
    """What is kept of the network in some configurations.

    Args:
        shapes: of the network.
        bits: widths `[configurations, sites]` of the whole network; those of what is left out do not matter.
        structures: positions of values `[configurations, options]` (`ElasticWorkload.structures`).

    Attributes:
        rows: `[layers, configurations]` the row of each layer; 0 if it is gone.
        bits: `[sites, configurations]` widths; a sum that is passed by has that of what passes it.
        there: `[activation sites, configurations]` whether a tensor is there.
        passes: sums that are passed by: the activation site of the sum, that of what passes it, and in which configurations.
    """

    def __init__(self, shapes: ElasticShapes, bits: IntArray, structures: IntArray) -> None:
        self.shapes, workload = shapes, shapes.workload
        self._first = len(workload.sites) - len(workload.activation_sites)
        self.structures = np.concatenate([structures.T, np.zeros((1, len(bits)), np.int64)])
        self.bits = bits.T.copy()
        self.rows = shapes.layers.of(self.structures) * shapes.there.of(self.structures)
        self.there = np.ones((len(workload.activation_sites), len(bits)), np.bool_)
        self.passes: list[tuple[int, int, BoolArray]] = []
        for number, layer in enumerate(workload.layers):
            if not layer.in_place:
                self._take(number, layer)

    @property
    def activation_bits(self) -> IntArray:
        """Widths `[activation sites, configurations]`."""
        return self.bits[self._first :]

    def sites_there(self) -> BoolArray:
        """Whether each site belongs to what is kept, `[sites, configurations]`."""
        passed = np.zeros_like(self.there)
        for place, _, where in self.passes:
            passed[place] |= where
        return np.concatenate([self.rows[self._weighted] > 0, self.there & ~passed])

    def average_weight_bits(self, *, inner: bool = False) -> FloatArray:
        """Mean weight bit-width `[configurations]`, as `packed.average_weight_bits`; with `inner` without the first and the last
        layer that are kept, if there are others.
        """
        weights = self.shapes.counts[self.rows[self._weighted], 0].astype(np.float64)
        if inner and len(weights):
            there = weights > 0
            each = np.arange(weights.shape[1])
            outer = np.zeros_like(there)
            outer[there.argmax(axis=0), each] = True
            outer[len(there) - 1 - there[::-1].argmax(axis=0), each] = True
            weights = np.where(outer & (there.sum(axis=0) > 2), 0.0, weights)
        total = weights.sum(axis=0)
        mean: FloatArray = (weights * self.bits[: len(weights)]).sum(axis=0) / np.where(total > 0, total, np.nan)
        return mean

    def counts(self) -> tuple[IntArray, IntArray, IntArray]:
        """Bytes of the packed file, multiply-accumulates, and bit operations, `[configurations]` each."""
        workload = self.shapes.workload
        weighted = self._weighted
        weights, scales, constants, macs = self.shapes.counts[self.rows].transpose(2, 0, 1)
        widths = self.bits[: len(weighted)]
        written = [numbers[0] for numbers in workload.writers.values()]
        inputs = len(workload.activation_sites) - len(written)
        records = (self.rows[weighted] > 0).sum(axis=0) + (self.rows[written] > 0).sum(axis=0) + inputs
        fixed = FILE_HEADER_BYTES + INPUT_CHANNEL_BYTES * workload.input_channels
        streams = stream_bytes(weights[weighted], scales[weighted], widths).sum(axis=0)
        packed = streams + RECORD_BYTES * records + FLOAT_BYTES * constants.sum(axis=0) + fixed
        read = self.bits[[workload.column[workload.layers[number].input_sites[0]] for number in weighted]]
        return packed, macs.sum(axis=0), (macs[weighted] * widths * read).sum(axis=0)

    def place(self, site: str) -> int:
        """Return the place of an activation site among the activation sites."""
        return self.shapes.workload.column[site] - self._first

    @cached_property
    def _weighted(self) -> list[int]:
        """The layers with weights."""
        return [number for number, layer in enumerate(self.shapes.workload.layers) if layer.weight_site is not None]

    def _take(self, number: int, layer: Layer) -> None:
        """See which tensors are there behind a layer."""
        place = self.place(layer.output_site)
        if layer.kind is not LayerKind.ADD:
            self.there[place] = self.rows[number] > 0
            return
        first, second = (self.place(site) for site in layer.input_sites)
        a, b = self.there[first], self.there[second]
        if a.all() and b.all():
            self.there[place] = self.rows[number] > 0
            return
        both = a & b
        own = self.bits[self._first + place]
        passing = np.where(a, self.bits[self._first + first], self.bits[self._first + second])
        self.bits[self._first + place] = np.where(both, own, passing)
        self.passes += [(place, first, a & ~b), (place, second, b & ~a)]
        self.there[place] = a | b
        self.rows[number] = np.where(both, self.rows[number], 0)


def _forms(
    elastic: ElasticWorkload, name: str, whole: _Form, changed: Callable[[Option], Mapping[int, Mapping[str, _Form | None]]]
) -> tuple[int, list[_Form]]:
    """The column of the option that narrows a layer or site, and what that is at each of its values."""
    for column, option in enumerate(elastic.options):
        if not option.removes and any(name in layers for layers in changed(option).values()):
            return column, [changed(option).get(value, {}).get(name) or whole for value in option.values]
    return len(elastic.options), [whole]


def _numbered(elastic: ElasticWorkload, forms: Sequence[tuple[int, Sequence[object]]], first: int) -> Chosen:
    """Number all forms of layers or sites, from `first` on."""
    value = np.zeros((len(forms), _most_values(elastic)), np.int64)
    for row, (_, own) in zip(value, forms, strict=True):
        row[:] = first
        row[: len(own)] = np.arange(first, first + len(own))
        first += len(own)
    return Chosen(np.array([column for column, _ in forms], np.int64), value)


def _there(elastic: ElasticWorkload) -> Chosen:
    """Which layers are there."""
    place = {layer.name: number for number, layer in enumerate(elastic.workload.layers)}
    option = np.full(len(place), len(elastic.options), np.int64)
    value = np.ones((len(place), _most_values(elastic)), np.int64)
    for column, each in enumerate(elastic.options):
        for position, layers in enumerate(each.layers.get(value, {}) for value in each.values):
            for name in layers if each.removes else ():
                option[place[name]] = column
                value[place[name], position] = 0
    return Chosen(option, value)


def _most_values(elastic: ElasticWorkload) -> int:
    return max((len(option.values) for option in elastic.options), default=1)


def _counts(workload: Workload, layer: Layer) -> list[int]:
    """Weights, scales, other constants and multiply-accumulates of a layer."""
    sharing = layer.groups if layer.kind is LayerKind.TRANSPOSED else 1
    scales = layer.out_channels // sharing if workload.per_channel_scales else 1
    weighted = layer.weight_site is not None
    constants = layer.out_channels * layer.bias + layer.constants
    return [layer.weight_count, scales if weighted else 0, constants, layer.macs(workload.frames)]
