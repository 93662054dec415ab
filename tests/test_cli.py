"""The installed command line, from an experiment file to a separated recording, and what it says of wrong input."""

import csv
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import fast_bss_eval
import numpy as np
import pytest
import soundfile as sf
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from hw_models.target import BUILT_IN
from hwsearch.experiment import Fidelity, Split
from hwsearch.files.tensors import write_tensors
from hwsearch.results.candidates import CandidateTable, read_candidates
from hwsearch.results.query import query
from hwsearch.search.record import RECORD_FILE
from hwsearch.search.scoring import ScoringJob
from hwsearch.separator.allocation import BitAllocation
from hwsearch.separator.base import EMBEDDED_BASE, load_base, save_base
from hwsearch.separator.configuration import Configuration
from hwsearch.separator.prepare import prepare_base
from hwsearch.separator.quantized import build_quantized
from hwsearch.separator.untrained import untrained_sites
from hwsearch.view.front_plot import plot_front
from tests.shown_tables import said, tables
from tests.tiny import HWSEARCH, TRIALS, Tiny, hwsearch, read_events, refusal, snapshot, write_tiny

ARGUMENTS = ("--workers", 0, "--processes", 1)


def sdr(estimate: NDArray[np.float32], target: NDArray[np.float32]) -> float:
    """SI-SNR in dB, by another library."""
    return float(fast_bss_eval.si_sdr(target[None].astype(float), estimate[None].astype(float), zero_mean=True)[0])


def brevitas_separation(tiny: Tiny, allocation: dict[str, int], sound: NDArray[np.float32], doa: float) -> NDArray[np.float32]:
    """A mixture separated by the network that defines what an allocation means."""
    experiment, workspace = tiny.workspace.experiment, tiny.workspace
    prepared = prepare_base(experiment, workspace.base_path, workspace.data_folder, workspace.folder / "calibration.json")
    bits = BitAllocation.from_json(allocation, untrained_sites(experiment), "record")
    network = build_quantized(prepared.graph, bits, prepared.calibration, prepared.quantization, prepared.weights)
    with torch.no_grad():
        return prepared.separator.separate(torch.from_numpy(sound)[None], torch.tensor([doa]), network)[0].numpy()


def rows(answer_format: str, *arguments: object) -> list[dict[str, Any]]:
    """What `hwsearch pareto` answers, parsed."""
    answer = hwsearch("pareto", *arguments, "--format", answer_format)
    assert answer.code == 0, answer.stderr
    if answer_format == "json":
        return json.loads(answer.stdout)
    return [
        {
            name: cell if name in {"strategy", "fidelity"} else cell == "True" if name == "uniform" else float(cell)
            for name, cell in row.items()
        }
        for row in csv.DictReader(io.StringIO(answer.stdout))
    ]


def dominates(a: dict[str, Any], b: dict[str, Any]) -> bool:
    better = a["si_snr_improvement_db"] >= b["si_snr_improvement_db"] and a["size_bytes"] <= b["size_bytes"]
    return better and (a["si_snr_improvement_db"], a["size_bytes"]) != (b["si_snr_improvement_db"], b["size_bytes"])


