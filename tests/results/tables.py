"""Small tables of candidates, and records of any size, for the tests of the front."""

from pathlib import Path

import numpy as np

from hwsearch.experiment import Fidelity, SeparatorConfig
from hwsearch.results.candidates import CandidateTable
from hwsearch.search.objectives import QUALITY_AND_SIZE
from hwsearch.search.record import Asked, Event, Failed, Header, Record, Scored
from hwsearch.separator.allocation import BitAllocation, is_weight
from tests.separator.small import all_sites

TIME = "2030-01-01T00:00:00.000+00:00"


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
    header = Header(
        name="test",
        experiment="a",
        provenance={},
        seed=0,
        objectives=QUALITY_AND_SIZE,
        widths={site: (2, 4, 8) if is_weight(site) else (4, 8) for site in all_sites(config)},
        fixed=fixed,
        versions={},
        time=TIME,
    )
    events: list[Event] = []
    with Record(folder, header) as record:
        for number, allocation in enumerate(allocations):
            strategy = "full-precision" if number == 0 else "test"
            events.append(
                Asked(
                    candidate=number, strategy=strategy, point=(0,) * len(header.widths) if number else None, state={}, time=TIME
                )
            )
            if number in fails:
                events.append(
                    Failed(
                        candidate=number,
                        strategy=strategy,
                        fidelity=Fidelity.POST_TRAINING,
                        reason="boom",
                        seconds=0,
                        worker="",
                        attempts=1,
                        time=TIME,
                    )
                )
                continue
            events.append(
                Scored(
                    candidate=number,
                    strategy=strategy,
                    seed=0,
                    allocation=allocation.to_json(),
                    metrics={"si_snr_improvement_db": 12 - number / 1000, "utterances": 16.0},
                    costs={"size_bytes": 1000.0 + number, "latency_ms[chip]": None if number % 2 else 3.5},
                    fidelity=Fidelity.POST_TRAINING,
                    seconds=1.0,
                    worker="here:1",
                    attempts=1,
                    time=TIME,
                )
            )
        record.extend(events)
