"""What a search would do, in lines for people."""

from collections.abc import Iterator

from hwsearch.search.stopping import hours_said
from hwsearch.view.terminal import duration
from hwsearch.workflow.dry_run import DryRun


def lines(plan: DryRun) -> Iterator[str]:
    """The plan as text for people."""
    most = "" if plan.exact else "at most "
    seeds = ", ".join(f"{count} {origin}" for origin, count in plan.seeds.items())
    yield f"seeds:    {most}{sum(plan.seeds.values())}: {seeds}"
    if sum(plan.seeds.values()) > plan.rungs[0].candidates:
        yield f"          search.trials leaves room for the first {plan.rungs[0].candidates}"
    yield f"then:     {plan.proposer}"
    for rung in plan.rungs:
        each = "not measured" if rung.seconds_each is None else f"{rung.seconds_each:.2f} s each on one worker"
        done = f" ({rung.done} are done)" if rung.done else ""
        yield f"rung:     {rung.candidates} candidates at '{rung.fidelity.value}'{done}, {each}"
    yield f"workers:  {plan.workers or 'this process alone'}"
    for missing in plan.missing:
        yield f"missing:  {missing}"
    if plan.hours is not None:
        yield f"hours:    {_hours_line(plan, plan.hours)}"
    if plan.stall is not None:
        yield f"stall:    {plan.stall}"
    if plan.storage is not None:
        yield f"storage:  {plan.storage}"
    if plan.measured is None:
        yield "cost:     not estimated: scoring is measured once base, mixtures and device are there"
        return
    yield (
        f"measured: {plan.measured.start_seconds:.1f} s until a worker is warm, then {plan.measured.seconds_each:.2f} s each"
        + ("" if plan.measured.step_seconds is None else f", {plan.measured.step_seconds:.2f} s for a training step")
    )
    beside = ", beside what is missing" if plan.missing else ""
    time_said = (
        "unknown: a training rung is measured once training mixtures are there"
        if plan.seconds is None
        else (f"about {duration(plan.seconds)} of scoring{beside}")
    )
    yield f"time:     {time_said}"
    yield f"disk:     {(plan.disk_bytes or 0.0) / 1e6:.1f} MB for record, mirror and trained weights"
    yield f"memory:   about {(plan.memory_bytes or 0.0) / 1e9:.1f} GB"


def _hours_line(plan: DryRun, hours: float) -> str:
    """What the hours have room for."""
    said = hours_said(hours)
    if plan.measured is None:
        return f"{said} end the search if its trials do not before; how many fit in is not estimated"
    share = "" if plan.exact else "; what sensitivities take of them is not counted"
    pairs = list(zip(plan.scored_in_hours, plan.rungs, strict=False))
    whole = all(scored >= rung.candidates for scored, rung in pairs)
    if whole and len(pairs) == len(plan.rungs):
        return f"its trials end the search within {said}{share}"
    counts = [f"{scored} of {rung.candidates} candidates at '{rung.fidelity.value}'" for scored, rung in pairs]
    if whole:  # and the next one could not be measured
        counts.append(f"some at '{plan.rungs[len(pairs)].fidelity.value}', which is not measured")
    return f"{said} end the search after about {', '.join(counts)}{share}"
