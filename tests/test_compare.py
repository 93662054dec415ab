"""`hwsearch compare`: fronts side by side, and paired tests where two runs share mixtures."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hwsearch.data.audio import write_audio
from hwsearch.experiment import Split
from hwsearch.files.reading import file_digest
from hwsearch.metrics.si_snr import si_snr
from hwsearch.metrics.statistics import paired_permutation_test
from hwsearch.view.report.compare import comparison_html
from hwsearch.workflow.compare import Comparison, _Bench, compare_runs
from hwsearch.workflow.evaluate import candidate_system
from hwsearch.workflow.runs import open_candidate, read_run
from hwsearch.workflow.training import prepare
from hwsearch.workspace import Workspace
from tests.tiny import Tiny, hwsearch, refusal, write_tiny
from tests.view.reports import HARMFUL

SIZE = "size_bytes"


@pytest.fixture(scope="module")
def other(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the same data whose search is shorter, so that it has other candidates."""
    folder = tmp_path_factory.mktemp("other")
    for name in ("data", "corpora"):
        shutil.copytree(tiny.runs / name, folder / "runs" / name)
    file = write_tiny(folder / "other.toml", ('name = "tiny"', 'name = "other"'), ("trials = 60", "trials = 16"))
    answer = hwsearch("search", file, "--runs-dir", folder / "runs", "--workers", "0", "--processes", "1")
    assert answer.code == 0, answer.stderr
    return folder / "runs" / "other"


@pytest.fixture(scope="module")
def compared(tiny: Tiny, other: Path) -> Comparison:
    return compare_runs([tiny.folder, other], SIZE)


def test_the_best_at_a_level_is_the_best_of_all_that_cost_no_more(compared: Comparison, tiny: Tiny, other: Path) -> None:
    assert compared.names == ("tiny", "other")
    assert len(compared.levels) > 2
    for level in compared.levels:
        for folder, best in zip((tiny.folder, other), level.best, strict=True):
            rows = [
                (quality, size, number)
                for number, quality, size in zip(
                    read_run(folder).table.candidate.tolist(),
                    read_run(folder).table.columns["si_snr_improvement_db"].tolist(),
                    read_run(folder).table.columns[SIZE].tolist(),
                    strict=True,
                )
                if size <= level.limit
            ]
            assert best is not None
            assert best.quality == max(rows)[0]
            assert (best.quality, best.cost, best.candidate) in rows


def test_a_paired_test_is_that_of_the_two_candidates_on_the_shared_test_mixtures(
    compared: Comparison, tiny: Tiny, other: Path
) -> None:
    assert compared.untested == {}
    assert [each.limit for each in compared.tests] == [level.limit for level in compared.levels]
    found = compared.tests[0]
    assert found.split is Split.TEST
    scores = []
    for folder, number in zip((tiny.folder, other), found.candidates, strict=True):
        run = read_run(folder)
        opened = open_candidate(run, prepare(run.workspace), number)
        system = candidate_system(opened.base, opened.configuration.allocation, opened.state)
        with torch.no_grad():
            mixtures = tiny.mixtures(Split.TEST)
            scores.append([float(si_snr(system(sound, mixture.target.doa_deg), target)) for mixture, sound, target in mixtures])
    groups = [mixture.target.utterance for mixture, *_ in tiny.mixtures(Split.TEST)]
    wanted = paired_permutation_test(scores[1], scores[0], tiny.workspace.experiment.seed, groups)
    assert found.test.difference == pytest.approx(wanted.difference, abs=1e-9)
    assert found.test.p_value == pytest.approx(wanted.p_value)
    assert found.test.n == 3


def test_the_command_prints_and_draws_the_comparison(tiny: Tiny, other: Path, tmp_path: Path) -> None:
    answer = hwsearch("compare", tiny.folder, other, "--output", tmp_path / "page.html", "--cost", "latency_ms[ethos-u55-128]")
    assert answer.code == 0, answer.stderr
    assert "best SI-SNR improvement in dB at equal latency_ms[ethos-u55-128]" in answer.stdout
    assert "other - tiny" in answer.stdout
    assert answer.stdout.splitlines()[-1] == f"comparison: {tmp_path / 'page.html'}"
    text = (tmp_path / "page.html").read_text("utf-8")
    assert len(text.encode()) < 8 * 10**6
    data = json.loads(re.search(r'id="data">(.*?)</script>', text).group(1))
    assert [series["name"] for series in data["series"]] == ["tiny", "other"]
    assert data["axes"]["x"] == "latency_ms[ethos-u55-128]"
    assert len(data["rows"]["candidate"]) == 60 + 16


