"""The jobs behind the wanted tables, their results, and which of them are missing. Jobs are pure.

Most kinds of jobs work on one mixture at a time. Those that try each site at each width share one job, which walks over the sites
once. A trace is probed over all mixtures until it is known well enough, and probes serve all sites, so all traces are one job.
Training with one site quantized is a job for each site and width. Results are kept by kind, whatever jobs they came from.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from hwsearch.extensions import SENSITIVITIES
from hwsearch.sensitivity.choices import Candidates, all_widths
from hwsearch.sensitivity.methods import Kind

TRAINED_BELOW_BITS = 5
"""Recoverability trains only below this width. At wider ones so little is lost that training itself moves the score by more."""

SQUARED_ERROR, MEAN_SQUARED_ERROR = "squared-error", "mean-squared-error"
"""Quantities that are not methods by themselves: a site's squared error, summed or averaged over its values."""

FULL_PRECISION = ""
"""In place of a site: nothing is quantized."""

ALL_MIXTURES = "all mixtures"
"""In place of a mixture."""

ONE_SITE_KINDS = frozenset({Kind.MEASURED, Kind.OUTPUT_NOISE, Kind.KL, Kind.PAPER_KL})
"""Kinds that are computed from the output with one site quantized. A job of several such kinds walks over the sites once."""

Finite = Annotated[float, Field(ge=-1e30, le=1e30)]


def kinds_of(method: str) -> tuple[str, ...]:
    """Return the kinds of jobs that a method needs; a method with a `compute` of its own is a kind by itself."""
    return SENSITIVITIES.load(method).kinds or (method,)


@dataclass(frozen=True)
class Job:
    """A pure piece of work.

    Attributes:
        kinds: what is computed; several only of `ONE_SITE_KINDS`.
        subject: the id of a mixture; `ALL_MIXTURES` for traces; for a training the name of the site, or `FULL_PRECISION`.
        candidates: sites and widths. Traces use the sites alone.
    """

    kinds: tuple[str, ...]
    subject: str
    candidates: Candidates = ()

    @property
    def effort(self) -> int:
        """About how long the job takes, in units of one site at one width tried on one mixture (10 ms)."""
        count = sum(len(widths) for _, widths in self.candidates)
        match self.kinds[0]:
            case Kind.GRADIENT | Kind.FISHER | Kind.ERRORS:
                return 10 + count // 10
            case Kind.TRACE:
                return 400
            case Kind.TRAINING:
                return 250
            case _:
                return count

    def __str__(self) -> str:
        widths = [f" at {bits} bits" for _, tried in self.candidates for bits in tried if Kind.TRAINING in self.kinds]
        return f"{', '.join(self.kinds)} of {self.subject or 'the full-precision network'}{''.join(widths)}"


class Result(BaseModel):
    """The result of a job for one kind and subject, and a line of the journal.

    Attributes:
        kind: what was computed.
        subject: the id of the mixture; for traces and trainings the name of the site, or `FULL_PRECISION`.
        by_width: numbers by quantity, site and width, for kinds that work on one mixture.
        samples: for a trace the probes of each mixture; for a training the SI-SNR of each mixture in dB, a single one each.
        bits: the width trained with.
        seconds: processor time. The results of one job share it equally.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Annotated[str, AfterValidator(lambda kind: kind if kind in set(Kind) else SENSITIVITIES.check(kind))]
    subject: str
    by_width: dict[str, dict[str, dict[int, Finite]]] = {}
    samples: tuple[Annotated[tuple[Finite, ...], Field(min_length=1)], ...] = ()
    bits: int | None = None
    seconds: Finite = 0.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len({len(samples) for samples in self.samples}) > 1:
            raise ValueError("samples of the mixtures differ in number")
        if self.kind in (Kind.TRACE, Kind.TRAINING) and not self.samples:
            raise ValueError("samples are missing")
        return self


@dataclass
class Results:
    """All results so far, for look-up."""

    numbers: dict[tuple[str, str, str, int], float] = field(default_factory=dict)
    """Numbers by quantity, mixture, site and width."""
    tried: set[tuple[str, str, str, int]] = field(default_factory=set)
    """Kinds, mixtures, sites and widths that have numbers."""
    traces: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    """Samples [mixtures, probes] by site."""
    trained: dict[tuple[str, int | None], NDArray[np.float64]] = field(default_factory=dict)
    """SI-SNR [mixtures] in dB by site and width; `(FULL_PRECISION, None)` for the full-precision network."""

    def add(self, result: Result) -> None:
        """Add a result."""
        match result.kind:
            case Kind.TRACE:
                self.traces[result.subject] = np.array(result.samples)
            case Kind.TRAINING:
                self.trained[result.subject, result.bits] = np.array(result.samples)[:, 0]
            case _:
                for quantity, by_site in result.by_width.items():
                    for site, by_bits in by_site.items():
                        for bits, number in by_bits.items():
                            self.numbers[quantity, result.subject, site, bits] = number
                            self.tried.add((result.kind, result.subject, site, bits))

    def of_mixture(self, quantity: str, mixture: str, candidates: Candidates) -> NDArray[np.float64]:
        """A quantity of a mixture, [sites, widths]; NaN at widths that a site is not tried at."""
        widths, missing = all_widths(candidates), float("nan")
        return np.array(
            [
                [self.numbers[quantity, mixture, site, bits] if bits in tried else missing for bits in widths]
                for site, tried in candidates
            ]
        )


def missing_jobs(methods: Sequence[str], candidates: Candidates, mixtures: Sequence[str], results: Results) -> list[Job]:
    """Return the jobs whose results are missing, the longest first.

    Args:
        methods: names of the wanted tables.
        candidates: sites and widths.
        mixtures: ids.
        results: results so far.
    """
    kinds = {kind for method in methods for kind in kinds_of(method)}
    jobs = []
    if Kind.TRAINING in kinds:
        wanted = [(site, bits) for site, widths in candidates for bits in widths if bits < TRAINED_BELOW_BITS]
        if wanted and (FULL_PRECISION, None) not in results.trained:
            jobs.append(Job((Kind.TRAINING,), FULL_PRECISION))
        jobs += [Job((Kind.TRAINING,), site, ((site, (bits,)),)) for site, bits in wanted if (site, bits) not in results.trained]
    if Kind.TRACE in kinds:
        unknown = tuple((site, widths) for site, widths in candidates if site not in results.traces)
        jobs += [Job((Kind.TRACE,), ALL_MIXTURES, unknown)] if unknown else []
    of_one_mixture = [kind for kind in (*Kind, *sorted(kinds - set(Kind))) if kind in kinds - {Kind.TRACE, Kind.TRAINING}]
    for mixture in mixtures:
        walks: dict[Candidates, list[str]] = {}
        others = []
        for kind in of_one_mixture:
            if untried := _untried(kind, mixture, candidates, results):
                if kind in ONE_SITE_KINDS:
                    walks.setdefault(untried, []).append(kind)
                else:
                    others.append(Job((kind,), mixture, untried))
        jobs += [Job(tuple(together), mixture, untried) for untried, together in walks.items()] + others
    return jobs


def _untried(kind: str, mixture: str, candidates: Candidates, results: Results) -> Candidates:
    untried = (
        (site, tuple(bits for bits in widths if (kind, mixture, site, bits) not in results.tried)) for site, widths in candidates
    )
    return tuple((site, widths) for site, widths in untried if widths)