def front(candidates: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The non-dominated ones, by comparing every pair; smallest first."""
    kept = [a for a in candidates if not any(dominates(b, a) for b in candidates)]
    return sorted(kept, key=lambda candidate: candidate["size_bytes"])


def said_once(tiny: Tiny, word: str) -> str:
    """What the main job said behind a word at its end."""
    (text,) = said(tiny.stdout, word)
    return text


# The main job and what follows it


def test_the_main_job_scores_every_candidate_and_leaves_what_it_names(tiny: Tiny) -> None:
    assert len(tiny.events()) == TRIALS + 1
    assert f"done: {TRIALS} of {TRIALS} candidates scored, 0 failed" in tiny.stderr
    assert said_once(tiny, "model") == str(tiny.model)
    for name in ("weights.hwq", "allocation.json", "verification.json", "model.onnx"):
        assert (tiny.folder / "export" / name).stat().st_size > 0
    assert Path(said_once(tiny, "plot")).read_bytes().startswith(b"\x89PNG")
    assert not list(tiny.runs.rglob(".*"))


def test_the_main_job_exports_the_smallest_candidate_near_full_precision(tiny: Tiny) -> None:
    reference, *candidates = tiny.events()
    quality = {event["candidate"]: event["metrics"]["si_snr_improvement_db"] for event in candidates}
    size = {event["candidate"]: event["costs"]["size_bytes"] for event in candidates}
    near = [number for number in quality if quality[number] >= reference["metrics"]["si_snr_improvement_db"] - 0.5]
    smallest = min(size[number] for number in near)
    best = max((number for number in near if size[number] == smallest), key=lambda number: quality[number])
    assert said_once(tiny, "chosen") == f"candidate {best}, the smallest that loses at most 0.5 dB"
    exported = json.loads((tiny.folder / "export" / "allocation.json").read_text())
    assert exported == next(event["allocation"] for event in candidates if event["candidate"] == best)


def test_the_command_it_names_next_separates_as_the_brevitas_network_does(tiny: Tiny, tmp_path: Path) -> None:
    program, *arguments = shlex.split(said_once(tiny, "next"))
    assert Path(program).name == "hwsearch"
    answer = hwsearch(*arguments[:-1], tmp_path / "new" / "target.wav")
    assert (answer.code, answer.stdout) == (0, ""), answer.stderr
    found, rate = sf.read(tmp_path / "new" / "target.wav", dtype="float32")
    mixture, sound, target = tiny.mixtures(Split.TEST)[0]
    doa = float(arguments[arguments.index("--doa") + 1])
    assert doa == pytest.approx(mixture.target.doa_deg, abs=0.06)
    assert (rate, found.shape) == (8000, target.shape)
    allocation = json.loads((tiny.folder / "export" / "allocation.json").read_text())
    wanted = brevitas_separation(tiny, allocation, sound, doa)
    # They differ by values that one rounds up and the other down: 35 dB below the sound, also where the sound is a poor one.
    assert np.square(found - wanted).sum() < 3e-4 * np.square(wanted).sum()


@pytest.mark.parametrize("answer_format", ["json", "csv"])
def test_the_front_is_what_comparing_every_pair_leaves(tiny: Tiny, answer_format: str) -> None:
    everything = rows(answer_format, tiny.folder, "--all")
    assert sorted(row["candidate"] for row in everything) == [event["candidate"] for event in tiny.events()[1:]]
    assert rows(answer_format, tiny.folder) == front(everything)
    for row, event in zip(everything[:3], [tiny.events()[int(row["candidate"])] for row in everything[:3]], strict=True):
        assert {name: row[name] for name in event["metrics"] | event["costs"]} == event["metrics"] | event["costs"]
        assert row["fidelity"] == event["fidelity"]
        assert {name: row[f"bits[{name}]"] for name in event["allocation"]} == event["allocation"]


def test_conditions_come_before_the_front_and_the_order_behind_it(tiny: Tiny) -> None:
    everything = rows("json", tiny.folder, "--all")
    limit = float(np.median([row["size_bytes"] for row in everything]))
    column = "latency_ms[bitfusion]"
    bound = float(np.median([row[column] for row in everything if row["size_bytes"] >= limit]))
    answer = rows(
        "json",
        tiny.folder,
        *("--where", f"size_bytes>={limit}", "--where", f"{column} <= {bound}", "--sort", "si_snr_improvement_db:desc"),
    )
    wanted = front([row for row in everything if row["size_bytes"] >= limit and row[column] <= bound])
    assert answer == sorted(wanted, key=lambda row: -row["si_snr_improvement_db"])
    assert len(answer) > 0


def test_the_picture_shows_what_the_table_shows_and_marks_what_was_exported(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[list[int], str, int | None]] = []

    def keep(table: CandidateTable, path: Path, title: str, chosen: int | None, untrained: CandidateTable | None) -> None:
        drawn.append((table.candidate.tolist(), title, chosen))
        plot_front(table, path, title, chosen, untrained)

    monkeypatch.setattr("hwsearch.view.candidates.plot_front", keep)
    everything = rows("json", tiny.folder, "--all")
    limit = int(np.median([row["size_bytes"] for row in everything]))
    where = (f"size_bytes<={limit}", "strategy!=uniform")
    picture = tmp_path / "front.svg"
    answer = hwsearch("pareto", tiny.folder, *(word for text in where for word in ("--where", text)), "--plot", picture)
    assert (answer.code, answer.stderr) == (0, f"plot: {picture}\n")
    assert "<svg" in picture.read_text()
    ((candidates, title, chosen),) = drawn
    met = [row["candidate"] for row in everything if row["size_bytes"] <= limit and row["strategy"] != "uniform"]
    assert sorted(candidates) == sorted(met)
    assert title == f"tiny, size_bytes<={limit} and strategy!=uniform"
    assert said_once(tiny, "chosen").startswith(f"candidate {chosen},")


def test_an_empty_answer_says_so(tiny: Tiny, tmp_path: Path) -> None:
    where = ("--where", "size_bytes<=5", "--where", "strategy!=kl")
    wanted = "no candidate scored at 'post-training' meets size_bytes<=5 and strategy!=kl"
    table = hwsearch("pareto", tiny.folder, *where)
    assert (table.code, table.stdout, table.stderr) == (0, "", f"{wanted}\n")
    answer = hwsearch("pareto", tiny.folder, *where, "--format", "csv")
    assert (answer.code, answer.stderr) == (0, "")
    assert answer.stdout.startswith("candidate,strategy,uniform,fidelity,")
    assert answer.stdout.count("\n") == 1
    assert hwsearch("pareto", tiny.folder, *where, "--format", "json").stdout == "[]\n"
    picture = tmp_path / "front.png"
    assert refusal(hwsearch("pareto", tiny.folder, *where, "--plot", picture)) == f"{wanted}; wanted at least one to draw"
    assert not picture.exists()


def test_an_exported_candidate_has_its_own_allocation_and_the_size_it_was_charged(tiny: Tiny, tmp_path: Path) -> None:
    event = tiny.events()[7]
    answer = hwsearch("export", tiny.folder, "--candidate", event["candidate"], "--output", tmp_path / "out")
    assert answer.code == 0, answer.stderr
    assert answer.stdout.startswith(f"model:  {tmp_path / 'out' / 'model.onnx'}\n")
    assert json.loads((tmp_path / "out" / "allocation.json").read_text()) == event["allocation"]
    assert (tmp_path / "out" / "model.onnx").stat().st_size == event["costs"]["size_bytes"]
    assert (tmp_path / "out" / "weights.hwq").stat().st_size == event["costs"]["packed_bytes"]


def test_base_candidate_and_exported_model_are_judged_alike(tiny: Tiny, tmp_path: Path) -> None:
    chosen = int(said_once(tiny, "chosen").split()[1].rstrip(","))
    reports = {}
    for name, options in (
        ("base", ()),
        ("candidate", ("--candidate", chosen, "--against", tmp_path / "base.json")),
        ("model", ("--model", tiny.model)),
    ):
        answer = hwsearch("evaluate", tiny.folder, "--processes", 1, *options, "--output", tmp_path / f"{name}.json")
        assert answer.code == 0, answer.stderr
        assert f"figures: {tmp_path / f'{name}.json'}" in answer.stdout
        reports[name] = json.loads((tmp_path / f"{name}.json").read_text())
        if "--against" in options:
            scores = [[result["scores"]["pesq"] for result in reports[side]["utterances"]] for side in (name, "base")]
            difference = np.mean(scores[0]) - np.mean(scores[1])
            assert f"pesq against {tmp_path / 'base.json'}: {difference:+.3f}, p = " in answer.stdout
    separator, _ = load_base(EMBEDDED_BASE)
    for number, (mixture, sound, target) in enumerate(tiny.mixtures(Split.TEST)):
        with torch.no_grad():
            estimate = separator(torch.from_numpy(sound)[None], torch.tensor([mixture.target.doa_deg]))[0].numpy()
        scores = {name: report["utterances"][number]["scores"] for name, report in reports.items()}
        assert scores["base"]["si_snr_db"] == pytest.approx(sdr(estimate, target), abs=1e-3)
        assert scores["base"]["mixture_si_snr_db"] == pytest.approx(sdr(sound[0], target), abs=1e-3)
        assert scores["model"]["si_snr_db"] == pytest.approx(scores["candidate"]["si_snr_db"], abs=0.05)
    assert reports["base"]["made_by"]["system"] == "full-precision base"
    assert reports["base"]["made_by"]["test_sha256"] == reports["model"]["made_by"]["test_sha256"]
    for report in reports.values():
        figures = report["summaries"][-1]["figures"]
        values = [utterance["scores"]["si_snr_db"] for utterance in report["utterances"]]
        assert figures["si_snr_db"]["value"] == pytest.approx(np.mean(values))
        assert figures["si_snr_db"]["n"] == report["summaries"][-1]["utterances"] == 3


def test_mixtures_that_have_no_figure_are_counted_and_named(tmp_path: Path) -> None:
    """STOI wants 0.4 s of speech in the target; no utterance of this corpus is longer than 0.35 s."""
    random = np.random.default_rng(0)
    lines = ["path,speaker"]
    for number in range(8):
        sf.write(tmp_path / f"{number}.wav", 0.1 * random.standard_normal(2800), 8000)
        lines.append(f"{number}.wav,speaker{number // 2}")
    (tmp_path / "all.csv").write_text("\n".join(lines) + "\n")
    file = write_tiny(
        tmp_path / "short.toml",
        ('kind = "espeak"', 'kind = "csv"\nroot = "all.csv"'),
        ("{ validation = 0.5, test = 0.5 }", "{ test = 1.0 }"),
        ("{ validation = 2, test = 2 }", "{ test = 2 }"),
        ("{ validation = 3, test = 3 }", "{ test = 8 }"),
    )
    output = tmp_path / "short.json"
    answer = hwsearch("evaluate", file, "--runs-dir", tmp_path / "runs", "--processes", 1, "--output", output)
    assert answer.code == 0, answer.stderr
    report = json.loads(output.read_text())
    unscored: dict[str, list[str]] = {}
    for result in report["utterances"]:
        for name in result["unavailable"]:
            unscored.setdefault(name, []).append(result["id"])
    assert len(unscored["stoi"]) == len(unscored["mixture_stoi"]) == 8
    lines = [line for line in answer.stdout.splitlines() if line.startswith("no ")]
    assert lines == [
        f"no {name} for {len(ids)}: {', '.join(ids[:5])}{' ...' if len(ids) > 5 else ''}"
        for name, ids in sorted(unscored.items())
    ]
    for name, ids in unscored.items():
        figure = report["summaries"][-1]["figures"].get(name, {"n": 0})
        assert figure["n"] == 8 - len(ids)


def test_the_layers_of_a_candidate_cost_together_what_the_record_says(tiny: Tiny) -> None:
    event = tiny.events()[9]
    for target in tiny.workspace.experiment.search.targets:
        answer = hwsearch("cost", target, "--run", tiny.folder, "--candidate", event["candidate"])
        total = tables(answer.stdout)[0].records[-1]
        assert total["layer"] == "total"
        assert float(total["latency_ms"].replace(",", "")) == pytest.approx(event["costs"][f"latency_ms[{target}]"], rel=5e-4)
        assert int(total["weight_bytes"].replace(",", "")) == event["costs"][f"weight_bytes[{target}]"]


def test_a_file_too_large_for_the_memory_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def read(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("hwsearch.experiment.load_experiment", read)
    assert refusal(hwsearch("run", tmp_path / "tiny.toml", "--dry-run")).startswith("out of memory; wanted more memory")


# A search that goes on


def test_more_trials_go_on_with_the_same_search_and_ray_workers_score_alike(copied: Tiny) -> None:
    before = (copied.folder / RECORD_FILE).read_bytes()
    more = write_tiny(copied.runs.parent / "tiny.toml", (f"trials = {TRIALS}", f"trials = {TRIALS + 6}"))
    answer = hwsearch("search", more, "--runs-dir", copied.runs, "--workers", 2, "--processes", 1)
    assert answer.code == 0, answer.stderr
    assert f"done: {TRIALS + 6} of {TRIALS + 6} candidates scored" in answer.stderr
    assert (copied.folder / RECORD_FILE).read_bytes().startswith(before)
    on_ray = copied.events()[TRIALS + 1 :]
    assert len(on_ray) == 6
    assert not {event["worker"] for event in on_ray} & {event["worker"] for event in copied.events()[: TRIALS + 1]}
    score = copied.scorer_factory()
    for event in on_ray:
        job = ScoringJob(Configuration.of(event["allocation"]), Fidelity.POST_TRAINING)
        assert score(job) == pytest.approx(event["metrics"], abs=1e-9)


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def wait_for_lines(path: Path, wanted: int, process: subprocess.Popen[str]) -> None:
    while lines(path) < wanted and process.poll() is None:
        time.sleep(0.003)


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [str(HWSEARCH), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def test_a_search_killed_twice_ends_as_an_undisturbed_one(tiny: Tiny, tmp_path: Path) -> None:
    runs, random = tmp_path / "runs", np.random.default_rng()
    shutil.copytree(tiny.runs / "data", runs / "data")
    shutil.copytree(tiny.runs / "corpora", runs / "corpora")
    command = ("search", tiny.file, "--runs-dir", runs, *ARGUMENTS)
    record, ends = runs / "tiny" / RECORD_FILE, []
    for earliest, latest in ((1, TRIALS // 2), (TRIALS // 2, 3 * TRIALS // 2)):
        with start(*command) as driver:
            wait_for_lines(record, int(random.integers(earliest, latest)), driver)
            time.sleep(random.uniform(0, 0.01))
            driver.send_signal(signal.SIGKILL)
            driver.communicate()
            ends.append(driver.returncode)
    assert -signal.SIGKILL in ends
    answer = hwsearch(*command)
    assert answer.code == 0, answer.stderr

    asked, scored = read_events(tmp_path / "runs" / "tiny", "asked"), read_events(tmp_path / "runs" / "tiny")
    assert [event["candidate"] for event in asked] == list(range(TRIALS + 1))
    assert sorted(event["candidate"] for event in scored) == list(range(TRIALS + 1))
    assert len({tuple(event["allocation"].items()) for event in scored}) == TRIALS + 1
    fronts = [query(read_candidates(folder)) for folder in (runs / "tiny", tiny.folder)]
    assert fronts[0].candidate.tolist() == fronts[1].candidate.tolist()
    assert fronts[0].widths.tolist() == fronts[1].widths.tolist()
    assert {name: values.tolist() for name, values in fronts[0].columns.items()} == {
        name: values.tolist() for name, values in fronts[1].columns.items()
    }


def test_ctrl_c_stops_a_build_which_then_goes_on(tiny: Tiny, tmp_path: Path) -> None:
    runs, count = tmp_path / "runs", 30
    shutil.copytree(tiny.runs / "corpora", runs / "corpora")
    more = ("{ validation = 3, test = 3 }", f"{{ validation = {count} }}")
    file = write_tiny(tmp_path / "more.toml", more, ("seconds = 1.5", "seconds = 1.0"))
    command = ("data", "build", file, "--runs-dir", runs)
    with start(*command, "--processes", 2) as build:
        journal: list[Path] = []
        while not journal and build.poll() is None:
            time.sleep(0.01)
            journal = list(runs.glob("data/*/.journal.jsonl"))
        wait_for_lines(journal[0], 4, build)
        os.killpg(build.pid, signal.SIGINT)  # as a terminal does: to every process of the command
        try:
            stdout, stderr = build.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            os.killpg(build.pid, signal.SIGKILL)
            raise
    assert (build.returncode, stdout) == (130, ""), stderr
    assert stderr.splitlines()[-1] == "hwsearch: interrupted; the same command goes on where it stopped"
    assert "Traceback" not in stderr
    assert not list(runs.glob("data/*/validation/manifest.jsonl"))
    done = [json.loads(line)["mixture_path"] for line in journal[0].read_text().splitlines() if line]
    written = {path: (journal[0].parent / path).stat().st_mtime_ns for path in done}

    answer = hwsearch(*command, "--processes", 1)
    assert answer.code == 0, answer.stderr
    assert 0 < len(done) < count
    assert lines(journal[0].parent / "validation" / "manifest.jsonl") == count
    assert {path: (journal[0].parent / path).stat().st_mtime_ns for path in done} == written
    assert not list(runs.rglob(".*"))


def fresh_runs(tiny: Tiny, runs: Path) -> Path:
    """Data and sensitivities of the main job, and no search."""
    for folder in ("data", "corpora", "tiny/sensitivity"):
        shutil.copytree(tiny.runs / folder, runs / folder)
    return runs


def test_the_main_job_scores_its_priors_before_its_sampler(tiny: Tiny) -> None:
    strategies = [event["strategy"] for event in tiny.events()]
    assert list(dict.fromkeys(strategies)) == [
        *("full-precision", "uniform", "ends-at-8", "output-noise-ratio", "kl"),
        "prior-corrected",
    ]
    for method in ("output-noise-ratio", "kl"):
        table = json.loads((tiny.folder / "sensitivity" / f"{method}.json").read_text())
        assert (table["mixtures"], set(table["widths"])) == (1, {2, 3, 4, 5, 6, 8})


def test_a_strategy_and_a_sampler_may_be_chosen_on_the_command_line(tiny: Tiny, tmp_path: Path) -> None:
    runs = fresh_runs(tiny, tmp_path / "runs")
    file = write_tiny(tmp_path / "tiny.toml", (f"trials = {TRIALS}", "trials = 32"))
    command = ("search", file, "--runs-dir", runs, *ARGUMENTS)
    answer = hwsearch(*command, "--strategy", "uniform")
    assert answer.code == 0, answer.stderr
    assert {event["strategy"] for event in read_events(runs / "tiny")} == {"full-precision", "uniform", "ends-at-8"}
    assert "no more candidates to propose: 11 of 32 candidates scored" in answer.stderr
    assert refusal(hwsearch(*command)).startswith(f"{runs / 'tiny'}: holds the search of an experiment 'tiny' that differs")
    (runs / "tiny" / RECORD_FILE).unlink()
    answer = hwsearch(*command, "--sampler", "random")
    assert answer.code == 0, answer.stderr
    assert "sensitivities" not in answer.stderr  # they are there
    strategies = [event["strategy"] for event in read_events(runs / "tiny")]
    assert list(dict.fromkeys(strategies)) == ["full-precision", "uniform", "ends-at-8", "output-noise-ratio", "kl", "random"]


def test_candidates_are_asked_for_by_fidelity(tiny: Tiny, tmp_path: Path) -> None:
    assert rows("json", tiny.folder, "--fidelity", "post-training") == rows("json", tiny.folder)
    wanted = f"{tiny.folder}: nothing was scored at fidelity 'short-qat'; it has 'post-training'"
    for command in (
        ("pareto", tiny.folder),
        ("export", tiny.folder, "--candidate", 1, "--output", tmp_path / "out"),
        ("evaluate", tiny.folder, "--candidate", 1),
    ):
        assert refusal(hwsearch(*command, "--fidelity", "short-qat")) == wanted
    assert not (tmp_path / "out").exists()


def test_sensitivities_of_an_experiment_that_has_changed_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    runs = fresh_runs(tiny, tmp_path / "runs")
    per_tensor = ("calibration_mixtures = 2", 'calibration_mixtures = 2\nweight_scale = "per_tensor"')
    file = write_tiny(tmp_path / "tiny.toml", per_tensor)
    before = snapshot(runs / "tiny" / "sensitivity")
    message = refusal(hwsearch("search", file, "--runs-dir", runs, *ARGUMENTS))
    assert message.startswith(f"{runs / 'tiny' / 'sensitivity'}")
    assert "[quantization]" in message
    after = snapshot(runs / "tiny" / "sensitivity")
    assert {**after, "lock": None} == {**before, "lock": None}
    assert not (runs / "tiny" / RECORD_FILE).exists()


# Wrong input


@pytest.fixture(scope="module")
def recordings(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Broken relatives of a test mixture."""
    folder = tmp_path_factory.mktemp("recordings")
    sound, rate = sf.read(tiny.recording(), dtype="float32")
    hole = sound.copy()
    hole[100, 2] = np.nan
    for name, samples, at in (
        ("silent", 0 * sound, rate),
        ("rate", sound, 16000),
        ("mono", sound[:, 0], rate),
        ("seven", sound[:, [0, 1, 2, 3, 4, 5, 0]], rate),
        ("nan", hole, rate),
        ("none", sound[:0], rate),
    ):
        sf.write(folder / f"{name}.wav", samples, at, subtype="FLOAT")
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("This is a recording.")
    (folder / "cut.wav").write_bytes(tiny.recording().read_bytes()[:5000])
    (folder / "folder.wav").mkdir()
    return folder


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("silent", "silent"),
        ("rate", "sample rate is 16000 Hz; wanted 8000 Hz"),
        ("mono", "1 channel; wanted 6"),
        ("seven", "7 channels; wanted 6"),
        ("nan", "holds NaN"),
        ("none", "empty (0 samples)"),
        ("empty", "empty (0 bytes)"),
        ("text", "not readable as audio"),
        ("cut", "truncated"),
        ("folder", "is a folder"),
        ("absent", "no such file"),
    ],
)
def test_an_unusable_recording_is_refused(tiny: Tiny, recordings: Path, tmp_path: Path, name: str, reason: str) -> None:
    file = recordings / f"{name}.wav"
    output = tmp_path / "out" / "target.wav"
    message = refusal(hwsearch("separate", tiny.model, "--input", file, "--doa", 60, "--output", output))
    assert message.startswith(f"{file}: ")
    assert reason in message
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("direction", ["-1", "180.5", "nan", "inf", "north", ""])
def test_a_direction_out_of_range_is_refused(tiny: Tiny, tmp_path: Path, direction: str) -> None:
    output = tmp_path / "target.wav"
    message = refusal(hwsearch("separate", tiny.model, "--input", tiny.recording(), "--doa", direction, "--output", output))
    assert "direction" in message or "--doa" in message
    assert not list(tmp_path.iterdir())


