"""Strategies that damage a file of tensors: its header, its description or its tensors, sealed again behind that or not."""

import json
import tempfile
from pathlib import Path
from typing import Any, Final

import torch
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load, save

from hwsearch.files.tensors import write_tensors
from tests.fuzz.edits import Draw
from tests.fuzz.things import Thing
from tests.fuzz.values import json_values

KEY: Final = "hwsearch_base"
VALUES: Final = (float("nan"), float("inf"), 1e38, -1e38, 0.0, 1e-40)
TYPES: Final = (torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.bool, torch.int64)


def bases(content: bytes) -> st.SearchStrategy[Thing]:
    """A damaged base."""
    return _headers(content) | _descriptions(content) | _tensors(content)


@st.composite
def _headers(draw: Draw, content: bytes) -> Thing:
    length = int.from_bytes(content[:8], "little")
    header = draw(json_values(content[8 : 8 + length]))
    assert isinstance(header.content, bytes)
    size = draw(st.sampled_from((*(len(header.content),) * 4, 0, 1, length, 2**63, 2**64 - 1)))
    return Thing(size.to_bytes(8, "little") + header.content + content[8 + length :], header.story)


@st.composite
def _descriptions(draw: Draw, content: bytes) -> Thing:
    tensors, described = load(content), _description(content)
    damaged = draw(json_values(described.encode()))
    assert isinstance(damaged.content, bytes)
    try:
        description = json.loads(damaged.content)
        return _sealed(tensors, description, damaged.story)
    except (ValueError, TypeError, RecursionError):  # no JSON object any more
        return Thing(save(tensors, {KEY: damaged.content.decode()}), damaged.story)


@st.composite
def _tensors(draw: Draw, content: bytes) -> Thing:
    """A tensor with another value, shape, type or name, or none, or one more."""
    tensors, description = load(content), json.loads(_description(content))
    name = draw(st.sampled_from(sorted(tensors)))
    tensor = tensors[name]
    kind = draw(st.sampled_from(("value", "size", "rank", "type", "name", "leave out", "another")))
    if kind == "value":
        tensor.reshape(-1)[draw(st.integers(0, tensor.numel() - 1))] = draw(st.sampled_from(VALUES))
    elif kind == "size":
        tensors[name] = tensor.reshape(-1)[: draw(st.integers(0, tensor.numel()))].clone()
    elif kind == "rank":
        tensors[name] = tensor[None].clone()
    elif kind == "type":
        tensors[name] = tensor.to(draw(st.sampled_from(TYPES)))
    elif kind == "another":
        tensors["\x1b[31m"] = torch.zeros(2)
    else:
        del tensors[name]
        if kind == "name":
            tensors[f"{name}_"] = tensor
    return _sealed(tensors, description, (f"{kind} of {name}",))


def _description(content: bytes) -> str:
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(content)
        with safe_open(file.name, framework="pt") as stored:
            described: str = stored.metadata()[KEY]
    return described


def _sealed(tensors: dict[str, torch.Tensor], description: dict[str, Any], story: tuple[str, ...]) -> Thing:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "base.safetensors"
        write_tensors(path, tensors, KEY, description)
        return Thing(path.read_bytes(), (*story, "sealed again"))
