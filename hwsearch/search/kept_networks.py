"""The networks that candidates are scored with: those of the base and of the shared network, of what structures keep."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from hwsearch.experiment import Fidelity
from hwsearch.network.channels import ChannelGroup
from hwsearch.separator.allocation import BitAllocation
from hwsearch.separator.fast import FastNetwork, KeptInput
from hwsearch.separator.prepare import PreparedBase
from hwsearch.separator.shared import SharedState

_MOST = 16
"""Structures whose networks are kept at once. Each holds a copy of the weights at several widths."""

Inputs = dict[KeptInput, KeptInput]
"""For each kept input of the base that of another network, whose first layers have other weights."""


@dataclass(frozen=True, eq=False)
class KeptNetwork:
    """What a structure keeps of the base and of the shared network.

    Attributes:
        base: what is kept of the base.
        shared: what is kept of the shared network; None if there is none.
        inputs: inputs whose outputs behind the first layers are kept, of the base and of the shared network; None if the base
            is whole, which keeps them itself.
        integers: whether a subset of the mixtures is scored on integer kernels.
    """

    base: PreparedBase
    shared: SharedState | None
    inputs: tuple[Inputs | None, Inputs]
    integers: bool

    def mask_function(self, allocation: BitAllocation, fidelity: Fidelity) -> Callable[[KeptInput], Tensor]:
        """Make the function of the network at an allocation, with the weights of a fidelity that does not train."""
        networks, inputs = (self._of_shared, self.inputs[1]) if fidelity.on_shared else (self._of_base, self.inputs[0])
        own = networks[fidelity.on_subset].mask_function(allocation)
        if inputs is None:
            return own
        return lambda kept: own(inputs.setdefault(kept, KeptInput(kept.normalised)))

    def steps(self, fidelity: Fidelity) -> int:
        """Return the training steps of the weights at a fidelity that does not train."""
        return self.shared.steps if fidelity.on_shared and self.shared is not None else 0

    @cached_property
    def _of_base(self) -> tuple[FastNetwork, FastNetwork]:
        return self._networks(self.base)

    @cached_property
    def _of_shared(self) -> tuple[FastNetwork, FastNetwork]:
        if self.shared is None:
            raise ValueError("a job at this fidelity wants the shared network")
        return self._networks(self.shared.as_base(self.base))

    def _networks(self, base: PreparedBase) -> tuple[FastNetwork, FastNetwork]:
        """Make the network of a base, and the one for a subset of the mixtures."""
        parts = base.graph, base.calibration, base.quantization
        network = FastNetwork(*parts, weights=base.weights)
        return network, FastNetwork(*parts, weights=base.weights, integers=True) if self.integers else network


@dataclass(eq=False)
class KeptNetworks:
    """The networks of every structure, made when they are needed; the last ones are kept.

    Attributes:
        base: the whole base.
        shared: the whole shared network; None if there is none.
        integers: whether a subset of the mixtures is scored on integer kernels.
    """

    base: PreparedBase
    shared: SharedState | None
    integers: bool
    _found: dict[tuple[tuple[str, int], ...], KeptNetwork] = field(default_factory=dict)
    _inputs: dict[tuple[tuple[str, int], ...], tuple[Inputs, Inputs]] = field(default_factory=dict)

    @cached_property
    def whole(self) -> KeptNetwork:
        """The network with nothing left out."""
        return KeptNetwork(self.base, self.shared, (None, self._inputs_at(())[1]), self.integers)

    def at(self, structure: Mapping[str, int]) -> KeptNetwork:
        """Return what a structure keeps."""
        if not structure:
            return self.whole
        key = tuple(structure.items())
        found = self._found.pop(key, None) or self._make(structure)
        self._found[key] = found
        if len(self._found) > _MOST:
            del self._found[next(iter(self._found))]
        return found

    def _make(self, structure: Mapping[str, int]) -> KeptNetwork:
        first = self._inputs_at(tuple((name, kept) for name, kept in structure.items() if name in self._narrowing_first))
        base = narrowed_base(self.base, self.shared, structure)
        shared = None if self.shared is None else self.shared.narrowed(self.base, structure)
        return KeptNetwork(base, shared, first, self.integers)

    def _inputs_at(self, narrowed: tuple[tuple[str, int], ...]) -> tuple[Inputs, Inputs]:
        """Return the kept inputs of all structures that narrow the layers behind the input in the same way."""
        return self._inputs.setdefault(narrowed, ({}, {}))

    @cached_property
    def _narrowing_first(self) -> frozenset[str]:
        """Groups of channels that shape a layer behind the input."""
        graph = self.base.graph
        first = {operation.name for operation in graph.operations if set(operation.inputs) & set(graph.inputs)}
        groups = self.base.options.by_name.values()
        return frozenset(group.name for group in groups if isinstance(group, ChannelGroup) and group.layers & first)


def narrowed_base(base: PreparedBase, shared: SharedState | None, structure: Mapping[str, int]) -> PreparedBase:
    """Return what a structure keeps of a base.

    If there is a shared network, the channels are kept in its order, in which they were trained.
    """
    return base.narrowed(structure, None if shared is None else shared.orders) if structure else base
