"""The network graph: operations in order, the tensors between them, and the trained numbers."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from hwsearch.network.operations import Operation


@dataclass(frozen=True, eq=False)
class Graph:
    """A network as a value.

    Attributes:
        inputs: names of the tensors that come in.
        operations: in the order of execution; each reads inputs and results of those before it.
        outputs: names of the tensors that go out.
        parameters: trained tensors, `OPERATION.weight` and so on.

    Raises:
        ValueError: a tensor that is made twice or never, or parameters other than the operations have.
    """

    inputs: tuple[str, ...]
    operations: tuple[Operation, ...]
    outputs: tuple[str, ...]
    parameters: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        known = set(self.inputs)
        for operation in self.operations:
            if missing := set(operation.inputs) - known:
                raise ValueError(f"operation '{operation.name}' reads '{min(missing)}', which nothing before it makes")
            if operation.name in known:
                raise ValueError(f"two tensors are named '{operation.name}'")
            known.add(operation.name)
        if missing := set(self.outputs) - known:
            raise ValueError(f"the output '{min(missing)}' is made by no operation")
        wanted = {f"{operation.name}.{part}" for operation in self.operations for part in operation.parameters}
        if different := wanted ^ self.parameters.keys():
            raise ValueError(f"the parameter '{min(different)}' is missing, or belongs to no operation")

    @cached_property
    def by_name(self) -> dict[str, Operation]:
        """Operations by name."""
        return {operation.name: operation for operation in self.operations}

    def in_order(self) -> "Graph":
        """The graph with its parameters in the order of its operations: sums over all of them are then the same each time."""
        names = (f"{operation.name}.{part}" for operation in self.operations for part in operation.parameters)
        return replace(self, parameters={name: self.parameters[name] for name in names})

    def on(self, device: torch.device) -> "Graph":
        """The graph with its parameters on a device; those that lie there already are shared."""
        return replace(self, parameters={name: tensor.to(device) for name, tensor in self.parameters.items()})

    @cached_property
    def readers(self) -> dict[str, tuple[Operation, ...]]:
        """For each tensor, the operations that read it, in order. An output that leaves the network is no reader."""
        found: dict[str, list[Operation]] = {name: [] for name in (*self.inputs, *self.by_name)}
        for operation in self.operations:
            for name in dict.fromkeys(operation.inputs):
                found[name].append(operation)
        return {name: tuple(operations) for name, operations in found.items()}

    @cached_property
    def last_reads(self) -> dict[str, tuple[str, ...]]:
        """For each operation, the tensors that nothing needs once it has run."""
        last: dict[str, str] = {}
        for operation in self.operations:
            last |= dict.fromkeys(operation.inputs, operation.name)
        found: dict[str, list[str]] = {name: [] for name in self.by_name}
        for tensor, reader in last.items():
            if tensor not in self.outputs:
                found[reader].append(tensor)
        return {name: tuple(tensors) for name, tensors in found.items()}

    def parameter(self, operation: Operation, part: str) -> Tensor:
        """A trained tensor of an operation."""
        return self.parameters[f"{operation.name}.{part}"]
