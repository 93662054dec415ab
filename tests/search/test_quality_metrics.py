"""Metrics beside SI-SNR in a search: what candidates are scored with is what `hwsearch evaluate` finds."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hwsearch.errors import UserError
from hwsearch.experiment import Experiment, Fidelity, Split, parse_experiment
from hwsearch.extensions import QUALITY_METRICS
from hwsearch.metrics.evaluation import evaluate
from hwsearch.metrics.quality import Heard
from hwsearch.search.objectives import Direction, objectives_of
from hwsearch.search.scoring import ScoringJob
from hwsearch.separator.allocation import uniform
from hwsearch.separator.configuration import Configuration
from hwsearch.workflow.checks import check_plan
from hwsearch.workflow.evaluate import candidate_system
from hwsearch.workflow.training import prepare
from hwsearch.workspace import Workspace
from tests.tiny import Tiny, tiny_content


def with_objectives(*columns: str, **evaluation: str) -> Experiment:
    content = tiny_content()
    content["search"]["objectives"] = [*columns, "size_bytes"]
    return parse_experiment({**content, "evaluation": evaluation}, source="here")


def test_a_candidate_is_scored_as_it_is_evaluated(tiny: Tiny) -> None:
    experiment = with_objectives("pesq", "stoi")
    workspace = Workspace(tiny.runs, experiment)
    prepared = prepare(workspace)
    allocation = uniform(prepared.sites, 6, 8)
    score = replace(tiny.scorer_factory, experiment=experiment)()
    found = score(ScoringJob(Configuration(allocation), Fidelity.POST_TRAINING))

    mixtures = [mixture for mixture, *_ in tiny.mixtures(Split.VALIDATION)]
    results = evaluate(candidate_system(prepared, allocation), workspace.data_folder, mixtures, None, lambda *_: None)
    for name in ("pesq", "stoi"):
        values = [result.scores[name] for result in results]
        assert found[name] == pytest.approx(np.mean(values), rel=1e-6)
        assert found[f"{name}_ci95"] > 0
    improvements = [result.scores["si_snr_improvement_db"] for result in results]
    assert found["si_snr_improvement_db"] == pytest.approx(np.mean(improvements), abs=1e-4)


class Parrot:
    """A recogniser that hears the words given, one list after another."""

    sample_rate = 8000

    def __init__(self, *heard: str) -> None:
        self._heard = list(heard)

    def can_write(self, transcript: str) -> bool:
        del transcript
        return True

    def transcribe(self, audio: object) -> str:
        del audio
        return self._heard.pop(0)


def test_word_errors_are_counted_over_all_mixtures_that_have_words() -> None:
    """Two of eight words are wrong; a mean of the two rates would be 0.27."""
    sound = np.sin(np.arange(8000, dtype=np.float32) / 5)
    recogniser = Parrot("one too three four five", "six seven")
    said = ("one two three four five", None, "six seven eight")
    heard = [Heard(sound, sound, sound, 8000, words, recogniser) for words in said]
    estimate = QUALITY_METRICS.load("wer").of(heard)
    assert estimate is not None
    assert estimate.value == pytest.approx(2 / 8)


def test_each_metric_has_its_direction() -> None:
    directions = {objective.column: objective.direction for objective in objectives_of([*QUALITY_METRICS, "size_bytes"])}
    assert directions == {
        "si_snr_improvement_db": Direction.MAXIMIZE,
        "pesq": Direction.MAXIMIZE,
        "stoi": Direction.MAXIMIZE,
        "wer": Direction.MINIMIZE,
        "size_bytes": Direction.MINIMIZE,
    }


def test_an_estimate_without_sound_counts_as_the_worst() -> None:
    sound = np.sin(np.arange(8000, dtype=np.float32) / 5)
    silent = Heard(np.zeros_like(sound), sound, sound, 8000)
    for name, worst in (("pesq", 1.0), ("stoi", 0.0)):
        estimate = QUALITY_METRICS.load(name).of([silent])
        assert estimate is not None
        assert estimate.value == worst
    assert QUALITY_METRICS.load("wer").of([silent]) is None


def test_words_without_a_recogniser_are_refused_before_the_search(tmp_path: Path) -> None:
    experiment = with_objectives("wer", recogniser="none")
    with pytest.raises(UserError, match=r"^search.objectives: 'wer' counts words; wanted an evaluation.recogniser other than"):
        check_plan(Workspace(tmp_path, experiment), may_train=False)


@pytest.mark.parametrize("columns", [("size_bytes", "pesq"), ("pesq", "stoi")])
def test_a_front_is_of_quality_first_and_of_a_cost(columns: tuple[str, str]) -> None:
    content = tiny_content()
    content["search"]["objectives"] = list(columns)
    with pytest.raises(UserError, match=r"objectives .* must (differ and begin with|hold a cost)"):
        parse_experiment(content, source="here")
