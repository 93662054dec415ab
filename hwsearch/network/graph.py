"""The network graph."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from hwsearch.network.operations import Operation

if TYPE_CHECKING:  # torch is slow to load, and what only reads the structure does not need it
    import torch
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Graph:
    """A network as a value.

    Attributes:
        inputs: names of the input tensors.
        operations: in the order of execution.
        outputs: names of the output tensors.
        parameters: trained tensors by name, `OPERATION.weight` and so on.

    Raises:
        ValueError: a tensor is made twice or never, or the parameters are not those of the operations.
    """

    inputs: tuple[str, ...]
    operations: tuple[Operation, ...]
    outputs: tuple[str, ...]
    parameters: "Mapping[str, Tensor]"

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
        """The operations by name."""
        return {operation.name: operation for operation in self.operations}

    def in_order(self) -> "Graph":
        """Sort the parameters as the operations are, so that sums over all of them are reproducible."""
        names = (f"{operation.name}.{part}" for operation in self.operations for part in operation.parameters)
        return replace(self, parameters={name: self.parameters[name] for name in names})

    def on(self, device: "torch.device") -> "Graph":
        """Move the parameters to a device; those that are there already are shared."""
        return replace(self, parameters={name: tensor.to(device) for name, tensor in self.parameters.items()})

    @cached_property
    def readers(self) -> dict[str, tuple[Operation, ...]]:
        """The operations that read each tensor, in order."""
        found: dict[str, list[Operation]] = {name: [] for name in (*self.inputs, *self.by_name)}
        for operation in self.operations:
            for name in dict.fromkeys(operation.inputs):
                found[name].append(operation)
        return {name: tuple(operations) for name, operations in found.items()}

    @cached_property
    def last_reads(self) -> dict[str, tuple[str, ...]]:
        """The tensors that nothing needs any more after each operation."""
        last: dict[str, str] = {}
        for operation in self.operations:
            last |= dict.fromkeys(operation.inputs, operation.name)
        found: dict[str, list[str]] = {name: [] for name in self.by_name}
        for tensor, reader in last.items():
            if tensor not in self.outputs:
                found[reader].append(tensor)
        return {name: tuple(tensors) for name, tensors in found.items()}

    def parameter(self, operation: Operation, part: str) -> "Tensor":
        """Return a trained tensor of an operation."""
        return self.parameters[f"{operation.name}.{part}"]
