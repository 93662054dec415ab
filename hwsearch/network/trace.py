"""Trace a module to a graph with `torch.export`.

`torch.export` runs the module on an example, with the number of frames left open, and lists the operators that it calls. Each of
them becomes an operation of the graph, or is refused by name. The graph is then compared to the module on other lengths.
"""

import inspect
import logging
import operator
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node

from hwsearch.errors import UserError
from hwsearch.network.folding import fold
from hwsearch.network.graph import Graph
from hwsearch.network.operations import Operation
from hwsearch.network.run import run
from hwsearch.network.torch_operators import TRANSLATIONS, Call, Length, Made, Refused, Value, slice_part

_FRAMES_AXIS = 2

_OTHER_LENGTHS = (1, 14)
"""Frames that are added to the example in the comparison: an odd and an even number, because of strides."""

_TOLERANCE = 1e-4
"""Largest difference between graph and module, relative to the largest output. Folding changes it by about 1e-6."""

_PARTS = {"add": "add", "sub": "add", "mul": "multiply", "cat": "concatenate", "constant_pad_nd": "pad"}
"""Names of operations that are not modules; others have the name of the operator."""

_COMPUTED = object()
"""Stands for numbers that are computed from lengths, and for checks of them."""


def trace(module: nn.Module, examples: Sequence[Tensor]) -> Graph:
    """Make the graph of a module in eval mode, with batch norms and padding folded.

    Args:
        module: takes and returns tensors [batch, channels, frames].
        examples: a tensor for each argument of `forward`, all with the same number of frames.

    Raises:
        UserError: an operation that a graph does not have, a module with weights that is used twice, a branch that depends on
            the data, or shapes that depend on more than the number of frames. Names the module and the operation.
    """
    name = type(module).__name__
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            graph = fold(_Translator(_export(module, examples), name).graph()).in_order()
            _check(module, graph, examples)
    finally:
        module.train(training)
    return graph