def test_an_unusable_model_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    content = bytearray(tiny.model.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "flipped.onnx").write_bytes(content)
    (tmp_path / "cut.onnx").write_bytes(tiny.model.read_bytes()[:-1])
    (tmp_path / "text.onnx").write_text("no model")
    (tmp_path / "empty.onnx").touch()
    for model in (*sorted(tmp_path.glob("*.onnx")), tmp_path, tmp_path / "absent.onnx", tiny.folder / "export" / "weights.hwq"):
        separate = ("separate", model, "--input", tiny.recording(), "--doa", 60, "--output", tmp_path / "target.wav")
        for command in (separate, ("evaluate", tiny.folder, "--model", model)):
            assert refusal(hwsearch(*command)).startswith(f"{model}: ")
    assert not (tmp_path / "target.wav").exists()


def test_an_output_that_cannot_be_written_is_refused_before_the_work(tiny: Tiny, tmp_path: Path) -> None:
    file, folder = tmp_path / "file", tmp_path / "folder.wav"
    file.write_text("mine")
    folder.mkdir()
    separate = ("separate", tiny.model, "--input", tiny.recording(), "--doa", 60, "--output")
    evaluate = ("evaluate", tiny.folder, "--processes", 1, "--output")
    plot = ("pareto", tiny.folder, "--format", "csv", "--plot")
    for command in (
        *((*separate, output) for output in (folder, file / "target.wav", "/proc/target.wav", tmp_path / "target.mp3", "")),
        (*separate, tiny.recording()),
        *((*evaluate, output) for output in (folder, file / "figures.json", "/proc/figures.json")),
        *((*plot, output) for output in (file / "front.png", "/proc/front.png", tmp_path / "front.jpg", tmp_path / "front")),
        *(("export", tiny.folder, "--candidate", 1, "--output", at) for at in (file, file / "out", tmp_path, "/proc/out")),
        *(("search", tiny.file, "--runs-dir", at, *ARGUMENTS) for at in (file, file / "runs", "/proc/runs")),
        *(("data", "build", tiny.file, "--runs-dir", at, "--processes", 1) for at in (file, "/proc/runs")),
    ):
        answer = hwsearch(*command)
        message = refusal(answer)
        assert "test mixtures" not in answer.stderr
        assert "Errno" not in message
    assert snapshot(tmp_path) == {"file": b"mine", "folder.wav": None}


