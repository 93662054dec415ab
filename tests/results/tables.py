"""Small tables of candidates, and records of any size, for the tests of the front."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from hwsearch.experiment import Fidelity, SeparatorConfig
from hwsearch.results.candidates import CandidateTable
from hwsearch.search.objectives import QUALITY, QUALITY_AND_SIZE
from hwsearch.search.record import Asked, Failed, Header, Record, Scored
from hwsearch.separator.allocation import BitAllocation, is_weight
from hwsearch.separator.configuration import Configuration
from tests.separator.small import all_sites

START = datetime(2030, 1, 1, tzinfo=UTC)
FIRST = Fidelity.POST_TRAINING


def at(seconds: float) -> str:
    return (START + timedelta(seconds=seconds)).isoformat(timespec="milliseconds")


def header(**changes: Any) -> Header:
    fields = {"name": "test", "experiment": "a" * 64, "provenance": {}, "seed": 0, "objectives": QUALITY_AND_SIZE}
    fields |= {"widths": {"x.weight": (2, 4)}, "fixed": (), "versions": {}, "time": at(0)}
    return Header(**fields | changes)


def asked(number: int, seconds: float, sites: int = 1) -> Asked:
    return Asked(candidate=number, strategy="test", point=(0,) * sites if number else None, state={}, time=at(seconds))


def scored(
    number: int, seconds: float, quality: float = 5.0, size: float = 100.0, worker: str = "a:1", took: float = 2.0, **changes: Any
) -> Scored:
    fields = {"candidate": number, "strategy": "test", "seed": 0, "allocation": {"x.weight": 2}, "fidelity": FIRST, "attempts": 1}
    fields |= {
        "metrics": {QUALITY: quality},
        "costs": {"size_bytes": size},
        "worker": worker,
        "seconds": took,
        "time": at(seconds),
    }
    return Scored(**fields | changes)


def failed(number: int, seconds: float, reason: str, worker: str = "a:1", took: float = 1.0) -> Failed:
    tried = {"seconds": took, "worker": worker, "attempts": 3, "time": at(seconds)}
    return Failed(candidate=number, strategy="test", fidelity=FIRST, reason=reason, **tried)


OPTIONS = {"block.kept": (0, 1), "b.channels": (2, 4, 8), "c.channels": (3, 4)}
"""Of the sites of `write_partly`, `b.weight` and `b.output` lie inside the block."""
PARTLY = (
    Configuration.of({"a.weight": 4, "b.weight": 4, "b.output": 8}),
    Configuration.of({"a.weight": 4}, {"block.kept": 0}),
    Configuration.of({"a.weight": 2, "b.weight": 2, "b.output": 8}, {"b.channels": 2, "c.channels": 3}),
    Configuration.of({"a.weight": 2}, {"block.kept": 0, "c.channels": 3}),
)


def write_partly(folder: Path) -> None:
    """Candidates 1 to 4 are those of `PARTLY`: candidate k scores 12 - k dB with 1000 - 100 k bytes."""
    widths = {"a.weight": (2, 4), "b.weight": (2, 4), "b.output": (4, 8)}
    full = Configuration.of(dict.fromkeys(widths, 32))
    with Record(folder, header(widths=widths, options=OPTIONS)) as record:
        for number, configuration in enumerate((full, *PARTLY)):
            found = {"allocation": configuration.allocation.to_json(), "structure": configuration.kept}
            found |= {"metrics": {QUALITY: 12.0 - number}, "costs": {"size_bytes": 1000.0 - 100 * number}}
            record.extend([asked(number, 0, len(widths) + len(OPTIONS)), scored(number, 0, **found)])


def make_table(quality: list[float], size: list[float], **columns: list[float]) -> CandidateTable:
    """Two weight sites and an activation; candidates 1, 2, ...; the first is uniform at 4 bits."""
    count = len(quality)
    return CandidateTable(
        sites=("a.weight", "b.weight", "mask_head.output"),
        fixed=frozenset(),
        objectives=QUALITY_AND_SIZE,
        fidelity=Fidelity.POST_TRAINING,
        candidate=np.arange(1, count + 1),
        strategy=np.array(["uniform", *["nsga2"] * (count - 1)][:count]),
        uniform=np.array([index == 0 for index in range(count)], dtype=np.bool_),
        widths=np.array([[4, 4 if index == 0 else 8, 8] for index in range(count)], dtype=np.int16).reshape(count, 3),
        options=(),
        kept=np.zeros((count, 0), np.int64),
        columns={
            "si_snr_improvement_db": np.array(quality, dtype=np.float64),
            "size_bytes": np.array(size, dtype=np.float64),
            **{name: np.array(values, dtype=np.float64) for name, values in columns.items()},
        },
        reference={"si_snr_improvement_db": 12.0},
        failures={},
        weights={},
    )


def write_record(
    folder: Path,
    config: SeparatorConfig,
    allocations: list[BitAllocation],
    *,
    fixed: tuple[str, ...] = (),
    fails: tuple[int, ...] = (),
) -> None:
    """Candidate 0 is full precision with 12 dB; candidate k scores 12 - k / 1000 dB with 1000 + k bytes."""
    widths = {site: (2, 4, 8) if is_weight(site) else (4, 8) for site in all_sites(config)}
    with Record(folder, header(widths=widths, fixed=fixed)) as record:
        for number, allocation in enumerate(allocations):
            metrics = {QUALITY: 12 - number / 1000, "utterances": 16.0}
            costs = {"size_bytes": 1000.0 + number, "latency_ms[chip]": None if number % 2 else 3.5}
            found = scored(number, 0, allocation=allocation.to_json(), metrics=metrics, costs=costs)
            record.extend([asked(number, 0, len(widths)), failed(number, 0, "boom") if number in fails else found])
