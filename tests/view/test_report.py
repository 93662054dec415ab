"""The report of a run as a file: it is whole, small, asks for nothing, and holds what the run found."""

import base64
import io
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from matplotlib.image import imread

from hw_models.breakdown import per_layer
from hw_models.workload import bits_matrix
from hwsearch.data.dataset import open_dataset
from hwsearch.experiment import Fidelity, Split
from hwsearch.metrics.si_snr import si_snr
from hwsearch.results.query import query
from hwsearch.search.costs import compile_targets, experiment_workload
from hwsearch.view.report.candidates import candidate_data, fidelity_series
from hwsearch.view.report.report import report_html
from hwsearch.view.report.sound import PEAK, flac, levelled, picture
from hwsearch.workflow.listening import RANGE_DB, Clip, listen, spectrogram
from hwsearch.workflow.network_costs import network_costs
from hwsearch.workflow.report import heard_candidates, make_report
from hwsearch.workflow.runs import read_run
from hwsearch.workflow.separate import separate_file
from tests.tiny import Tiny, hwsearch, refusal
from tests.view.reports import HARMFUL, RATE, made_up_listening, made_up_report, made_up_table

MOST_BYTES = 8 * 10**6


class Tags(HTMLParser):
    """Every tag of a page with its attributes, and the text of the elements that hold no tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        tag, attributes = self.tags[-1] if self.tags else ("", {})
        self.texts.setdefault(attributes.get("id") or tag, data)


def data_of(text: str) -> dict:
    """The data that the scripts of a page read."""
    return json.loads(Tags(text).texts["data"])


@pytest.fixture(scope="module")
def page(tiny: Tiny) -> str:
    """The report that the main job wrote."""
    return (tiny.folder / "report.html").read_text("utf-8")


def decoded(clip: dict) -> tuple[np.ndarray, int]:
    kind, _, content = clip["sound"].partition(",")
    assert kind == "data:audio/flac;base64"
    samples, rate = sf.read(io.BytesIO(base64.b64decode(content)), dtype="float64")
    return samples, rate


def test_the_main_job_ends_with_the_report_and_says_where_it_is(tiny: Tiny, page: str) -> None:
    assert tiny.stdout.splitlines()[-1] == f"report: {tiny.folder / 'report.html'}"
    assert "warning: the report" not in tiny.stderr
    assert 'class="warning"></p>' not in page
    assert len(page.encode()) <= MOST_BYTES


def test_a_page_loads_nothing(page: str) -> None:
    found = Tags(page)
    names = {"src", "href", "srcset", "action", "data", "poster", "background"}
    links = [value for _, attributes in found.tags for name, value in attributes.items() if name in names]
    assert links
    assert all(link.startswith("#") for link in links)
    assert not re.search(r"url\(|@import", found.texts["style"])
    (policy,) = [
        attributes["content"] for _, attributes in found.tags if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "http" not in policy
    assert not {"link", "iframe", "object", "embed", "base"} & {tag for tag, _ in found.tags}


def test_the_page_holds_every_candidate_with_exact_values(tiny: Tiny, page: str) -> None:
    data, table = data_of(page), read_run(tiny.folder).table
    assert data["rows"]["candidate"] == table.candidate.tolist()
    for name, values in table.columns.items():
        np.testing.assert_array_equal(np.array(data["values"][name], dtype=np.float64), values)
    for row, place in enumerate(data["configuration"]):
        assert [int(digit, 36) for digit in data["configurations"][place]["bits"]] == table.widths[row].tolist()


def test_the_sound_of_the_exported_candidate_is_what_separate_gives(tiny: Tiny, page: str, tmp_path: Path) -> None:
    data = data_of(page)
    name = data["sound"]["about"].split()[1].rstrip(",")
    workspace = tiny.workspace
    (mixture,) = [each for each in open_dataset(workspace.data_folder, Split.TEST) if each.id == name]
    separate_file(tiny.model, workspace.data_folder / mixture.mixture_path, mixture.target.doa_deg, tmp_path / "target.wav")
    separated, _ = sf.read(tmp_path / "target.wav")
    clips = {clip["name"]: clip for clip in data["sound"]["clips"]}
    (exported,) = [clip for title, clip in clips.items() if title == f"candidate {data['chosen']} (for export)"]
    samples, rate = decoded(exported)
    assert rate == mixture.sample_rate
    assert si_snr(samples, separated[: len(samples)]) > 40
    target, _ = sf.read(workspace.data_folder / mixture.target_path)
    assert si_snr(decoded(clips["target"])[0], target) > 40
    sound, _ = sf.read(workspace.data_folder / mixture.mixture_path)
    assert si_snr(decoded(clips["mixture"])[0], sound[:, 0]) > 40
    assert len(clips) == 3 + len(heard_candidates(read_run(tiny.folder), data["chosen"]))


def test_times_by_layer_are_those_of_the_cost_command(tiny: Tiny, page: str) -> None:
    run, data = read_run(tiny.folder), data_of(page)
    workload = experiment_workload(run.workspace.experiment)
    tables = compile_targets(run.workspace.experiment, workload)
    assert [layers["target"] for layers in data["layers"]] == list(tables)
    for layers in data["layers"]:
        assert set(layers["candidates"]) == set(map(str, run.table.candidate.tolist()))
        for number in (1, data["chosen"]):
            bits = bits_matrix(workload, [run.configuration(number).allocation.by_site])[0]
            costs = per_layer(tables[layers["target"]], bits)
            pairs = [values[place] for values, place in zip(layers["values"], layers["candidates"][str(number)], strict=True)]
            assert [pair[0] for pair in pairs] == pytest.approx([cost.latency_ms for cost in costs], rel=1e-3)
            energies = [cost.energy_uj for cost in costs]
            assert [np.nan if pair[1] is None else pair[1] for pair in pairs] == pytest.approx(energies, rel=1e-3, nan_ok=True)


def test_texts_from_files_are_text_in_the_page() -> None:
    text = report_html(made_up_report())
    found = Tags(text)
    assert found.texts["h1"].startswith(HARMFUL[0])
    assert [tag for tag, _ in found.tags].count("script") == 3
    assert "img" not in {tag for tag, _ in found.tags}
    data = data_of(text)
    assert set(HARMFUL) <= set(data["strategies"])
    assert data["layers"][0]["target"] == HARMFUL[1]
    assert not re.search(
        r"<(?!/script>)", text[text.index('id="data">') + 10 : text.index("</script>", text.index('id="data">'))]
    )


def test_clips_have_the_loudness_of_the_target_and_stay_below_full_scale() -> None:
    clips = made_up_listening().clips
    found = levelled(clips)
    loudness = [float(np.sqrt((samples.astype(np.float64) ** 2).mean())) for samples in found]
    assert loudness[2:] == pytest.approx([loudness[1]] * 3, rel=1e-5)
    assert loudness[0] / loudness[1] == pytest.approx(0.1 / 0.2, rel=1e-5)  # the mixture keeps its own
    assert max(np.abs(samples).max() for samples in found) == pytest.approx(PEAK)


def test_a_silent_clip_stays_silent() -> None:
    clips = list(made_up_listening().clips)
    clips[3] = replace(clips[3], samples=np.zeros_like(clips[3].samples))
    found = levelled(clips)
    assert not found[3].any()
    assert all(np.isfinite(samples).all() for samples in found)


def test_flac_keeps_sixteen_bits() -> None:
    samples = (0.5 * np.random.default_rng(0).standard_normal(4000)).clip(-1, 0.999).astype(np.float32)
    back, rate = sf.read(io.BytesIO(flac(samples, RATE)))
    assert rate == RATE
    np.testing.assert_allclose(back, samples, atol=2**-15)


def test_a_tone_is_a_line_in_its_spectrogram_and_low_frequencies_are_below() -> None:
    clip: Clip = made_up_listening().clips[0]
    levels = clip.spectrogram
    middle = levels[:, levels.shape[1] // 2]
    frequencies = np.linspace(0, RATE / 2, len(middle))
    assert frequencies[middle.argmax()] == pytest.approx(500, abs=20)
    assert levels.max() == 0.0
    assert levels.min() >= -RANGE_DB
    drawn = imread(io.BytesIO(picture(levels)))[..., :3].sum(axis=2)
    assert drawn.shape == levels.shape
    assert drawn[:, levels.shape[1] // 2].argmax() == len(middle) - 1 - middle.argmax()


def test_silence_has_a_spectrogram() -> None:
    assert (spectrogram(np.zeros(800, np.float32), RATE) == -RANGE_DB).all()
    assert spectrogram(np.zeros(3, np.float32), RATE).size


def test_the_exported_candidate_and_the_ends_of_the_front_are_heard_first(tiny: Tiny) -> None:
    run = read_run(tiny.folder)
    front = query(run.table)
    heard = heard_candidates(run, int(front.candidate[1]))
    assert [number for number, _ in heard[:3]] == [front.candidate[1], front.candidate[0], front.candidate[-1]]
    assert len({number for number, _ in heard}) == len(heard) <= 4


def test_of_very_many_candidates_the_front_the_uniform_and_the_chosen_ones_stay(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hwsearch.workflow.report.MOST_VALUES", 1)
    monkeypatch.setattr("hwsearch.workflow.report.FEWEST_ROWS", 5)
    monkeypatch.setattr("hwsearch.workflow.report.listen", lambda *_: None)
    run = read_run(tiny.folder)
    report = make_report(run)
    kept = set(report.main.candidate.tolist())
    uniform = set(run.table.candidate[run.table.uniform].tolist())
    assert uniform | {report.chosen} <= kept
    assert len(kept & set(query(run.table).candidate.tolist())) >= 5
    assert report.left_out == {Fidelity.POST_TRAINING: 60 - len(kept)}
    assert f"{60 - len(kept)} are left out here" in report_html(report)


def test_columns_say_which_values_are_better() -> None:
    table = made_up_table(4, 0, Fidelity.SHARED)
    found = candidate_data([table], [fidelity_series(table)], configured=True)["columns"]
    directions = {column["name"]: column["direction"] for column in found}
    assert directions["si_snr_improvement_db"] == "maximize"
    assert {directions[name] for name in ("size_bytes", "drop_db", "latency_ms[chip<b>]", "average_bits")} == {"minimize"}
    assert directions["drop_ci95_db"] is None


def test_what_cannot_be_shown_is_said_in_the_page_and_on_the_terminal(copied: Tiny) -> None:
    shutil.rmtree(copied.workspace.data_folder)
    (copied.folder / "sensitivity" / "kl.json").write_text("{")
    answer = hwsearch("report", copied.folder)
    assert answer.code == 0, answer.stderr
    text = (copied.folder / "report.html").read_text("utf-8")
    for what in ("sound", "sensitivities"):
        assert f"warning: the report shows no {what}: " in answer.stderr
        assert f'<p class="warning">no {what}: ' in text
    assert data_of(text)["sound"] is None
    assert data_of(text)["sensitivities"] == []
    assert data_of(text)["rows"]["candidate"]


def test_results_by_angle_are_those_of_the_evaluation(copied: Tiny, tmp_path: Path) -> None:
    for place in (copied.folder / "mine.json", tmp_path / "base.json"):
        assert hwsearch("evaluate", copied.folder, "--output", place).code == 0
    (copied.folder / "notes.json").write_text('["not figures"]')
    answer = hwsearch("report", copied.folder, "--figures", tmp_path / "base.json", "--output", tmp_path / "page.html")
    assert answer.code == 0, answer.stderr
    angles = data_of((tmp_path / "page.html").read_text("utf-8"))["angles"]
    assert [Path(system["file"]).name for system in angles["systems"]] == ["mine.json", "base.json", "mine.json"]
    summary = json.loads((tmp_path / "base.json").read_text())["summaries"][-1]
    (figure,) = [place for place, each in enumerate(angles["figures"]) if each["label"] == "STOI"]
    shown = angles["systems"][1]["bins"][-1]
    assert shown["mixtures"] == 3
    assert shown["estimates"][figure]["value"] == pytest.approx(summary["figures"]["stoi"]["value"])
    assert shown["estimates"][figure]["low"] == pytest.approx(summary["figures"]["stoi"]["low"])


def test_figures_of_other_mixtures_are_refused(copied: Tiny, tmp_path: Path) -> None:
    assert hwsearch("evaluate", copied.folder, "--output", tmp_path / "figures.json").code == 0
    content = json.loads((tmp_path / "figures.json").read_text())
    content["made_by"]["test_sha256"] = "0" * 64
    (tmp_path / "other.json").write_text(json.dumps(content))
    said = refusal(hwsearch("report", copied.folder, "--figures", tmp_path / "other.json"))
    assert said.startswith(f"{tmp_path / 'other.json'}: measured on other test mixtures than those of ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere: not a run folder"),
        (["RUN", "--output", "report.pdf"], "--output is report.pdf; wanted a file whose name ends in .html"),
        (["RUN", "--output", "/proc/none/report.html"], "/proc/none/report.html: "),
        (["RUN", "--figures", "none.json"], "none.json: "),
        (["RUN", "--figures", "RUN/experiment.json"], "RUN/experiment.json: holds no figures"),
    ],
)
def test_wrong_inputs_get_one_line(tiny: Tiny, arguments: list[str], said: str) -> None:
    given = [argument.replace("RUN", str(tiny.folder)) for argument in arguments]
    assert refusal(hwsearch("report", *given)).startswith(said.replace("RUN", str(tiny.folder)))


def test_a_candidate_without_a_structure_s_costs_has_none(tiny: Tiny) -> None:
    run = read_run(tiny.folder)
    assert all(set(costs.latency_ms) == {3, 5} for costs in network_costs(run, [3, 5]))


def test_the_front_is_whole_however_large_it_is(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hwsearch.workflow.report.MOST_VALUES", 1)
    monkeypatch.setattr("hwsearch.workflow.report.FEWEST_ROWS", 2)
    monkeypatch.setattr("hwsearch.workflow.report.listen", lambda *_: None)
    run = read_run(tiny.folder)
    front = set(query(run.table).candidate.tolist())
    assert len(front) > 2
    report = make_report(run)
    assert "none of them on the front" in report_html(report)
    assert front <= set(report.main.candidate.tolist())


def test_figures_of_another_run_and_of_another_fidelity_say_so(copied: Tiny) -> None:
    assert hwsearch("evaluate", copied.folder, "--candidate", 1, "--output", copied.folder / "own.json").code == 0
    content = json.loads((copied.folder / "own.json").read_text())
    for name, change in {"other": {"experiment": "another"}, "trained": {"fidelity": "finetuned"}}.items():
        changed = {**content, "made_by": {**content["made_by"], **change}}
        (copied.folder / f"{name}.json").write_text(json.dumps(changed))
    report = make_report(read_run(copied.folder))
    assert [each.system for each in report.evaluations] == ["candidate 1 of another", "candidate 1", "candidate 1 at 'finetuned'"]


def test_the_level_beside_a_clip_is_that_of_the_clip(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hwsearch.workflow.listening.MOST_SECONDS", 0.7)
    listening = listen(read_run(tiny.folder), [(1, "first")])
    assert not listening.whole
    clips = {clip.kind: clip for clip in listening.clips}
    target = clips["target"].samples
    assert len(target) == round(0.7 * listening.sample_rate)
    for kind in ("mixture", "full-precision", "candidate"):
        assert clips[kind].si_snr_db == pytest.approx(si_snr(clips[kind].samples, target))


def test_a_page_that_cannot_be_written_is_refused_before_any_work(copied: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    (copied.folder / "report.html").unlink()
    (copied.folder / "report.html").mkdir()
    monkeypatch.setattr("hwsearch.workflow.report.make_report", lambda *_: pytest.fail("has begun"))
    assert refusal(hwsearch("report", copied.folder)).startswith(f"{copied.folder / 'report.html'}: ")
