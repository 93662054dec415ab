"""Workloads of which parts can be left out: layers, and channels.

An *option* changes some layers. Each of its values is a number; the largest stands for the whole network. A sum that has lost one
of its inputs is replaced by the other, and one that has lost both is gone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from hw_models.errors import TargetError
from hw_models.workload import IntArray, Layer, LayerKind, Workload


@dataclass(frozen=True)
class Option:
    """Something that can be left out.

    Attributes:
        name: of the option.
        values: in rising order; the last one stands for the whole network.
        layers: at each value but the last, the layers that it changes, by name; None for those that are gone. Sums that are
            passed by are not among them.
        channels: at each value but the last, the channels of the activation sites whose number it changes.
    """

    name: str
    values: tuple[int, ...]
    layers: Mapping[int, Mapping[str, Layer | None]]
    channels: Mapping[int, Mapping[str, int]]

    def __post_init__(self) -> None:
        """Raise `TargetError` for an option that removes some layers and narrows others."""
        changed = [layer is None for layers in self.layers.values() for layer in layers.values()]
        if any(changed) and not all(changed):
            raise TargetError(f"option '{self.name}' removes layers and narrows others; wanted an option for each")

    @property
    def removes(self) -> bool:
        """Whether the option leaves out layers, and not channels."""
        return any(layer is None for layers in self.layers.values() for layer in layers.values())


@dataclass(frozen=True)
class ElasticWorkload:
    """A network and what can be left out of it.

    At most one option narrows a layer or site, and at most one removes it.

    Attributes:
        workload: the whole network.
        options: in the order of the columns of a structure.
    """

    workload: Workload
    options: tuple[Option, ...]

    def __post_init__(self) -> None:
        """Raise `TargetError` for options that are not options of the workload, or that change one layer twice."""
        names = {layer.name for layer in self.workload.layers}
        for removes in (False, True):
            changed = [
                name
                for option in self.options
                if option.removes == removes
                for name in {name for layers in option.layers.values() for name in layers}
            ]
            if unknown := set(changed) - names:
                raise TargetError(f"option: unknown layer '{min(unknown)}', not of workload '{self.workload.name}'")
            if len(changed) > len(set(changed)):
                twice = next(name for name in changed if changed.count(name) > 1)
                raise TargetError(f"layer '{twice}': two options change it; wanted one at most")

    @cached_property
    def column(self) -> Mapping[str, int]:
        """Column of each option in a structure."""
        return {option.name: number for number, option in enumerate(self.options)}

    def structures(self, chosen: Sequence[Mapping[str, int]]) -> IntArray:
        """Convert structures to positions of values `[structures, options]`. What a structure does not name is whole.

        Raises:
            TargetError: an unknown option or value.
        """
        found = np.tile([len(option.values) - 1 for option in self.options], (len(chosen), 1)).astype(np.int64)
        for row, structure in zip(found, chosen, strict=True):
            for name, value in structure.items():
                if name not in self.column:
                    raise TargetError(f"structure: unknown option '{name}', not of workload '{self.workload.name}'")
                values = self.options[self.column[name]].values
                if value not in values:
                    raise TargetError(f"structure: option '{name}' is {value}; wanted one of {list(values)}")
                row[self.column[name]] = values.index(value)
        return found.reshape(len(chosen), len(self.options))

    def narrowed(self, structure: Mapping[str, int]) -> Workload:
        """Return the workload of what a structure keeps.

        Raises:
            TargetError: an unknown option or value, or layers without input.
        """
        (positions,) = self.structures([structure])
        chosen = [(option, option.values[at]) for option, at in zip(self.options, positions.tolist(), strict=True)]
        layers: dict[str, Layer | None] = {layer.name: layer for layer in self.workload.layers}
        channels = dict(self.workload.site_channels)
        for option, value in sorted(chosen, key=lambda each: each[0].removes):  # what is removed may have been narrowed
            layers |= option.layers.get(value, {})
            channels |= option.channels.get(value, {})
        kept = _without_lost_sums(self.workload, [layer for layer in layers.values() if layer is not None])
        used = {site for layer in kept for site in (*layer.input_sites, layer.output_site)}
        left = {site: count for site, count in channels.items() if site in used}
        return replace(self.workload, layers=tuple(kept), site_channels=left)


def _without_lost_sums(workload: Workload, layers: Sequence[Layer]) -> list[Layer]:
    """Leave out sums that have lost an input; what passes them is read in their place."""
    written = {layer.output_site for layer in workload.layers}
    there = {site for site in workload.site_channels if site not in written}
    passes: dict[str, str] = {}
    found = []
    for layer in layers:
        inputs = [passes.get(site, site) for site in layer.input_sites]
        left = [site for site in inputs if site in there]
        if layer.kind is LayerKind.ADD and len(left) < len(inputs):
            if left:
                passes[layer.output_site] = left[0]
            continue
        found.append(replace(layer, input_sites=tuple(inputs)))
        there.add(layer.output_site)
    return found
