"""What was found about an installation, in lines for people."""

import textwrap
from collections.abc import Iterable

from hwsearch.view.tables import WIDTH
from hwsearch.view.terminal import say
from hwsearch.workflow.doctor import Finding, State

_INDENT = " " * 9


def print_findings(findings: Iterable[Finding]) -> dict[State, int]:
    """Print each finding as it comes, and return how many there are of each state."""
    counts = dict.fromkeys(State, 0)
    for finding in findings:
        counts[finding.state] += 1
        _print(f"{finding.state.value:<8} {finding.topic}: {finding.said}")
        if finding.advice:
            _print(f"{_INDENT}-> {finding.advice}")
    return counts


def print_sum(counts: dict[State, int]) -> None:
    """Print how much is wrong."""
    wrong, warnings = counts[State.WRONG], counts[State.WARNING]
    say(f"{wrong or 'nothing'} wrong, {warnings or 'no'} warning{'s' * (warnings != 1)}")


def _print(text: str) -> None:
    for line in textwrap.wrap(text, WIDTH, subsequent_indent=_INDENT, break_on_hyphens=False, break_long_words=False):
        say(line)
