"""Several runs against each other, as tables for people."""

from hw_models.figures import significant
from hwsearch.search.objectives import in_figures
from hwsearch.view.tables import Column, print_table
from hwsearch.view.terminal import say
from hwsearch.workflow.compare import Best, Comparison


def print_comparison(comparison: Comparison) -> None:
    """Print the best candidates at equal cost, the paired tests, and between which runs there is none."""
    print_table(level_table(comparison), f"best SI-SNR improvement in dB at equal {comparison.cost}")
    say("in parentheses: the candidate")
    if comparison.tests:
        print_table(test_table(comparison), "paired tests: second run minus first, in dB of SI-SNR on the same mixtures")
        say("p: not corrected for the number of tests")
    for line in (*untested_lines(comparison), *(f"note: {note}" for note in comparison.notes)):
        say(line)


def level_table(comparison: Comparison) -> list[Column]:
    """Make a row for each level and a column for each run."""
    limits = [f"<= {in_figures(comparison.cost, level.limit)}" for level in comparison.levels]
    columns = [Column(comparison.cost, limits)]
    for place, name in enumerate(comparison.names):
        columns.append(Column(name, [_best(level.best[place]) for level in comparison.levels], note="± 95 %"))
    return columns


def test_table(comparison: Comparison) -> list[Column]:
    """Make a row for each paired test; no columns without one."""
    tests = comparison.tests
    if not tests:
        return []
    return [
        Column("runs", [" - ".join(reversed(each.runs)) for each in tests], words=True),
        Column(comparison.cost, [f"<= {in_figures(comparison.cost, each.limit)}" for each in tests]),
        Column("candidates", [f"{each.candidates[1]} - {each.candidates[0]}" for each in tests]),
        Column("difference", [f"{each.test.difference:+.3f}" for each in tests], note="dB"),
        Column("p", ["" if each.test.p_value is None else significant(each.test.p_value, 2) for each in tests]),
        Column("mixtures", [f"{each.test.n} {each.split.value}" for each in tests]),
    ]


def untested_lines(comparison: Comparison) -> list[str]:
    """Say between which runs no paired test is possible, and why."""
    return [f"no paired test of {second} against {first}: {reason}" for (first, second), reason in comparison.untested.items()]


def _best(best: Best | None) -> str:
    if best is None:
        return "none"
    margin = "" if best.margin is None else f" ± {best.margin:.2f}"
    return f"{best.quality:.2f}{margin} ({best.candidate})"
