"""The main job shows what a search has found before it says what failed behind it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hwsearch.cli import main_job as job
from hwsearch.errors import UserError
from hwsearch.experiment import parse_experiment
from hwsearch.search.objectives import DROP_CI95
from hwsearch.workflow.runs import Run, read_run
from hwsearch.workspace import Workspace
from tests.shown_tables import tables
from tests.tiny import Answer, Tiny, hwsearch, tiny_content


@pytest.fixture
def searched(copied: Tiny, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    """A run whose search is finished, so that only what follows it is done."""
    monkeypatch.setattr(job, "search_shown", lambda *_, **__: None)
    (copied.folder / "front.png").unlink()
    return copied


def main_job(tiny: Tiny) -> Answer:
    return hwsearch("run", tiny.file, "--runs-dir", tiny.runs)


def shown(answer: Answer) -> list[str]:
    """What the answer on standard output holds, in its order."""
    return list(dict.fromkeys(line[:7].strip() if line[:1].isalpha() else line[:1] for line in answer.stdout.splitlines()))


def refuse(*_: object) -> None:
    raise UserError("the file is wrong")


def test_a_candidate_that_cannot_be_exported_does_not_cost_the_front(searched: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "export", refuse)
    answer = main_job(searched)
    assert answer.code == 2
    assert [word for word in shown(answer) if word[:1].isalpha()] == ["scored", "candida", "plot:", "chosen:", "report:"]
    table, shown_before = (text.partition("plot:")[0] for text in (answer.stdout, searched.stdout))
    assert table.strip()
    assert table == shown_before
    chosen = next(line.split()[2].rstrip(",") for line in answer.stdout.splitlines() if line.startswith("chosen:"))
    (error,) = [line for line in answer.stderr.splitlines() if "error" in line]
    assert error == answer.stderr.splitlines()[-1]
    assert error.startswith(f"hwsearch: error: candidate {chosen} was not exported: the file is wrong; 'hwsearch export ")


def test_a_plot_that_cannot_be_written_costs_neither_front_nor_export(searched: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "export", lambda *_: None)
    monkeypatch.setattr(job, "print_export", lambda _, folder: job.say(f"model:  {folder}"))
    (searched.folder / "front.png").mkdir()
    answer = main_job(searched)
    assert answer.code == 2
    assert [word for word in shown(answer) if word[:1].isalpha()] == [
        "scored",
        "candida",
        "chosen:",
        "model:",
        "next:",
        "report:",
    ]
    assert answer.stderr.splitlines()[-1].startswith(f"hwsearch: error: {searched.folder / 'front.png'}: ")


def test_a_report_that_cannot_be_written_is_an_error_behind_all_the_rest(searched: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "export", lambda *_: None)
    monkeypatch.setattr(job, "print_export", lambda _, folder: job.say(f"model:  {folder}"))
    (searched.folder / "report.html").unlink()
    (searched.folder / "report.html").mkdir()
    answer = main_job(searched)
    assert answer.code == 2
    assert [word for word in shown(answer) if word[:1].isalpha()] == ["scored", "candida", "plot:", "chosen:", "model:", "next:"]
    assert answer.stderr.splitlines()[-1].startswith(f"hwsearch: error: {searched.folder / 'report.html'}: ")


def test_a_report_in_the_way_is_refused_before_the_search(copied: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    (copied.folder / "report.html").unlink()
    (copied.folder / "report.html").mkdir()
    monkeypatch.setattr("hwsearch.workflow.search.build", lambda *_, **__: pytest.fail("searched"))
    answer = main_job(copied)
    assert (answer.code, answer.stdout) == (2, "")
    assert answer.stderr.startswith(f"hwsearch: error: {copied.folder / 'report.html'}: ")


def test_where_no_candidate_is_within_the_limits_the_front_is_shown_all_the_same(
    searched: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = tiny_content()
    content["search"]["limits"] = {"size_bytes": 1.0}
    Workspace(searched.runs, parse_experiment(content, source="here")).describe()
    monkeypatch.setattr("hwsearch.view.candidates.plot_front", refuse)
    answer = main_job(searched)
    assert answer.code == 2
    assert len(tables(answer.stdout)[0].rows) > 1
    error = answer.stderr.splitlines()[-1]
    assert error.startswith("hwsearch: error: the file is wrong; none of 60 candidates is within search.limits (size_bytes <= 1)")


def test_a_foreign_folder_in_the_export_s_place_is_refused_before_the_search(
    copied: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copied.folder / "export" / "thesis.tex").write_text("years")
    monkeypatch.setattr("hwsearch.workflow.search.build", lambda *_, **__: pytest.fail("searched"))
    answer = main_job(copied)
    assert (answer.code, answer.stdout) == (2, "")
    assert answer.stderr == (
        f"hwsearch: error: {copied.folder / 'export'}: holds something that is no export; wanted a new folder or an earlier "
        "export\n"
    )


@pytest.mark.parametrize(
    ("margin", "said"),
    [
        (0.25, None),
        (0.26, "± 0.26 dB on 3 validation mixtures, an interval wider than the 0.5 dB of export.max_drop_db; more mixtures may"),
        (14.3, "± 14.30 dB on 3 validation mixtures, an interval wider than the 0.5 dB of export.max_drop_db; more mixtures may"),
        (np.nan, "dB on 3 validation mixtures; no confidence interval of that is known"),
        (None, "dB on 3 validation mixtures; no confidence interval of that is known"),
    ],
)
def test_it_says_where_the_chosen_candidate_s_drop_is_known_less_exactly_than_asked_for(
    searched: Tiny, monkeypatch: pytest.MonkeyPatch, margin: float | None, said: str | None
) -> None:
    def opened(folder: Path) -> Run:
        run = read_run(folder)
        columns = {name: values for name, values in run.table.columns.items() if name != DROP_CI95}
        if margin is not None:
            columns[DROP_CI95] = np.full(len(run.table), margin)
        return replace(run, table=replace(run.table, columns=columns))

    monkeypatch.setattr(job, "read_run", opened)
    monkeypatch.setattr(job, "export", refuse)
    lines = main_job(searched).stdout.splitlines()
    (place,) = [number for number, line in enumerate(lines) if line.startswith("chosen:")]
    *after, last = lines[place + 1 :]
    assert last.startswith("report: ")
    assert len(after) == (said is not None)
    if said is not None:
        assert after[0].startswith("        it loses ")
        assert said in after[0]
