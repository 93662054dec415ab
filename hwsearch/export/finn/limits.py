"""What FINN takes of a network and its bit-widths. The search refuses the rest before it begins, and so does the exporter."""

from collections.abc import Container, Mapping

from hwsearch.errors import UserError
from hwsearch.experiment import NARROW_BITS, WIDE_BITS
from hwsearch.network import operations as ops
from hwsearch.network.graph import Graph
from hwsearch.network.sites import Sites, find_sites
from hwsearch.separator.allocation import is_weight

_UNTIE = "or quantization.tied_adds = false and no FINN"
_BENT = (ops.PReLU, ops.LeakyReLU)
_FUNCTIONS = (*_BENT, ops.Elementwise)


def check_operations(graph: Graph) -> None:
    """Refuse operations that FINN has no circuit for.

    Raises:
        UserError: an operation; names it.
    """
    rounded = find_sites(graph).grids
    for before, operation in zip((*graph.inputs, *graph.by_name), graph.operations, strict=False):
        if (wrong := _wrong(graph, operation) or _wrongly_read(graph, operation, before, rounded)) is not None:
            raise UserError(
                f"separator: '{operation.name}' is {wrong}; FINN takes plain and depthwise convolutions that keep the frames, "
                f"sums, ReLU and PReLU: wanted such a network, {_UNTIE}"
            )


def check_slopes(graph: Graph) -> None:
    """Refuse slopes that no thresholds can follow.

    Raises:
        UserError: a negative slope; names it.
    """
    for operation in graph.operations:
        if isinstance(operation, _BENT):
            least = operation.slope if isinstance(operation, ops.LeakyReLU) else float(graph.parameter(operation, "slope").min())
            if least < 0:
                raise UserError(
                    f"separator.activation: '{operation.name}' has the slope {least:.3g}; FINN's thresholds want slopes of at "
                    f"least 0: wanted a base with such slopes, or 'relu', {_UNTIE}"
                )


def check_widths(sites: Sites, widths: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse widths that FINN has no circuit for.

    Args:
        sites: of the network.
        widths: that each site may take.

    Raises:
        UserError: a width; names the site, and the key that gives it.
    """
    sums = {site for tie in sites.ties for site in tie.sums}
    for site, bits in widths.items():
        wanted = (WIDE_BITS,) if site in sums else tuple(range(1, NARROW_BITS + 1))
        if wrong := [each for each in bits if each not in wanted]:
            key = "trunk_bits" if site in sites.carried else "weight_bits" if is_weight(site) else "activation_bits"
            raise UserError(
                f"search.{key}: '{site}' may have {wrong[0]} bits; FINN takes at most {NARROW_BITS}, and {WIDE_BITS} only in "
                f"sums that share one scale: wanted at most {NARROW_BITS}, {_UNTIE}"
            )


def _wrong(graph: Graph, operation: ops.Operation) -> str | None:
    """Return what is wrong with an operation; None if nothing is."""
    match operation:
        case ops.Convolution(stride=1, groups=groups):
            outputs, inputs, kernel = graph.parameter(operation, "weight").shape
            if sum(operation.padding) != (kernel - 1) * operation.dilation:
                return "a convolution that changes the number of frames"
            return None if groups == 1 or (inputs == 1 and groups == outputs) else "a convolution in groups"
        case ops.Add() | ops.Read() | ops.PReLU() | ops.LeakyReLU() | ops.Elementwise(function=ops.Function.RELU):
            return None
        case ops.Elementwise(function=function):
            return f"a {function.value}"
    return f"a {type(operation).__name__}"


def _wrongly_read(graph: Graph, operation: ops.Operation, before: str, rounded: Container[str]) -> str | None:
    """Return what is wrong with the tensors that an operation reads; None if nothing is.

    FINN numbers the nodes of branches beside one another in an order of its own, so a folding would go to the wrong nodes.
    finn-plus 1.6.1 stops where a tensor is added to itself (it looks for a constant), or the network's input is added (it
    assumes another layout).

    Args:
        graph: of the operation.
        operation: to check.
        before: the tensor that is made right before it.
        rounded: the tensors that are on a grid.
    """
    if before not in operation.inputs:
        return f"a branch beside '{before}'"
    if isinstance(operation, ops.Add) and (operation.inputs[0] == operation.inputs[1] or {*operation.inputs} & {*graph.inputs}):
        return "a sum of a tensor with itself, or with the network's input"
    if isinstance(operation, _FUNCTIONS) and operation.inputs[0] in rounded:
        return "a function alone, of a tensor that is rounded before it"
    return None
