"""What an evaluation found, as a table of angle bins and a line per paired test."""

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from hw_models.figures import significant
from hwsearch.experiment import Experiment
from hwsearch.metrics.evaluation import UtteranceScores
from hwsearch.metrics.statistics import Estimate
from hwsearch.view.terminal import say, wide
from hwsearch.workflow.evaluate import Evaluation

FIGURES = (
    ("SI-SNR in, dB", "mixture_si_snr_db", "{:.2f}", 1.0),
    ("SI-SNR, dB", "si_snr_db", "{:.2f}", 1.0),
    ("improvement, dB", "si_snr_improvement_db", "{:.2f}", 1.0),
    ("PESQ in", "mixture_pesq", "{:.2f}", 1.0),
    ("PESQ", "pesq", "{:.2f}", 1.0),
    ("STOI in", "mixture_stoi", "{:.3f}", 1.0),
    ("STOI", "stoi", "{:.3f}", 1.0),
    ("WER in, %", "mixture_wer", "{:.1f}", 100.0),
    ("WER, %", "wer", "{:.1f}", 100.0),
    ("WER clean, %", "target_wer", "{:.1f}", 100.0),
)

"""Columns of the evaluation: heading, figure, format, factor."""


def print_evaluation(evaluation: Evaluation, experiment: Experiment, against: str) -> None:
    """Print a row per angle bin, what was not measured, and the paired tests.

    Args:
        evaluation: what is shown.
        experiment: whose test mixtures they are.
        against: what the tests compare with.
    """
    title = f"{escape(evaluation.system)}, test mixtures of {experiment.name}"
    table = Table("angle, deg", "n", *(heading for heading, *_ in FIGURES), title=title)
    for summary in evaluation.summaries:
        low, high = summary.angles_deg
        cells = [_interval(summary.figures.get(key), text, factor) for _, key, text, factor in FIGURES]
        table.add_row(f"{low:g}-{high:g}", str(summary.utterances), *cells)
    wide().print(table)
    results = evaluation.results
    say(f"95 % confidence intervals; words: {_words(results, experiment)}")
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


def _interval(estimate: Estimate | None, text: str, factor: float) -> str:
    if estimate is None:
        return ""
    value = text.format(factor * estimate.value)
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} [{text.format(factor * estimate.low)}, {text.format(factor * estimate.high)}]"