def test_a_folder_that_may_not_be_read_is_refused(tiny: Tiny, copied: Tiny) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read and write everything")
    copied.file.chmod(0)
    assert "Permission denied" in refusal(hwsearch("search", copied.file, "--runs-dir", copied.runs))
    copied.folder.chmod(0o500)
    assert "Permission denied" in refusal(hwsearch("search", tiny.file, "--runs-dir", copied.runs, *ARGUMENTS))


def test_a_condition_or_an_order_that_says_nothing_is_refused(tiny: Tiny) -> None:
    for condition, reason in (("", "malformed"), ("size_bytes<=120kB", "wanted a number"), ("latency_ms<=3", "unknown column")):
        assert reason in refusal(hwsearch("pareto", tiny.folder, "--where", condition))
    for order in ("size", "size_bytes:down", ""):
        assert f"'{order}'" in refusal(hwsearch("pareto", tiny.folder, "--sort", order))


def test_an_unknown_candidate_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    for command in (
        ("export", tiny.folder, "--output", tmp_path / "out", "--candidate"),
        ("evaluate", tiny.folder, "--candidate"),
        ("cost", "bitfusion", "--run", tiny.folder, "--candidate"),
    ):
        assert "no candidate 999" in refusal(hwsearch(*command, 999))
        assert "--candidate" in refusal(hwsearch(*command, 0))
    assert not (tmp_path / "out").exists()


