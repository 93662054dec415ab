"""A made-up report: two fidelities, missing values, structure, and texts that would harm a page that trusts them."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from hwsearch.experiment import Fidelity
from hwsearch.metrics.evaluation import Summary
from hwsearch.metrics.statistics import Estimate
from hwsearch.results.candidates import CandidateTable
from hwsearch.results.status import VolumePoint
from hwsearch.sensitivity.table import SensitivityTable
from hwsearch.workflow.listening import Clip, Listening, spectrogram
from hwsearch.workflow.network_costs import LayerCosts
from hwsearch.workflow.report import Evaluated, Report
from tests.results.tables import make_table

HARMFUL = (
    "<script>window.harmed=1</script>",
    "</script><script>window.harmed=2</script>",
    "<img src=x onerror=window.harmed=3>",
    "<!--<script>",
    'a" onmouseover="window.harmed=4" b=\'',
    "{{data}} %{x} ${1} \u2028 &lt;b&gt;",
)

RATE = 8000


def made_up_table(count: int, seed: int, fidelity: Fidelity) -> CandidateTable:
    """Candidates 1 to `count`, with ties, and without a latency for every fourth."""
    rng = np.random.default_rng(seed)
    quality = (rng.integers(0, 40, count) / 4).tolist()
    latency = np.where(np.arange(count) % 4 == 3, np.nan, rng.integers(1, 9, count) / 2).tolist()
    columns = {"drop_db": [10.0 - each for each in quality], "drop_ci95_db": rng.uniform(0, 1, count).tolist()}
    columns |= {"latency_ms[chip<b>]": latency, "average_bits": rng.uniform(2, 8, count).tolist()}
    table = make_table(quality, (1000.0 * rng.integers(1, 30, count)).tolist(), **columns)
    kept = rng.integers(0, 2, (count, 1))
    widths = rng.choice([2, 4, 8], (count, 3)).astype(np.int16)
    widths[kept[:, 0] == 0, 1] = 0
    names = [HARMFUL[place // 3 % len(HARMFUL)] if place % 3 == 0 else ("kl", "uniform")[place % 2] for place in range(count)]
    return replace(
        table, fidelity=fidelity, widths=widths, kept=kept, options=(("b<i>.kept", 1),), strategy=np.array(names, dtype=np.str_)
    )


def made_up_report() -> Report:
    first = made_up_table(40, 1, Fidelity.POST_TRAINING)
    second = made_up_table(25, 2, Fidelity.SHARED)
    second = replace(second, widths=first.widths[:25], kept=first.kept[:25])
    latency = {number: np.array([0.5, np.nan if number % 2 else 1.25]) for number in range(1, 26)}
    points = [VolumePoint(count, 2.0 * count, float(count)) for count in (1, 5, 25)]
    bits = np.array([[1e-3, np.nan, -0.5], [4.0, 2.0, 1.0]])
    figures = {"si_snr_db": Estimate(5.0, 4.0, 6.0, 9, "t"), "mixture_si_snr_db": Estimate(0.0, -1.0, None, 9, "t")}
    return Report(
        name=HARMFUL[0],
        folder=Path("runs") / HARMFUL[2],
        made=datetime(2030, 1, 1, tzinfo=UTC),
        tables=[first, second],
        left_out={Fidelity.POST_TRAINING: 3},
        limits={"size_bytes": 15000.0},
        chosen=7,
        costs=[LayerCosts(HARMFUL[1], False, ("layer <u>", "other"), latency, latency)],
        sensitivities=[SensitivityTable("kl", (HARMFUL[0], "b.weight"), (2, 4, 8), bits, np.full((2, 3), np.nan), 2)],
        curves={Fidelity.POST_TRAINING: points, Fidelity.SHARED: points},
        listening=made_up_listening(),
        evaluations=[
            Evaluated(HARMFUL[4], Path(HARMFUL[2]), [Summary((0.0, 15.0), 4, figures), Summary((0.0, 180.0), 9, figures)])
        ],
        warnings=HARMFUL,
    )


def made_up_listening(seconds: float = 3.0) -> Listening:
    """Tones of 500, 600 ... Hz."""
    time = np.arange(round(seconds * RATE)) / RATE
    kinds = ("mixture", "target", "full-precision", "candidate", "candidate")
    clips = []
    for place, kind in enumerate(kinds):
        samples = (0.1 * (place + 1) * np.sin(2 * np.pi * (500 + 100 * place) * time)).astype(np.float32)
        number = place if kind == "candidate" else None
        clips.append(Clip(kind, samples, spectrogram(samples, RATE), 1.5, number, HARMFUL[place] if number else ""))
    return Listening(HARMFUL[3], RATE, True, HARMFUL[1], 60.0, clips)
