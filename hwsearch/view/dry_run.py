"""What a search would run, in lines for people."""

from hwsearch.search.stopping import hours_said
from hwsearch.view.terminal import duration, say
from hwsearch.workflow.dry_run import DryRun


def print_plan(plan: DryRun) -> None:
    """Print what would run and what it would cost."""
    most = "" if plan.exact else "at most "
    seeds = ", ".join(f"{count} {origin}" for origin, count in plan.seeds.items())
    say(f"seeds:    {most}{sum(plan.seeds.values())}: {seeds}")
    if sum(plan.seeds.values()) > plan.rungs[0].candidates:
        say(f"          search.trials leaves room for the first {plan.rungs[0].candidates}")
    say(f"then:     {plan.proposer}")
    for rung in plan.rungs:
        each = "not measured" if rung.seconds_each is None else f"{rung.seconds_each:.2f} s each on one worker"
        done = f" ({rung.done} are done)" if rung.done else ""
        say(f"rung:     {rung.candidates} candidates at '{rung.fidelity.value}'{done}, {each}")
    say(f"workers:  {plan.workers or 'this process alone'}")
    for note in plan.data:
        say(f"data:     {note}")
    for missing in plan.missing:
        say(f"missing:  {missing}")
    if plan.hours is not None:
        say(f"hours:    {_hours_line(plan, plan.hours)}")
    if plan.stall is not None:
        say(f"stall:    {plan.stall}")
    if plan.storage is not None:
        say(f"storage:  {plan.storage}")
    if plan.measured is None:
        say("cost:     not estimated: scoring is measured once base, mixtures and device are there")
        return
    step = "" if plan.measured.step_seconds is None else f", {plan.measured.step_seconds:.2f} s for a training step"
    each = f"then {plan.measured.seconds_each:.2f} s each{step}"
    say(f"measured: {plan.measured.start_seconds:.1f} s until a worker is warm, {each}")
    if plan.measured.shared_seconds:
        say(f"shared:   about {duration(plan.measured.shared_seconds)} for the training of the shared network")
    say(f"time:     about {duration(plan.seconds or 0.0)} of scoring{', beside what is missing' if plan.missing else ''}")
    say(f"disk:     {(plan.disk_bytes or 0.0) / 1e6:.1f} MB for record, mirror and trained weights")
    say(f"memory:   about {(plan.memory_bytes or 0.0) / 1e9:.1f} GB")


def _hours_line(plan: DryRun, hours: float) -> str:
    """What the hours have room for."""
    said = hours_said(hours)
    if plan.measured is None:
        return f"{said} end the search if its trials do not before; how many fit in is not estimated"
    share = "" if plan.exact else "; what sensitivities take of them is not counted"
    pairs = list(zip(plan.scored_in_hours, plan.rungs, strict=True))
    if all(scored >= rung.candidates for scored, rung in pairs):
        return f"its trials end the search within {said}{share}"
    counts = [f"{scored} of {rung.candidates} candidates at '{rung.fidelity.value}'" for scored, rung in pairs]
    return f"{said} end the search after about {', '.join(counts)}{share}"