def test_options_that_make_no_sense_are_refused(tiny: Tiny) -> None:
    run = ("--run", tiny.folder, "--candidate", 1)
    for command in (
        ("cost", "bitfusion", *run[:2]),
        ("cost", "bitfusion", *run[2:]),
        ("cost", "bitfusion", *run, "--experiment", tiny.file),
        ("evaluate", tiny.folder, "--candidate", 1, "--model", tiny.model),
        ("evaluate", tiny.folder, "--against", tiny.file),
        ("evaluate", tiny.folder, "--against", tiny.folder / "experiment.json"),
    ):
        assert "wanted" in refusal(hwsearch(*command))


def test_an_option_that_would_change_nothing_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    run = ("--run", tiny.folder, "--candidate", 1)
    for command, option in (
        (("cost", "bitfusion", *run, "--weight-bits", 3), "--weight-bits"),
        (("cost", "bitfusion", *run, "--weight-bits", 8), "--weight-bits"),
        (("cost", "bitfusion", *run, "--activation-bits", 4), "--activation-bits"),
        (("evaluate", tiny.folder, "--fidelity", "post-training"), "--fidelity"),
        (("evaluate", tiny.folder, "--model", tiny.model, "--fidelity", "post-training"), "--fidelity"),
        (("evaluate", tiny.folder, "--runs-dir", tiny.runs), "--runs-dir"),
        *(
            ((command, tiny.file, "--runs-dir", tmp_path, "--strategy", "uniform", "--sampler", "gp", *dry), "--sampler")
            for command in ("run", "search")
            for dry in ((), ("--dry-run",))
        ),
    ):
        assert refusal(hwsearch(*command)).startswith(f"{option} has no effect ")
    assert snapshot(tmp_path) == {}