def _export(module: nn.Module, examples: Sequence[Tensor]) -> ExportedProgram:
    names = list(inspect.signature(module.forward).parameters)[: len(examples)]
    shapes = {
        name: {_FRAMES_AXIS: Dim.AUTO} if example.ndim > _FRAMES_AXIS else {}
        for name, example in zip(names, examples, strict=True)
    }
    try:
        with _quiet():
            return torch.export.export(module, tuple(examples), dynamic_shapes=shapes, strict=False)
    except OSError:  # such as a full disk, which is not the module's fault
        raise
    except Exception as error:
        raise UserError(
            f"{type(module).__name__}: cannot be traced{_place(error)} ({_first_line(error)}); wanted a forward pass without "
            "branches that depend on the data"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch, which logs, warns and prints what the error line says."""
    log = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = log.level
    with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        try:
            log.setLevel(logging.CRITICAL)
            yield
        finally:
            log.setLevel(level)


class _Translator:
    """Translates an exported program."""

    def __init__(self, program: ExportedProgram, root: str) -> None:
        self._program = program
        self._root = root
        self._values: dict[Node, Any] = {}
        self._inputs: list[str] = []
        self._outputs: tuple[str, ...] = ()
        self._operations: list[Operation] = []
        self._parameters: dict[str, Tensor] = {}
        self._names: set[str] = set()

    def graph(self) -> Graph:
        """Make the graph, not folded."""
        for node in self._program.graph.nodes:
            match node.op:
                case "placeholder":
                    self._take_placeholder(node)
                case "call_function":
                    self._take_call(node)
                case "output":
                    self._outputs = tuple(self._output(value) for value in self._resolve(node.args[0]))
        return _without_dead(self._inputs, self._operations, self._outputs, self._parameters)

    def _take_placeholder(self, node: Node) -> None:
        specification = next(each for each in self._program.graph_signature.input_specs if each.arg.name == node.name)
        if specification.kind is InputKind.USER_INPUT:
            self._inputs.append(node.name)
            self._names.add(node.name)
            self._values[node] = Value(node.name, _shape(node))
            return
        target = str(specification.target)
        stored: Mapping[str, Any] = self._program.state_dict | self._program.constants
        self._values[node] = stored[target].detach()

    def _take_call(self, node: Node) -> None:
        module, kind = _module(node)
        operator_name = str(getattr(node.target, "__name__", node.target)).split(".", maxsplit=1)[0].removesuffix("_")
        try:
            self._values[node] = self._call(node, operator_name, module, owned=kind.startswith("torch.nn.modules."))
        except Refused as error:
            where = f"module '{module}' ({kind.rsplit('.', 1)[-1]})" if module else self._root
            raise UserError(f"{where}: '{operator_name}' {error}") from None

    def _call(self, node: Node, operator_name: str, module: str, *, owned: bool) -> Any:
        arguments = self._arguments(node)
        match operator_name:
            case "getitem":
                return self._resolve(node.args[0])[node.args[1]]
            case "sym_size":
                x = arguments["self"]
                return Length(x.name, x.axis(arguments["dim"]))
            case "split" | "split_with_sizes" | "chunk":
                return self._split(node, arguments, module)
        if not any(isinstance(each, Value) for each in _flat(arguments.values())):
            return self._constant(node)
        if _COMPUTED in arguments.values():
            raise Refused("computes with the number of frames; wanted fixed numbers, or the length of a tensor as it is")
        if operator_name not in TRANSLATIONS:
            raise Refused(
                "is no operation of a network graph; wanted convolutions, linear layers, elementwise functions, norms, sums, "
                "products, concatenations, splits, padding and means over frames"
            )
        part = _PARTS.get(operator_name, operator_name)
        name = module if owned else ".".join(filter(None, (module, part)))
        made = TRANSLATIONS[operator_name](Call(self._free(name), arguments, _shape(node)))
        if isinstance(made, Value):
            return made
        if owned and made.parameters and made.operation.name != name:
            raise Refused("has trained numbers and is used more than once; wanted a module for each use")
        return self._keep(made, _shape(node))

    def _constant(self, node: Node) -> Any:
        """Compute an operator that reads only trained tensors and fixed numbers; otherwise it reads lengths."""
        read = [self._resolve(argument) for argument in (*node.args, *node.kwargs.values())]
        varies = any(each is _COMPUTED or isinstance(each, Length) for each in _flat(read))
        if varies or not isinstance(node.meta.get("val"), Tensor):
            return self._length(node)
        assert callable(node.target)  # noqa: S101 (a node that calls a function)
        keywords = {name: self._resolve(argument) for name, argument in node.kwargs.items()}
        return node.target(*self._resolve(node.args), **keywords)

    def _length(self, node: Node) -> Any:
        """Find a tensor that always has as many frames as a number that is computed from lengths."""
        wanted = node.meta.get("val")
        if isinstance(wanted, torch.SymInt):
            for other, value in reversed(self._values.items()):
                shape = getattr(other.meta.get("val"), "shape", ())
                if isinstance(value, Value) and len(shape) > _FRAMES_AXIS and not value.transposed:
                    frames = shape[_FRAMES_AXIS]
                    if isinstance(frames, torch.SymInt) and frames.node.expr == wanted.node.expr:
                        return Length(value.name, _FRAMES_AXIS)
        return _COMPUTED

    def _keep(self, made: Made, shape: tuple[int, ...]) -> Value:
        self._operations.append(made.operation)
        self._names.add(made.operation.name)
        self._parameters |= {f"{made.operation.name}.{part}": tensor.detach() for part, tensor in made.parameters.items()}
        return Value(made.operation.name, shape, made.transposed)

    def _split(self, node: Node, arguments: Mapping[str, Any], module: str) -> list[Value]:
        """Make a slice for each part."""
        parts = []
        start = 0
        for place, part in enumerate(node.meta["val"]):
            length = part.shape[arguments["dim"]]
            if not isinstance(length, int):
                raise Refused("splits a tensor along its frames; wanted a split along the channels")
            sliced = {**arguments, "start": start, "end": start + length, "step": 1}
            name = self._free(".".join(filter(None, (module, f"split_{place}"))))
            shape = tuple(map(_number, part.shape))
            parts.append(self._keep(slice_part(Call(name, sliced, shape)), shape))
            start += length
        return parts

    def _arguments(self, node: Node) -> dict[str, Any]:
        """Return the arguments of an operator by name, defaults included."""
        schema = getattr(node.target, "_schema", None)
        arguments = () if schema is None else schema.arguments
        given = dict(zip((argument.name for argument in arguments), node.args, strict=False)) | node.kwargs
        return {argument.name: self._resolve(given.get(argument.name, argument.default_value)) for argument in arguments}

    def _resolve(self, argument: Any) -> Any:
        if isinstance(argument, Node):
            return self._values[argument]
        if isinstance(argument, list | tuple):
            return [self._resolve(each) for each in argument]
        return argument

    def _output(self, value: Any) -> str:
        if not isinstance(value, Value) or value.transposed:
            raise UserError(f"{self._root}: gives something else than tensors [batch, channels, frames]")
        return value.name

    def _free(self, name: str) -> str:
        """Return the name, with a number appended if it is taken."""
        names = chain([name], (f"{name}_{number}" for number in count(1)))
        return next(each for each in names if each not in self._names)


def _without_dead(
    inputs: Sequence[str], operations: Sequence[Operation], outputs: tuple[str, ...], parameters: Mapping[str, Tensor]
) -> Graph:
    """Make the graph of the operations that the outputs depend on."""
    wanted = set(outputs)
    kept: list[Operation] = []
    for operation in reversed(operations):
        if operation.name in wanted:
            kept.append(operation)
            wanted |= set(operation.inputs)
    names = {f"{operation.name}.{part}" for operation in kept for part in operation.parameters}
    return Graph(tuple(inputs), tuple(reversed(kept)), outputs, {name: parameters[name] for name in parameters if name in names})


def _check(module: nn.Module, graph: Graph, examples: Sequence[Tensor]) -> None:
    """Compare the graph to the module on longer examples, which detects lengths and branches that tracing fixed.

    Raises:
        UserError: their outputs differ, or the module refuses another number of frames.
    """
    name = type(module).__name__
    for more in (0, *_OTHER_LENGTHS):
        longer = [_longer(example, more) for example in examples]
        frames = longer[0].shape[-1]
        try:
            made = module(*longer)
        except RuntimeError as error:
            raise UserError(
                f"{name}: does not run on {frames} frames ({_first_line(error)}); wanted a module that takes any number of "
                "them: crop or pad"
            ) from error
        wanted = (made,) if isinstance(made, Tensor) else tuple(made)
        found = run(graph, dict(zip(graph.inputs, longer, strict=True)))
        for ours, theirs in zip(found, wanted, strict=True):
            if ours.shape != theirs.shape or not torch.allclose(ours, theirs, rtol=0, atol=_TOLERANCE * _peak(theirs)):
                raise UserError(
                    f"{name}: computes something else on {frames} frames than on {examples[0].shape[-1]}; wanted the same "
                    "operations for any number of frames"
                )


def _longer(example: Tensor, frames: int) -> Tensor:
    """Append some of the first frames of an example."""
    if example.ndim <= _FRAMES_AXIS or frames == 0:
        return example
    repeats = -(-frames // example.shape[-1]) + 1
    return example.repeat(1, 1, repeats)[..., : example.shape[-1] + frames]


def _peak(x: Tensor) -> float:
    return float(x.abs().max()) if x.numel() else 0.0


def _module(node: Node) -> tuple[str, str]:
    """Return path and type of the innermost module that a node belongs to."""
    stack = node.meta.get("nn_module_stack") or {}
    inner = [(str(path), str(kind)) for key, (path, kind) in stack.items() if not key.startswith("_")]
    return inner[-1] if inner else ("", "")


def _shape(node: Node) -> tuple[int, ...]:
    value = node.meta.get("val")
    return tuple(map(_number, value.shape)) if isinstance(value, Tensor) else ()


def _number(size: Any) -> int:
    """Return a length; a symbolic one as it was in the example."""
    return size if isinstance(size, int) else int(size.node.hint)


def _flat(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list):
            yield from _flat(value)
        else:
            yield value


def _place(error: BaseException) -> str:
    """Say where in the user's own files an error was raised."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_library(frame.filename)]
    return f" at line {own[-1].lineno} of {Path(own[-1].filename).name}" if own else ""


def _is_library(filename: str) -> bool:
    return filename.startswith((str(Path(torch.__file__).parent), str(Path(operator.__file__).parent), __file__, "<"))


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
