"""One HTML file with its styles, scripts and data inside.

A policy in the page lets the browser run these scripts alone, by their hashes, and load nothing.
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from plotly.offline import get_plotlyjs

_PLACE = re.compile(r"\{\{(\w+)\}\}")
_HERE = files("hwsearch.view.report")


def assemble(template: str, scripts: Sequence[str], data: Mapping[str, Any], parts: Mapping[str, str]) -> str:
    """Fill a template of this folder.

    Args:
        template: name of its file.
        scripts: names of the files of scripts, in their order, after Plotly's.
        data: what the scripts read, as JSON values without NaN and infinity.
        parts: HTML by the name of its place.
    """
    texts = [get_plotlyjs(), '"use strict";\n' + "\n".join(_read(name) for name in scripts)]
    filled = {
        **parts,
        "policy": html.escape(_policy(texts)),
        "style": _read("style.css"),
        "data": json_text(data),
        "scripts": "\n".join(f"<script>{text}</script>" for text in texts),
    }
    # What is filled in is not searched for places again.
    return _PLACE.sub(lambda found: filled[found[1]], _read(template))


def json_text(data: Mapping[str, Any]) -> str:
    """Write JSON that can stand inside a script element: no text in it can end the element or begin a comment."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def data_uri(content: bytes, kind: str) -> str:
    """Write bytes of a media type as a URI."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def table_html(caption: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table of texts as HTML. The first cell of a row is its heading."""
    head = "".join(f'<th scope="col">{html.escape(text)}</th>' for text in headings)
    lines = [
        f'<tr><th scope="row">{html.escape(first)}</th>' + "".join(f"<td>{html.escape(text)}</td>" for text in others) + "</tr>"
        for first, *others in rows
    ]
    body = "".join(lines)
    return f"<table><caption>{html.escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _policy(scripts: Sequence[str]) -> str:
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    allowed = " ".join(f"'sha256-{text}'" for text in hashes)
    # Plotly writes style rules. Its button for pictures makes a blob.
    images = "img-src data: blob:"
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; {images}; form-action 'none'; base-uri 'none'"


def _read(name: str) -> str:
    return _HERE.joinpath(name).read_text("utf-8")