@pytest.mark.parametrize("folder", ["", "data", "corpora", "tiny/export", "tiny/record.jsonl", "absent"])
def test_a_folder_that_is_no_run_is_refused(tiny: Tiny, tmp_path: Path, folder: str) -> None:
    at = tiny.runs / folder
    for command in (("pareto", at), ("status", at), ("export", at, "--candidate", 1, "--output", tmp_path / "out")):
        assert refusal(hwsearch(*command)) == f"{at}: not a run folder (no experiment.json in it); wanted one made by 'hwsearch'"
    assert not (tmp_path / "out").exists()


def test_a_damaged_run_folder_is_refused(copied: Tiny, tmp_path: Path) -> None:
    sound = snapshot(copied.folder)

    def spoil(name: str, content: bytes) -> None:
        for path, whole in sound.items():
            if whole is not None:
                (copied.folder / path).write_bytes(whole)
        (copied.folder / name).write_bytes(content)

    record, calibration = sound["record.jsonl"] or b"", sound["calibration.json"] or b""
    described = sound["experiment.json"] or b""
    second = record.index(b"\n") + 1
    search = ("search", copied.file, "--runs-dir", copied.runs, *ARGUMENTS)
    export = ("export", copied.folder, "--candidate", 1, "--output", tmp_path / "out")
    evaluate = ("evaluate", copied.folder, "--candidate", 1)
    pareto, status = ("pareto", copied.folder), ("status", copied.folder)
    changed = "changed since it was written"
    scales = json.loads(calibration)
    for grid in scales["calibration"]["grids"]["mask_head.output"].values():
        grid[0] *= 8
    everyone = (pareto, status, export, evaluate, search)
    for name, content, commands, reason in (
        ("record.jsonl", record[:second] + b"{}\n" + record[second:], everyone, f"line 2: {changed}"),
        ("record.jsonl", re.sub(rb'(si_snr_improvement_db":)[^,}]+', rb"\g<1>99.0", record), everyone, f"line 3: {changed}"),
        ("record.jsonl", re.sub(rb'(size_bytes":)[^,}]+', rb"\g<1>-5.0", record), everyone, f"line 3: {changed}"),
        ("record.jsonl", re.sub(rb'"time":"[^"]*"', b'"time":"yesterday"', record), everyone, f"line 1: {changed}"),
        ("record.jsonl", record[second:], (pareto, status), "line 1"),
        ("record.jsonl", b"", (pareto,), "wanted the record of a search"),
        ("record.jsonl", record.replace(b'"candidate":5,', b'"candidate":6,'), (pareto,), f": {changed}"),
        # A search says anew what its folder belongs to: the record knows.
        ("experiment.json", b"{", (pareto,), "not valid JSON"),
        ("experiment.json", b"{}", (export,), "name is missing"),
        ("experiment.json", described.replace(b'"seed": 3', b'"seed": 4'), (pareto, status, export, evaluate), changed),
        ("calibration.json", calibration[:-9], (search,), "not valid JSON"),
        ("calibration.json", json.dumps(scales).encode(), (export, evaluate, search), changed),
    ):
        assert content != sound[name]
        for command in commands:
            spoil(name, content)
            before = snapshot(copied.folder)
            message = refusal(hwsearch(*command))
            assert message.startswith(f"{copied.folder / name}"), (name, message)
            assert reason in message
            after = snapshot(copied.folder)
            # Whose locks they are, the mirror, which is made anew, and the log and account, which say why the search was refused.
            for path in ("search.lock", "sensitivity/lock", "optuna-journal.log", "search.log", "drivers.jsonl"):
                before.pop(path), after.pop(path)
            assert after == before, command
    assert not (tmp_path / "out").exists()


