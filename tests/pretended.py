"""A second device on a machine that has none: tensors that say they lie on a GPU, and are computed by the processor.

They hold their numbers, so that what reads them (a score, a loss that is looked at) runs on. As on a GPU, an operation on tensors
of both devices raises, and so does reading one as an array without bringing it back first.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_iter, tree_map

CUDA = torch.device("cuda:0")

_CROSSING = (torch.ops.aten._to_copy, torch.ops.aten.copy_)
"""Operations that take a tensor from one device to another."""

_INDEXED = (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_)
"""Operations whose indices may lie in the processor's memory."""


_ran: Counter[str] = Counter()
"""Operations on the device, by name."""


class Pretended(Tensor):
    """A tensor on the pretended device."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor, *, requires_grad: bool = False) -> "Pretended":
        held = held.detach().resolve_conj().resolve_neg()  # which the wrapper would not show
        made: Pretended = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device="meta",  # for autograd, which would look for a GPU's driver
            requires_grad=requires_grad,
        )
        made.held = held
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA

    @property
    def is_meta(self) -> bool:  # type: ignore[override]
        return False

    def __getitem__(self, index: Any) -> Tensor:
        """Lists of numbers become tensors here: torch would put them on the wrapper's device, which keeps no numbers."""
        parts = index if isinstance(index, tuple) else (index,)
        found: Tensor = super().__getitem__(
            tuple(torch.tensor(list(part)) if isinstance(part, list | range) else part for part in parts)
        )
        return found

    def tolist(self) -> Any:
        return self.held.tolist()

    def __repr__(self, **_: Any) -> str:
        return f"Pretended({self.held})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        return _run(func, args, kwargs or {})

    # What torch asks of a tensor that stands for another.

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(inner: Mapping[str, Tensor], meta: None, size: Any, stride: Any) -> "Pretended":
        return Pretended(inner["held"])


class _Factories(TorchDispatchMode):
    """Makes tensors that are wanted on the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        return _run(func, args, kwargs or {})


@contextmanager
def pretended_cuda() -> Iterator[Counter[str]]:
    """PyTorch finds a CUDA device in the block; gives what has run on it, by name."""
    _ran.clear()
    with pytest.MonkeyPatch.context() as patch, _Factories():
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor` moves what it makes where the mode sees it
        try:
            yield _ran
        finally:
            torch._C._set_only_lift_cpu_tensors(before)


def _run(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    tensors = [each for each in tree_iter((args, kwargs)) if isinstance(each, Tensor)]
    wanted = kwargs.get("device")
    here = None if wanted is None else torch.device(wanted)
    if func.overloadpacket not in _CROSSING:
        _check(func, args, tensors)
    on_device = here.type != "cpu" if here is not None else any(isinstance(each, Pretended) for each in tensors)
    plain = {**kwargs, "device": torch.device("cpu")} if here is not None else kwargs
    made = func(*tree_map(_held, args), **tree_map(_held, dict(plain)))
    if not on_device:
        return made
    _ran[str(func.overloadpacket).removeprefix("aten.")] += 1
    if func.overloadpacket is torch.ops.aten.copy_:
        return args[0]
    wrapped = tree_map(lambda each: Pretended(each) if isinstance(each, Tensor) else each, made)
    return return_and_correct_aliasing(func, args, dict(kwargs), wrapped)


def _held(each: Any) -> Any:
    return each.held if isinstance(each, Pretended) else each


def _check(func: Any, args: Any, tensors: list[Tensor]) -> None:
    """Refuse tensors of both devices, but for numbers among elementwise operands, and for indices."""
    elementwise = torch.Tag.pointwise in func.tags or func.overloadpacket is torch.ops.aten.fill_
    indices = list(tree_iter(args[1])) if func.overloadpacket in _INDEXED else []
    there = [each for each in tensors if isinstance(each, Pretended)]
    others = [
        each
        for each in itertools.filterfalse(lambda each: isinstance(each, Pretended), tensors)
        if not (elementwise and each.ndim == 0) and not any(each is index for index in indices)
    ]
    if there and others:
        raise RuntimeError(f"{func}: tensors on cuda:0 and on the processor, {[tuple(each.shape) for each in others]}")
