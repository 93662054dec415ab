"""Strategies that damage files which carry digests of their content, and seal them again behind that."""

import hashlib
import json
from pathlib import Path

from hypothesis import strategies as st

from hwsearch.files.reading import digest
from hwsearch.files.seals import SEAL, seal_lines, unseal_lines
from tests.fuzz.edits import Draw, raw_bytes
from tests.fuzz.things import Thing
from tests.fuzz.values import json_lines, json_values


@st.composite
def sealed_lines(draw: Draw, content: bytes) -> Thing:
    """Lines of a file of sealed JSON lines damaged."""
    lines = unseal_lines(content.splitlines(), Path("whole"), "mend the test")
    damaged = draw(json_lines(b"".join(line + b"\n" for line in lines)))
    assert isinstance(damaged.content, bytes)
    entries = [line for line in damaged.content.split(b"\n") if line]
    return Thing(b"".join(line + b"\n" for line in seal_lines(entries)), (*damaged.story, "sealed again"))


@st.composite
def sealed_json_values(draw: Draw, content: bytes) -> Thing:
    """Values and keys of a sealed JSON file damaged; what is no JSON any more is not sealed again."""
    tree = json.loads(content)
    del tree[SEAL]
    damaged = draw(json_values(json.dumps(tree).encode()))
    assert isinstance(damaged.content, bytes)
    try:
        seal = digest(json.loads(damaged.content))
    except (ValueError, RecursionError):
        return damaged
    return Thing(b'{"%s": "%s", ' % (SEAL.encode(), seal.encode()) + damaged.content[1:], (*damaged.story, "sealed again"))


@st.composite
def sealed_array(draw: Draw, content: bytes) -> Thing:
    """Bytes of an array damaged that has its digest behind it."""
    damaged = draw(raw_bytes(content[: -hashlib.sha256().digest_size]))
    assert isinstance(damaged.content, bytes)
    return Thing(damaged.content + hashlib.sha256(damaged.content).digest(), (*damaged.story, "sealed again"))
