"""The figures of an evaluation by angle bin, and a line for each paired test."""

from collections.abc import Sequence

from hw_models.figures import significant
from hwsearch.experiment import Experiment
from hwsearch.metrics.evaluation import UtteranceScores
from hwsearch.metrics.statistics import Estimate
from hwsearch.view.tables import Column, print_table
from hwsearch.view.terminal import say
from hwsearch.workflow.evaluate import Evaluation

FIGURES = (
    ("SI-SNR, dB", "mixture_si_snr_db", "si_snr_db", "{:.2f}", 1.0),
    ("improvement, dB", "", "si_snr_improvement_db", "{:.2f}", 1.0),
    ("PESQ", "mixture_pesq", "pesq", "{:.2f}", 1.0),
    ("STOI", "mixture_stoi", "stoi", "{:.3f}", 1.0),
    ("WER, %", "mixture_wer", "wer", "{:.1f}", 100.0),
    ("clean WER, %", "", "target_wer", "{:.1f}", 100.0),
)
"""Rows of the evaluation: name, figure of the mixture, figure of the separated speech, format, factor."""


def print_evaluation(evaluation: Evaluation, experiment: Experiment, against: str) -> None:
    """Print the figures of each angle bin, what was not measured, and the tests against another network's file."""
    shown = [
        (summary, *figure)
        for summary in evaluation.summaries
        for figure in FIGURES
        if {figure[1], figure[2]} & summary.figures.keys()
    ]
    angles = [f"{summary.angles_deg[0]:g}-{summary.angles_deg[1]:g}" for summary, *_ in shown]
    columns = [
        Column("angle", angles, words=True, note="deg"),
        Column("n", [str(summary.utterances) for summary, *_ in shown]),
        Column("figure", [name for _, name, *_ in shown], words=True),
        Column("mixture", [interval_text(of.figures.get(key), text, factor) for of, _, key, _, text, factor in shown]),
        Column("separated", [interval_text(of.figures.get(key), text, factor) for of, _, _, key, text, factor in shown]),
    ]
    print_table(columns, f"{evaluation.system}, test mixtures of {experiment.name}")
    results = evaluation.results
    say("in brackets: 95 % confidence intervals")
    say(f"words: {_words(results, experiment)}")
    for key in sorted({key for result in results for key in result.unavailable}):
        missing = [result.id for result in results if key in result.unavailable]
        say(f"no {key} for {len(missing)}: {', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}")
    for key, test in evaluation.tests.items():
        chance = "" if test.p_value is None else f", p = {significant(test.p_value, 2)}"
        counts = f"{test.n} mixtures of {test.groups} utterances"
        say(f"{key} against {against}: {test.difference:+.3f}{chance} ({test.method}, {counts})")


def _words(results: Sequence[UtteranceScores], experiment: Experiment) -> str:
    known = sum(bool(result.words) for result in results)
    recogniser = {
        "none": "no recogniser",
        "ctc-digits": "digit CTC recogniser (closed vocabulary: zero to nine)",
        "pocketsphinx-closed": "pocketsphinx, closed vocabulary from the test transcripts",
    }[experiment.evaluation.recogniser]
    return f"{recogniser}, {known} of {len(results)} mixtures"


def interval_text(estimate: Estimate | None, text: str, factor: float) -> str:
    """Write a figure times a factor, with its interval in brackets if it has one; nothing for None."""
    if estimate is None:
        return ""
    value = text.format(factor * estimate.value)
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} [{text.format(factor * estimate.low)}, {text.format(factor * estimate.high)}]"
