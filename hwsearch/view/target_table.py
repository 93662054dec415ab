"""One candidate on all targets, as a table for people and as exact JSON or CSV."""

import csv
import io
import json
import sys
import textwrap
from collections.abc import Iterable
from dataclasses import asdict, fields

from hw_models.figures import significant
from hwsearch.printable import printable
from hwsearch.view.tables import WIDTH, Column, fitting, print_table
from hwsearch.view.targets import share_percent
from hwsearch.view.terminal import say
from hwsearch.workflow.targets import AllTargets, OnTarget

BY_NEED = ("target", "time", "range", "fits", "sure", "energy", "memory", "live")
"""Columns, those needed most first."""

UNKNOWN = "-"


def print_all_targets(found: AllTargets, output_format: str) -> None:
    """Print a candidate on all targets as a `table`, or as exact `json` or `csv`."""
    if output_format == "json":
        sys.stdout.write(json.dumps([asdict(row) for row in found.rows], indent=2) + "\n")
    elif output_format == "csv":
        sys.stdout.write(printable(_csv(found), keep="\n"))
    else:
        print_table(fitting(_columns(found.rows), BY_NEED), _title(found))
        for line in _below(found):
            say(line)


def _csv(found: AllTargets) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, [field.name for field in fields(OnTarget)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in found.rows)
    return stream.getvalue()


def _title(found: AllTargets) -> str:
    return f"candidate {found.candidate} of {found.run}, a file of {found.size_bytes / 1000:,.0f} kB, for a second of sound"


def _columns(rows: Iterable[OnTarget]) -> list[Column]:
    rows = list(rows)
    return [
        Column("target", [row.target for row in rows], words=True),
        Column("time", [_number(row.latency_ms) for row in rows], note="ms"),
        Column("range", [_range(row) for row in rows], note="ms"),
        Column("sure", [UNKNOWN if row.checked_share is None else share_percent(row.checked_share) for row in rows], note="%"),
        Column("energy", [_number(row.energy_uj, 1000) for row in rows], note="mJ"),
        Column("memory", [_memory(row) for row in rows], note="kB"),
        Column("fits", [_fits(row) for row in rows], words=True),
        Column("live", [_number(row.streaming_real_time_factor, digits=2) for row in rows], note="x"),
    ]


def _number(value: float | None, unit: float = 1.0, digits: int = 3) -> str:
    return UNKNOWN if value is None else significant(value / unit, digits)


def _range(row: OnTarget) -> str:
    """Write from where to where the time may be; a `-` alone if too little was checked."""
    if row.latency_low_ms is None:
        return UNKNOWN
    high = "" if row.latency_high_ms is None else significant(row.latency_high_ms, 2)
    return f"{significant(row.latency_low_ms, 2)}-{high}"


def _memory(row: OnTarget) -> str:
    if row.weight_bytes is None or row.peak_activation_bytes is None:
        return UNKNOWN
    return f"{-(-(row.weight_bytes + row.peak_activation_bytes) // 1000):,}"


def _fits(row: OnTarget) -> str:
    return UNKNOWN if row.fits is None else ("yes" if row.fits else "no")


def _below(found: AllTargets) -> list[str]:
    """Explain the columns, and say why targets do not fit or cannot run."""
    lines = [
        *_wrapped("sure", "share of the time from layers that were compared with a chip or a simulator"),
        *_wrapped(
            "range", "the time if these layers are off by the largest error found, either way; none where less than half is sure"
        ),
        *_wrapped("memory", "weights and activations"),
    ]
    if found.ahead_ms:
        why = f"not possible, the kernels look {found.ahead_ms:,.0f} ms ahead; wanted a causal network"
        lines += _wrapped("live", why)
    else:
        lines += _wrapped("live", "times of real time that it takes frame by frame; above 1 it does not keep up")
    for against, what in (("simulator", "compared with a simulator alone"), ("nothing", "nobody has measured")):
        if names := [row.target for row in found.rows if row.checked_against == against]:
            lines += _wrapped(what, ", ".join(names))
    for row in found.rows:
        if row.note:
            lines += _wrapped(row.target, f"{'does not fit' if row.fits is False else 'cannot run it'}: {row.note}")
    return lines


def _wrapped(what: str, text: str) -> list[str]:
    return textwrap.wrap(f"{what}: {text}", WIDTH, subsequent_indent="  ", break_on_hyphens=False)