def test_a_run_folder_of_another_experiment_is_refused(copied: Tiny) -> None:
    before = snapshot(copied.folder)
    for change in (("seed = 3", "seed = 4"), ("population = 8", "population = 9"), ("seconds = 1.5", "seconds = 1.4")):
        other = write_tiny(copied.runs.parent / "other.toml", change)
        for command in ("search", "run"):
            message = refusal(hwsearch(command, other, "--runs-dir", copied.runs, *ARGUMENTS))
            assert message.startswith(f"{copied.folder}: holds the search of an experiment 'tiny' that differs")
    shutil.copytree(copied.folder, copied.runs / "renamed")
    assert "wanted the name it was made with, 'tiny'" in refusal(hwsearch("pareto", copied.runs / "renamed"))
    assert snapshot(copied.folder) == before


def test_another_base_or_target_than_the_searchs_is_refused(copied: Tiny) -> None:
    save_base(copied.runs.parent / "other.safetensors", *load_base(EMBEDDED_BASE))
    (copied.runs.parent / "chip.toml").write_text(
        (BUILT_IN / "bitfusion.toml").read_text().replace("clock_hz = ", "clock_hz = 1")
    )
    before = snapshot(copied.folder)
    for change, name in (
        (('base = "embedded"', 'base = "other.safetensors"'), "base_sha256"),
        (("population = 8", 'population = 8\ntargets = ["chip.toml"]'), "target[bitfusion]"),
    ):
        file = write_tiny(copied.file, change)
        message = refusal(hwsearch("search", file, "--runs-dir", copied.runs, *ARGUMENTS))
        assert message.startswith(f"{copied.folder}: its search was made with another {name}; wanted that one")
    assert snapshot(copied.folder) == before


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("seed = 3", "seed = 3\ncolour = 'red'"), "unknown key 'colour'"),
        (("population = 8", "populace = 8"), "unknown key 'search.populace'"),
        (("population = 8", "population = 'eight'"), "search.population is 'eight'"),
        (("population = 8", "population = 1"), "search.population is 1"),
        (("seconds = 1.5", "seconds = nan"), "data.mixtures.seconds is nan"),
        (("population = 8", "utterance_seconds = inf"), "search.utterance_seconds is inf"),
        (("seed = 3", "seed ="), "not valid TOML"),
        (("speakers = 8", 'root = "speech"'), "root is not used for kind 'espeak'"),
        (('kind = "espeak"', 'kind = "librispeech"\nroot = "nowhere"'), "nowhere: no such folder"),
        (('kind = "espeak"', 'kind = "librispeech"'), "root is wanted for kind 'librispeech'"),
        (('kind = "espeak"', 'kind = "csv"\nroot = "nowhere.csv"'), "nowhere.csv: no such file"),
        (("{ validation = 0.5, test = 0.5 }", "{ test = 1.0 }"), "speakers in the validation split: 0"),
        (("{ validation = 3, test = 3 }", "{ test = 3 }"), "makes no validation mixtures"),
        (("{ validation = 2, test = 2 }", "{ test = 2 }"), "data.rooms.count: no 'validation'"),
        (("population = 8", 'fixed = { "blocks.99.*" = 8 }'), "blocks.99.*"),
        (("population = 8", 'fixed = { "mask_head.output" = 3 }'), "mask_head.output"),
        (("population = 8", "limits = { size_bytes = 1000.0 }"), "search.limits: limit size_bytes <= 1000 cannot be met"),
        (("population = 8", "limits = { colour = 3.0 }"), "no cost 'colour'; wanted size_bytes"),
        (("population = 8", 'objectives = ["si_snr_improvement_db", "watts"]'), "no cost 'watts'; wanted size_bytes"),
        (
            ("population = 8", 'groups = [["mask_head.weight", "mask_head.output"]]\nweight_bits = [2, 4]'),
            "search.groups: no width that",
        ),
        (
            ("population = 8", 'promotions = [{ fidelity = "short-qat", keep = 4 }]'),
            "data.rooms.count: no 'train'; fidelity 'short-qat' trains, wanted rooms to train in",
        ),
        (("population = 8", 'targets = ["abacus"]'), "target 'abacus'"),
        (("population = 8", 'targets = ["abacus.toml"]'), "abacus.toml"),
        (('base = "embedded"', 'base = "nowhere.safetensors"'), "nowhere.safetensors: no base there"),
        (('base = "embedded"\n', ""), "run 'hwsearch train'"),
        (("[data]\n", '[data]\narray = "linear4"\n'), "the base has array 'linear6'"),
        (("[data]\n", "[data]\nsample_rate = 16000\n"), "the base has sampling rate 8000"),
        (("[search]", "[separator]\nH = 64\n[search]"), "the base has separator.H 128"),
    ],
)
def test_a_wrong_experiment_is_refused_before_anything_is_built(tmp_path: Path, change: tuple[str, str], reason: str) -> None:
    file = write_tiny(tmp_path / "wrong.toml", change)
    assert reason in refusal(hwsearch("search", file, "--runs-dir", tmp_path / "runs", *ARGUMENTS))
    assert not list(tmp_path.glob("runs/data/*/*"))
    assert {path.name for path in tmp_path.glob("runs/tiny/*")} <= {"experiment.json", "search.lock", "drivers.jsonl"}


