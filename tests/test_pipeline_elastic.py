"""Searches that leave parts out, through every step: a TCN, Conv-TasNet, and a network of the user's own."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from hw_models.compile import compile_target
from hw_models.cost import evaluate
from hw_models.target import load_target
from hw_models.workload import bits_matrix
from hwsearch.data.arrays import microphone_array
from hwsearch.data.dataset import load_mixture, open_dataset
from hwsearch.data.example import Example
from hwsearch.experiment import Fidelity, Split
from hwsearch.export.onnx_size import onnx_size
from hwsearch.network.sites import find_sites
from hwsearch.search.costs import experiment_workload
from hwsearch.search.experiment_space import experiment_space
from hwsearch.search.mixture_batches import improvements, mixture_batches
from hwsearch.separator.separator import build_front_end
from hwsearch.separator.trained import trained_network
from hwsearch.separator.untrained import untrained_network
from hwsearch.workflow.runs import open_candidate, open_workspace, read_run
from hwsearch.workflow.training import prepare
from tests.test_own_network import OWN
from tests.tiny import hwsearch, read_events, refusal

QUALITY = "si_snr_improvement_db"

TCN = """
[separator]
n_fft = 128
hop_length = 64
B = 8
H = 16
X = 2
R = 2
"""

SHARED = """
[shared]
steps = 8
batch_size = 2
report_steps = 8
"""

STRUCTURE = """
[search.structure]
"*.kept" = [0]
"*.channels" = [0.25, 0.5]
"""

KINDS = ("tcn", "conv_tasnet", "unet")


def experiment_text(kind: str, trials: int = 70, structure: str = STRUCTURE) -> str:
    """An experiment of `tests/own` that searches structure on a shared network; the TCN takes the place of Conv-TasNet."""
    text = (OWN / f"{'conv_tasnet' if kind == 'tcn' else kind}.toml").read_text()
    if kind == "tcn":
        before, _, rest = text.partition("[separator]")
        text = (
            before.replace("array = { positions_cm = [[0, 0]] }", 'array = "linear6"')
            + TCN
            + "\n[training]"
            + rest.partition("[training]")[2]
        )
    text = text.replace("trials = 24", f'trials = {trials}\nfidelity = "shared"')
    return text + SHARED + structure


@dataclass(frozen=True)
class Done:
    """A finished main job."""

    kind: str
    file: Path
    runs: Path

    @property
    def run(self) -> Path:
        return next(self.runs.glob("*/record.jsonl")).parent


@pytest.fixture(scope="module", params=KINDS)
def done(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Done:
    folder = tmp_path_factory.mktemp(request.param)
    shutil.copy(OWN / "unet.py", folder)
    file = folder / "experiment.toml"
    file.write_text(experiment_text(request.param))
    answer = hwsearch("run", file, "--runs-dir", folder / "runs", "--workers", "0", "--processes", "1")
    assert answer.code == 0, answer.stderr
    assert "what may be left out: " in answer.stderr
    return Done(request.param, file, folder / "runs")


def left_out(done: Done, fidelity: Fidelity | None = None) -> list[int]:
    """Candidates that leave something out, the ones that leave out most last."""
    table = read_run(done.run, fidelity).table
    counts = (table.kept != [whole for _, whole in table.options]).sum(axis=1)
    order = np.argsort(counts, kind="stable")
    return [int(number) for number in table.candidate[order] if counts[table.candidate.tolist().index(number)]]


def test_every_rule_has_its_seeds_and_no_candidate_comes_twice(done: Done) -> None:
    events = [event for event in read_events(done.run) if event["candidate"]]
    first = [event for event in events if event["fidelity"] == "shared-subset"]
    assert {"uniform", "ends-at-8", "uniform-channels", "fewer-blocks", "prior-corrected"} <= {e["strategy"] for e in first}
    seen = {json.dumps([event["allocation"], event["structure"]], sort_keys=True) for event in first}
    assert len(seen) == len(first) == 70


def test_sites_and_costs_are_those_of_the_narrowed_network(done: Done) -> None:
    experiment = open_workspace(done.run).experiment
    space, network = experiment_space(experiment), untrained_network(experiment)
    assert space.network is not None
    for event in [event for event in read_events(done.run) if event["structure"]][::7]:
        graph = space.network.options.narrowed(network.graph, event["structure"])
        assert set(event["allocation"]) == set(find_sites(graph).all)
        workload = experiment_workload(experiment, event["structure"])
        assert set(workload.sites) == set(event["allocation"])
        table, bits = compile_target(load_target("x86-onnxruntime"), workload), bits_matrix(workload, [event["allocation"]])
        alone = float(evaluate(table, bits).latency_ms[0])
        assert event["costs"]["latency_ms[x86-onnxruntime]"] == pytest.approx(alone, rel=1e-9)


def test_a_candidate_is_the_brevitas_network_of_what_it_keeps(done: Done) -> None:
    run = read_run(done.run, Fidelity.SHARED_SUBSET)
    prepared = prepare(run.workspace)
    number = left_out(done, Fidelity.SHARED_SUBSET)[-1]
    opened = open_candidate(run, prepared, number)
    assert opened.state is not None
    network = trained_network(opened.base, opened.state)
    folder = run.workspace.data_folder
    mixtures = open_dataset(folder, Split.VALIDATION)[:2]
    examples = [Example(*load_mixture(folder, mixture), mixture.target.doa_deg) for mixture in mixtures]
    with torch.no_grad():
        found = improvements(
            prepared.separator, lambda kept: network(kept.normalised), mixture_batches(prepared.separator, examples)
        )
    assert run.table.columns[QUALITY][run.row(number)] == pytest.approx(np.mean(found), abs=0.05)


def test_a_narrowed_candidate_is_finished_and_exported_as_small_as_it_was_charged(done: Done, tmp_path: Path) -> None:
    number = left_out(done, Fidelity.SHARED_SUBSET)[-1]
    answer = hwsearch("finetune", done.run, "--candidate", number, "--steps", 2, "--workers", "0", "--processes", "1")
    assert answer.code == 0, answer.stderr
    answer = hwsearch("export", done.run, "--candidate", number, "--fidelity", "finetuned", "--output", tmp_path / "out")
    assert answer.code == 0, answer.stderr
    (event,) = [e for e in read_events(done.run) if e["candidate"] == number and e["fidelity"] == "finetuned"]
    assert (tmp_path / "out" / "model.onnx").stat().st_size == event["costs"]["size_bytes"]
    assert json.loads((tmp_path / "out" / "structure.json").read_text()) == event["structure"]
    assert json.loads((tmp_path / "out" / "allocation.json").read_text()) == event["allocation"]
    answer = hwsearch(
        "export", done.run, "--candidate", number, "--fidelity", "finetuned", "--format", "qnn", "--output", tmp_path / "qnn"
    )
    assert answer.code == 0, answer.stderr
    packed = json.loads((tmp_path / "out" / "verification.json").read_text())["bytes"]["weights.hwq"]
    assert packed == event["costs"]["packed_bytes"]


def test_a_run_that_is_done_goes_on_to_nothing_new(done: Done) -> None:
    before = (done.run / "record.jsonl").read_bytes()
    answer = hwsearch("search", done.file, "--runs-dir", done.runs, "--workers", "0", "--processes", "1")
    assert answer.code == 0, answer.stderr
    assert (done.run / "record.jsonl").read_bytes() == before


def test_cost_and_front_say_what_is_left_out(done: Done) -> None:
    number = left_out(done, Fidelity.SHARED_SUBSET)[-1]
    (event,) = [e for e in read_events(done.run) if e["candidate"] == number and e["fidelity"] == "shared-subset"]
    answer = hwsearch("cost", "x86-onnxruntime", "--run", done.run, "--candidate", number)
    assert answer.code == 0, answer.stderr
    (said,) = re.findall(r"^time: +([0-9.,]+) (ms|us)", answer.stdout, re.MULTILINE)
    milliseconds = float(said[0].replace(",", "")) / {"ms": 1, "us": 1000}[said[1]]
    assert milliseconds == pytest.approx(event["costs"]["latency_ms[x86-onnxruntime]"], rel=0.01)
    answer = hwsearch("pareto", done.run, "--all", "--fidelity", "shared-subset", "--format", "json")
    (row,) = [each for each in json.loads(answer.stdout) if each["candidate"] == number]
    assert {name: row[f"kept[{name}]"] for name in event["structure"]} == event["structure"]
    assert {site: row[f"bits[{site}]"] for site in event["allocation"]} == event["allocation"]


def test_the_size_of_a_file_is_known_before_it_is_written(done: Done) -> None:
    experiment = open_workspace(done.run).experiment
    space, network = experiment_space(experiment), untrained_network(experiment)
    assert space.network is not None
    event = next(event for event in read_events(done.run) if event["structure"])
    data = experiment.data
    front_end = build_front_end(experiment.separator.spectral, microphone_array(data.array), data.sample_rate)
    graph = space.network.options.narrowed(network.graph, event["structure"])
    size = onnx_size(graph, front_end, per_channel=True)
    assert size.of(event["allocation"]) == event["costs"]["size_bytes"]


def test_structure_alone_is_searched_at_one_width(tmp_path: Path) -> None:
    file = tmp_path / "experiment.toml"
    text = experiment_text("tcn", trials=25).replace("weight_bits = [3, 4, 8]", "weight_bits = [8]")
    file.write_text(text.replace("activation_bits = [6, 8]", "activation_bits = [8]").replace("[8, 16]", "[16]"))
    answer = hwsearch("search", file, "--runs-dir", tmp_path / "runs", "--workers", "0", "--processes", "1")
    assert "no base there" in answer.stderr
    answer = hwsearch("run", file, "--runs-dir", tmp_path / "runs", "--workers", "0", "--processes", "1")
    assert answer.code == 0, answer.stderr
    run = next((tmp_path / "runs").glob("*/record.jsonl")).parent
    table = read_run(run, Fidelity.SHARED_SUBSET).table
    assert len(table) == 25
    assert {"structure", "uniform-channels", "prior-corrected"} <= set(table.strategy.tolist())
    assert set(np.unique(table.widths)) <= {0, 8, 16}


def test_narrowed_candidates_in_floating_point_have_the_weights_of_the_shared_network(tmp_path: Path) -> None:
    file = tmp_path / "experiment.toml"
    text = experiment_text("tcn", trials=30).replace("weight_bits = [3, 4, 8]", "weight_bits = [4, 32]")
    text = text.replace("activation_bits = [6, 8]", "activation_bits = [32]").replace("trunk_bits = [8, 16]", "trunk_bits = [32]")
    file.write_text(text.replace('["cortex-m7-cmsis-nn", "x86-onnxruntime"]', '["x86-onnxruntime"]'))
    answer = hwsearch("run", file, "--runs-dir", tmp_path / "runs", "--workers", "0", "--processes", "1")
    assert answer.code == 0, answer.stderr
    run = next((tmp_path / "runs").glob("*/record.jsonl")).parent
    narrow = [event for event in read_events(run) if event["structure"]]
    assert {event["metrics"]["training_steps"] for event in narrow if event["fidelity"] == "shared-subset"} == {8.0}
    (run / "structure-losses.json").unlink()
    planned = hwsearch("search", file, "--runs-dir", tmp_path / "runs", "--dry-run")
    assert "the losses of what may be left out" in planned.stdout
    assert "at most" in planned.stdout


@pytest.mark.parametrize(
    ("structure", "said"),
    [
        ('"*.kept" = [0.5]', "keeps 0.5 of block"),
        ('"*.channels" = [0.0]', "wanted one at least"),
        ('"trunk.*" = [0]', "matches nothing that can be left out"),
        ('"*.channels" = [0.5, 0.25]', "must rise"),
        ('"*.channels" = [1.5]', "1"),
    ],
)
def test_what_cannot_be_left_out_is_refused_in_one_line(tmp_path: Path, structure: str, said: str) -> None:
    file = tmp_path / "experiment.toml"
    file.write_text(experiment_text("tcn", structure=f"\n[search.structure]\n{structure}\n"))
    assert said in refusal(hwsearch("run", file, "--runs-dir", tmp_path / "runs", "--workers", "0"))


def test_a_limit_that_only_an_empty_network_meets_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "experiment.toml"
    file.write_text(experiment_text("tcn", structure="\n[search.limits]\nsize_bytes = 4000\n" + STRUCTURE))
    assert "cannot be met" in refusal(hwsearch("run", file, "--runs-dir", tmp_path / "runs", "--workers", "0"))