def test_runs_without_common_mixtures_are_shown_and_the_reason_is_said(tiny: Tiny, other: Path, tmp_path: Path) -> None:
    shutil.copytree(other.parent, tmp_path / "runs")
    (folder,) = (tmp_path / "runs" / "data").iterdir()
    for split in ("test", "validation"):
        lines = [json.loads(line) for line in (folder / split / "manifest.jsonl").read_text().splitlines()]
        for line in lines[1:]:
            line["mixture_sha256"] = "0" * 64
        (folder / split / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = compare_runs([tiny.folder, tmp_path / "runs" / "other"], SIZE)
    assert found.tests == ()
    (reason,) = found.untested.values()
    assert "changed since the search" in reason
    answer = hwsearch("compare", tiny.folder, tmp_path / "runs" / "other")
    assert answer.code == 0
    assert "no paired test of other against tiny: " in answer.stdout


def test_too_few_shared_mixtures_are_counted(tiny: Tiny, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hwsearch.workflow import compare

    def fewer(folder: Path, split: Split):
        found = opened(folder, split)
        if folder == Workspace(other.parent, read_run(other).workspace.experiment).data_folder:
            found = [found[0], *(replace(each, target_sha256="f" * 64) for each in found[1:])]
        return found

    opened = compare.open_dataset
    monkeypatch.setattr(compare, "open_dataset", fewer)
    found = compare_runs([tiny.folder, other], SIZE)
    assert found.tests == ()
    assert list(found.untested.values()) == [
        "they share 1 test and 1 validation mixtures; wanted at least 2 of one kind, with the same sound"
    ]


def test_names_of_runs_do_no_harm_in_the_page(compared: Comparison) -> None:
    text = comparison_html(replace(compared, names=HARMFUL[1:3], notes=HARMFUL))
    outside = re.sub(r"<script>.*?</script>", "", text.replace(HARMFUL[0], ""), flags=re.DOTALL)
    assert "window.harmed=2</script>" not in text
    assert "<img" not in outside
    assert text.count("<script") == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["RUN"], "1 run; wanted at least two to compare"),
        (["RUN", "RUN"], "a run is named twice; wanted different ones"),
        (["RUN", "nowhere"], "nowhere: not a run folder"),
        (["RUN", "OTHER", "--cost", "weight"], "RUN: no cost 'weight'; wanted one of "),
        (["RUN", "OTHER", "--cost", "si_snr_improvement_db"], "RUN: no cost 'si_snr_improvement_db'; wanted one of "),
        (["RUN", "OTHER", "--cost", "utterances"], "RUN: no cost 'utterances'; wanted one of "),
        (["RUN", "OTHER", "--cost", "drop_ci95_db"], "RUN: no cost 'drop_ci95_db'; wanted one of "),
        (["RUN", "OTHER", "--cost", "drop_db"], "RUN: no cost 'drop_db'; wanted one of size_bytes, average_bits, "),
        (["RUN", "OTHER", "--output", "page.png"], "--output is page.png; wanted a file whose name ends in .html"),
    ],
)
def test_wrong_inputs_get_one_line(tiny: Tiny, other: Path, arguments: list[str], said: str) -> None:
    def given(text: str) -> str:
        return text.replace("RUN", str(tiny.folder)).replace("OTHER", str(other))

    assert refusal(hwsearch("compare", *map(given, arguments))).startswith(given(said))


def test_levels_are_round_and_none_is_out_of_reach(compared: Comparison) -> None:
    limits = [level.limit for level in compared.levels]
    assert limits == sorted(set(limits))
    assert all(np.isclose(limit, float(f"{limit:.3g}")) for limit in limits)
    assert all(best is not None for level in compared.levels for best in level.best)


def test_two_targets_of_one_mixture_are_scored_apart(copied: Tiny) -> None:
    (first, sound, target), *_ = copied.mixtures(Split.TEST)
    other = sound[0] - target
    folder = copied.workspace.data_folder
    write_audio(folder / "other.wav", other, first.sample_rate)
    second = replace(first, id="other", target_path="other.wav", target_sha256=file_digest(folder / "other.wav"))
    bench = _Bench([read_run(copied.folder)])
    scores = [bench.score(0, 1, mixture) for mixture in (first, second)]
    opened = open_candidate(bench.runs[0], prepare(copied.workspace), 1)
    estimate = candidate_system(opened.base, opened.configuration.allocation, opened.state)(sound, first.doa_deg)
    assert scores == pytest.approx([float(si_snr(estimate, wanted)) for wanted in (target, other)])