def test_a_mistake_mended_costs_nothing(tiny: Tiny, tmp_path: Path) -> None:
    shutil.copytree(tiny.runs / "data", tmp_path / "runs" / "data")
    shutil.copytree(tiny.runs / "corpora", tmp_path / "runs" / "corpora")
    few = (f"trials = {TRIALS}", "trials = 27")
    wrong = write_tiny(tmp_path / "tiny.toml", few, ("population = 8", 'targets = ["abacus"]'))
    refusal(hwsearch("search", wrong, "--runs-dir", tmp_path / "runs", *ARGUMENTS))
    right = write_tiny(tmp_path / "tiny.toml", few)
    assert hwsearch("search", right, "--runs-dir", tmp_path / "runs", *ARGUMENTS).code == 0


def test_an_experiment_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b'name = "caf\xe9"')
    for file in (tmp_path / "absent.toml", tmp_path, tmp_path / "latin.toml"):
        for command in ("run", "search", "train", "evaluate"):
            expected = "not a run folder" if command == "evaluate" and file == tmp_path else "wanted an experiment file"
            assert expected in refusal(hwsearch(command, file))


def test_a_wrong_target_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    text = (BUILT_IN / "bitfusion.toml").read_text()
    for name, content, reason in (
        ("extra", text.replace("[clock]", "[clock]\ncolour = 3"), "clock.colour"),
        ("range", text.replace("clock_hz = ", "clock_hz = -"), "clock.clock_hz"),
        ("syntax", "name =", "not valid TOML"),
    ):
        (tmp_path / f"{name}.toml").write_text(content)
        message = refusal(hwsearch("cost", tmp_path / f"{name}.toml"))
        assert message.startswith(f"{tmp_path / name}.toml: ")
        assert reason in message
    assert "built in are bitfusion, cortex-m33-x-cube-ai, " in refusal(hwsearch("cost", "abacus"))
    assert "--weight-bits is 9" in refusal(hwsearch("cost", "bitfusion", "--weight-bits", 9))
    assert "runs a8w8" in refusal(hwsearch("cost", "bitfusion", "--weight-bits", 32))


def test_a_damaged_base_is_refused(tmp_path: Path) -> None:
    state = load_file(EMBEDDED_BASE)
    description = load_base(EMBEDDED_BASE)[1].model_dump(mode="json")
    content = bytearray(EMBEDDED_BASE.read_bytes())
    content[-1000] ^= 1
    (tmp_path / "flipped.safetensors").write_bytes(content)
    (tmp_path / "cut.safetensors").write_bytes(EMBEDDED_BASE.read_bytes()[:-9])
    (tmp_path / "text.safetensors").write_text("no base")
    save_file(state, tmp_path / "plain.safetensors")
    state["network.mask_head.bias"][3] = torch.nan
    write_tensors(tmp_path / "nan.safetensors", state, "hwsearch_base", description)
    for base in ("flipped", "cut", "text", "plain", "nan"):
        file = write_tiny(tmp_path / "tiny.toml", ('base = "embedded"', f'base = "{base}.safetensors"'))
        for command in ("search", "evaluate"):
            options = ARGUMENTS if command == "search" else ARGUMENTS[2:]
            message = refusal(hwsearch(command, file, "--runs-dir", tmp_path / "runs", *options))
            assert message.startswith(f"{tmp_path / base}.safetensors: ")
        file.unlink()
    assert not (tmp_path / "runs").exists()


def test_a_damaged_checkpoint_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    file = write_tiny(
        tmp_path / "train.toml",
        ('base = "embedded"', ""),
        ("{ validation = 2, test = 2 }", "{ train = 1, validation = 1 }"),
        ("{ validation = 3, test = 3 }", "{}"),
        ("{ validation = 0.5, test = 0.5 }", "{ train = 0.5, validation = 0.5 }"),
    )
    checkpoint = tmp_path / "runs" / "tiny" / "training" / "checkpoint.safetensors"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"damaged")
    message = refusal(hwsearch("train", file, "--runs-dir", tmp_path / "runs", "--processes", 1))
    assert message.startswith(f"{checkpoint}: not a checkpoint of a training")
    assert checkpoint.read_bytes() == b"damaged"
    assert not (tmp_path / "runs" / "tiny" / "base.safetensors").exists()


# The command line itself


def test_a_command_line_that_is_none_is_refused() -> None:
    for arguments in (
        ["hear"],
        ["pareto"],
        ["pareto", "runs", "--format", "xml"],
        ["run", "a", "b"],
        ["run", "a", "--workers", "-1"],
        ["search", "a", "--strategy", "luck"],
        ["run", "a", "--sampler", "grid"],
        ["pareto", "a", "--fidelity", "high"],
    ):
        refusal(hwsearch(*arguments))


def test_without_a_command_the_help_is_shown() -> None:
    for arguments in ([], ["data"]):
        answer = hwsearch(*arguments)
        assert answer.code == 2
        assert answer.stderr.startswith("Usage: hwsearch")
    assert hwsearch("--help").stdout.startswith("Usage: hwsearch")


def test_the_version_is_that_of_the_package() -> None:
    from importlib.metadata import version

    assert hwsearch("--version").stdout == f"hwsearch, version {version('hwsearch')}\n"


def test_a_real_process_refuses_on_standard_error_with_code_2(tmp_path: Path) -> None:
    ended = subprocess.run([HWSEARCH, "run", tmp_path / "absent.toml"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"hwsearch: error: {tmp_path / 'absent.toml'}: no such file; wanted an experiment file in TOML\n"
    assert not list(tmp_path.iterdir())
