"""Which jobs are missing, and what their results are looked up by."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from hwsearch.extensions import SENSITIVITIES
from hwsearch.sensitivity.jobs import Job, Kind, Result, Results, kinds_of, missing_jobs

SITES = (("a.weight", (2, 4, 8)), ("features", (4, 8)))
MIXTURES = ("m-0", "m-1", "m-2")


def done(job: Job, number: float = 1.0) -> list[Result]:
    if Kind.TRACE in job.kinds:
        return [Result(kind=Kind.TRACE, subject=site, samples=((number,),) * 3) for site, _ in job.candidates]
    if Kind.TRAINING in job.kinds:
        bits = job.candidates[0][1][0] if job.candidates else None
        return [Result(kind=Kind.TRAINING, subject=job.subject, samples=((number,),) * 3, bits=bits)]
    numbers = {site: dict.fromkeys(widths, number) for site, widths in job.candidates}
    return [Result(kind=kind, subject=job.subject, by_width={kind: numbers}) for kind in job.kinds]


def test_every_method_has_jobs_and_every_kind_is_used() -> None:
    assert {kind for method in SENSITIVITIES for kind in kinds_of(method)} == set(Kind)


@given(st.lists(st.sampled_from(list(SENSITIVITIES)), min_size=1, unique=True), st.data())
@settings(deadline=None)
def test_whatever_jobs_are_done_the_missing_ones_make_it_whole_and_none_is_done_twice(
    methods: list[str], data: st.DataObject
) -> None:
    results = Results()
    every = missing_jobs(methods, SITES, MIXTURES, results)
    kept = data.draw(st.lists(st.sampled_from(every), unique=True))
    for job in kept:
        for result in done(job):
            results.add(result)
    missing = missing_jobs(methods, SITES, MIXTURES, results)
    assert set(missing) == set(every) - set(kept)
    assert all(job.effort > 0 for job in missing)
    for job in missing:
        for result in done(job):
            results.add(result)
    assert missing_jobs(methods, SITES, MIXTURES, results) == []


def test_only_narrow_widths_are_trained_and_full_precision_once() -> None:
    jobs = [job for job in missing_jobs(["recoverability"], SITES, MIXTURES, Results()) if Kind.TRAINING in job.kinds]
    assert [str(job) for job in jobs] == [
        "training of the full-precision network",
        "training of a.weight at 2 bits",
        "training of a.weight at 4 bits",
        "training of features at 4 bits",
    ]
    wide = (("a.weight", (5, 8)),)
    assert {job.kinds for job in missing_jobs(["recoverability"], wide, MIXTURES, Results())} == {(Kind.OUTPUT_NOISE,)}


def test_what_is_missing_for_the_same_sites_and_widths_is_one_walk_over_them() -> None:
    results = Results()
    methods = ["measured-noise-ratio", "output-noise-ratio", "kl", "gradient", "curvature"]
    jobs = missing_jobs(methods, SITES, ("m-0",), results)
    assert [str(job) for job in jobs] == [
        "trace of all mixtures",
        "measured, output-noise, kl of m-0",
        "gradient of m-0",
        "errors of m-0",
    ]
    assert all(job.candidates == SITES for job in jobs)
    results.add(Result(kind=Kind.KL, subject="m-0", by_width={"kl": {"a.weight": {2: 1, 4: 2, 8: 3}}}))
    results.add(Result(kind=Kind.TRACE, subject="a.weight", samples=((1.0,),)))
    rest = {job.kinds: job.candidates for job in missing_jobs(methods, SITES, ("m-0",), results)}
    assert rest[Kind.MEASURED, Kind.OUTPUT_NOISE] == SITES
    assert rest[Kind.KL,] == rest[Kind.TRACE,] == SITES[1:]


def test_numbers_stand_at_their_site_and_width() -> None:
    results = Results()
    results.add(Result(kind=Kind.KL, subject="m-0", by_width={"kl": {"a.weight": {2: 1, 4: 2, 8: 3}, "features": {4: 4}}}))
    results.add(Result(kind=Kind.KL, subject="m-0", by_width={"kl": {"features": {8: 5.0}}}))
    found = results.of_mixture("kl", "m-0", SITES)
    assert found[0].tolist() == [1.0, 2.0, 3.0]
    assert math.isnan(found[1, 0])
    assert found[1, 1:].tolist() == [4.0, 5.0]
