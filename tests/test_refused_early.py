"""What arguments, files and the machine say is refused before any work: in one line, with nothing written, in a dry run too."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from hwsearch.data.dataset import open_dataset
from hwsearch.executor import preflight
from hwsearch.experiment import Split
from hwsearch.search.space import build_space, ends_seeds, uniform_seeds
from hwsearch.separator.untrained import untrained_sites
from hwsearch.training import full_precision as training
from hwsearch.workflow import evaluate
from hwsearch.workflow import search as searching
from hwsearch.workflow import training as before
from tests.tiny import TRIALS, Tiny, hwsearch, refusal, snapshot, write_tiny

ARGUMENTS = ("--workers", 0, "--processes", 1)


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that takes time is a failure."""

    def work(*_: Any, **__: Any) -> NoReturn:
        pytest.fail("work has begun")

    for module, name in (
        (before, "build_data"),
        (training, "load_corpora"),
        (training, "dynamic_mixtures"),
        (searching, "ensure"),
        (evaluate, "evaluate_system"),
    ):
        monkeypatch.setattr(module, name, work)


# Experiments that cannot be run

WRONG: dict[str, tuple[tuple[tuple[str, str], ...], str]] = {
    "too few trials": (((f"trials = {TRIALS}", "trials = 10"),), "search.trials is 10; uniform allocations and 'ends at 8 bits'"),
    "nobody to propose": ((('priors = ["output-noise-ratio", "kl"]', "priors = []"),), "search.priors: empty; the posterior"),
    "mixtures without rooms": ((("{ validation = 2, test = 2 }", "{ validation = 2 }"),), "data.rooms.count: no 'test'"),
    "no speakers": ((("{ validation = 0.5, test = 0.5 }", "{ test = 1.0 }"),), "speakers in the validation split: 0; a mixture"),
    "one speaker": ((("validation = 0.5, test", "validation = 0.1, test"),), "speakers in the validation split: 1; a mixture"),
    "no corpus": ((('kind = "espeak"', 'kind = "librispeech"\nroot = "nowhere"'),), "nowhere: no such folder; wanted a L"),
    "no manifest": ((('kind = "espeak"', 'kind = "csv"\nroot = "nowhere.csv"'),), "nowhere.csv: no such file"),
    "no base": ((('base = "embedded"', 'base = "nowhere.safetensors"'),), "nowhere.safetensors: no base there"),
    "wide weights for FINN": (
        (("[quantization]", "[quantization]\ntied_adds = true"), ("[search]", "[search]\nweight_bits = [8, 16]")),
        "search.weight_bits: 'input_proj.weight' may have 16 bits; FINN takes at most 8",
    ),
    "a trunk in floating point for FINN": (
        (("[search]", '[search]\ntargets = ["finn-zcu104"]\nactivation_bits = [8, 32]'),),
        "quantization.tied_adds: 'blocks.0.add.output' may take [8, 32] bits; in a trunk of 16 bits wanted 16 among them",
    ),
    "a network that FINN does not take": (
        (
            ("[quantization]", "[quantization]\ntied_adds = true"),
            ('base = "embedded"\n', ""),
            ("[search]", '[separator]\nnetwork = "conv-tasnet"\n[search]'),
        ),
        "separator: 'encoder' is a Convolution; FINN takes",
    ),
    "too many cores": ((("[search]", "[workers]\ncpus = 1024\n[search]"),), "workers.cpus is 1024; this machine has"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("command", [("run",), ("search", "--dry-run")], ids=" ".join)
def test_a_wrong_experiment_is_refused_before_the_work(
    tmp_path: Path, no_work: None, command: tuple[str, ...], name: str
) -> None:
    changes, reason = WRONG[name]
    file = write_tiny(tmp_path / "wrong.toml", *changes)
    message = refusal(hwsearch(*command, file, "--runs-dir", tmp_path / "runs", "--processes", 1))
    assert reason in message
    assert not (tmp_path / "runs").exists()


OWN_BASE = (
    ('base = "embedded"\n', ""),
    ("{ validation = 0.5, test = 0.5 }", "{ train = 0.4, validation = 0.3, test = 0.3 }"),
    ("{ validation = 2, test = 2 }", "{ train = 2, validation = 2, test = 2 }"),
)

ON_A_GPU = ("[search]", '[workers]\ndevice = "cuda"\ngpus = 0\n[search]')


@pytest.mark.parametrize(
    "command",
    [("train",), ("run", *ARGUMENTS), ("run", "--dry-run"), ("search",), ("search", "--dry-run"), ("sensitivity",)],
    ids=lambda command: " ".join(map(str, command)),
)
def test_a_device_that_is_not_there_is_refused_before_the_work(
    tmp_path: Path, no_work: None, monkeypatch: pytest.MonkeyPatch, command: tuple[object, ...]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    file = write_tiny(tmp_path / "cuda.toml", *OWN_BASE, ON_A_GPU)
    message = refusal(hwsearch(*command, file, "--runs-dir", tmp_path / "runs"))
    assert message == "workers.device is 'cuda'; PyTorch finds no CUDA device on this machine: wanted one, or 'cpu'"
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", [("run",), ("search", "--dry-run"), ("sensitivity",)], ids=" ".join)
def test_workers_on_ray_that_would_see_no_gpu_are_refused_before_the_work(
    tmp_path: Path, no_work: None, monkeypatch: pytest.MonkeyPatch, command: tuple[object, ...]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    file = write_tiny(tmp_path / "cuda.toml", ON_A_GPU)
    message = refusal(hwsearch(*command, file, "--runs-dir", tmp_path / "runs", "--workers", 2))
    assert message.startswith(
        "workers.gpus is 0 and workers.device 'cuda', but Ray hides GPUs from workers without a share; wanted"
    )
    assert not (tmp_path / "runs").exists()


def test_of_a_cluster_the_driver_wants_a_device_only_to_train_the_base(
    tmp_path: Path, no_work: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("check_reachable", "check_cluster"):
        monkeypatch.setattr(preflight, name, lambda _: None)
    share = ("gpus = 0", "gpus = 0.5")
    there = ("--runs-dir", tmp_path / "runs", "--ray-address", "10.0.0.1:6379", "--dry-run")
    answer = hwsearch("run", write_tiny(tmp_path / "its.toml", (ON_A_GPU[0], ON_A_GPU[1].replace(*share))), *there)
    assert answer.code == 0, answer
    assert "missing:  a CUDA device on this machine, which scoring is measured on" in answer.stdout
    own = write_tiny(tmp_path / "own.toml", *OWN_BASE, (ON_A_GPU[0], ON_A_GPU[1].replace(*share)))
    assert refusal(hwsearch("run", own, *there)).startswith("workers.device is 'cuda'; PyTorch finds no CUDA device")


@pytest.mark.parametrize("split", ["train", "validation"])
def test_rooms_that_training_lacks_are_named_before_the_work(tmp_path: Path, no_work: None, split: str) -> None:
    counts = ", ".join(f"{other} = 2" for other in ("train", "validation", "test") if other != split)
    mixtures = () if split == "train" else (("{ validation = 3, test = 3 }", "{ test = 3 }"),)
    file = write_tiny(tmp_path / "rooms.toml", *OWN_BASE[:2], (OWN_BASE[2][0], f"{{ {counts} }}"), *mixtures)
    message = refusal(hwsearch("train", file, "--runs-dir", tmp_path / "runs"))
    assert message.startswith(f"data.rooms.count: no '{split}'; training wants rooms")


@pytest.mark.parametrize("name", ["front.png", "export"])
def test_what_stands_where_the_main_job_ends_is_refused_before_it(tmp_path: Path, no_work: None, name: str) -> None:
    file = write_tiny(tmp_path / "tiny.toml")
    notes = tmp_path / "runs" / "tiny" / name / "notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("mine")
    for command in (("run", *ARGUMENTS), ("run", "--dry-run")):
        assert refusal(hwsearch(*command, file, "--runs-dir", tmp_path / "runs")).startswith(f"{notes.parent}: ")
    assert hwsearch("search", "--dry-run", file, "--runs-dir", tmp_path / "runs").code == 0
    assert snapshot(tmp_path / "runs") == {"tiny": None, f"tiny/{name}": None, f"tiny/{name}/notes.txt": b"mine"}


def test_a_dry_run_asks_for_the_workers_and_the_cluster_as_the_search_does(tmp_path: Path) -> None:
    file = write_tiny(tmp_path / "tiny.toml")
    for options, reason in (
        (("--workers", 10**6), "--workers is 1000000; this machine has"),
        (("--ray-address", "nowhere"), "the address of the Ray cluster is 'nowhere'; wanted HOST:PORT"),
        (("--ray-address", "127.0.0.1:1"), "no Ray cluster answers at '127.0.0.1:1'"),
        (("--ray-address", "127.0.0.1:1", "--workers", 0), "which uses no Ray"),
    ):
        for command in (("search", "--dry-run"), ("search",)):
            assert reason in refusal(hwsearch(*command, file, "--runs-dir", tmp_path / "runs", *options))
    assert not (tmp_path / "runs").exists()


# Trials and seeds


def test_trials_that_have_no_room_for_all_seeds_score_the_first(copied: Tiny) -> None:
    """How many seeds there are is known once there are sensitivities: those at the end are left out."""
    (copied.folder / "record.jsonl").unlink()
    (copied.folder / "optuna-journal.log").unlink()
    experiment = copied.workspace.experiment
    space = build_space(experiment.search, untrained_sites(experiment))
    least = len(uniform_seeds(space) + ends_seeds(space))
    command = ("search", copied.file, "--runs-dir", copied.runs)
    assert f"are {least}: wanted at least as many" in refusal(hwsearch(*command, "--trials", least - 1, "--dry-run"))
    planned = hwsearch(*command, "--trials", least + 1, "--dry-run", "--workers", 0)
    assert planned.code == 0
    assert f"search.trials leaves room for the first {least + 1}\n" in planned.stdout
    answer = hwsearch(*command, "--trials", least + 1, *ARGUMENTS)
    assert answer.code == 0, answer.stderr
    assert f"search.trials is {least + 1}: of " in answer.stderr
    assert [event["strategy"] for event in copied.events()][-2:] == ["ends-at-8", "output-noise-ratio"]


# Outputs


def test_an_output_that_cannot_be_is_refused_without_making_folders(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for output in (file / "deep" / "x", Path("/proc/nowhere/x"), Path("/dev/full/x")):
        for command in (
            ("evaluate", "runs/absent", "--output", output.with_suffix(".json")),
            ("calibrate", "bitfusion", "--measurements", "absent.json", "--output", output.with_suffix(".toml")),
            ("export", "runs/absent", "--candidate", 1, "--output", output),
        ):
            assert refusal(hwsearch(*command)).startswith(f"{command[-1]}: ")
    assert "a folder that is there or can be made" in refusal(hwsearch("evaluate", "x", "--output", file / "x" / "y.json"))
    assert snapshot(tmp_path) == {"file": b"mine"}


def test_an_output_takes_the_place_of_nothing_but_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    for output, found in ((Path("/dev/null"), "is a device"), (tmp_path / "pipe.json", "is a pipe"), (tmp_path, "is a folder")):
        line = refusal(hwsearch("evaluate", "runs/absent", "--output", output))
        assert line == f"{output}: {found}; wanted the name of a file to write"


def test_an_output_does_not_take_the_place_of_what_is_read(tmp_path: Path) -> None:
    file = write_tiny(tmp_path / "tiny.toml")
    before = file.read_bytes()
    (tmp_path / "same.json").symlink_to("tiny.toml")
    for command in (
        ("evaluate", file, "--output", tmp_path / "same.json"),
        ("evaluate", "runs/absent", "--model", file, "--output", file),
        ("separate", file, "--input", "absent.wav", "--doa", 60, "--output", tmp_path / "same.json"),
    ):
        assert refusal(hwsearch(*command)) == f"--output is {command[-1]}, which is read; wanted another file"
    assert file.read_bytes() == before


@pytest.mark.parametrize("command", [("data", "build"), ("train",), ("search",), ("run",), ("sensitivity",), ("evaluate",)])
def test_a_folder_of_runs_that_cannot_be_is_refused(tmp_path: Path, no_work: None, command: tuple[str, ...]) -> None:
    file = write_tiny(tmp_path / "tiny.toml")
    for runs in (file, file / "runs", Path("/proc/runs")):
        assert refusal(hwsearch(*command, file, "--runs-dir", runs)).startswith(f"{runs / 'tiny'}: ")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.toml"]


def test_figures_of_other_mixtures_are_refused_before_the_evaluation(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "evaluate_system", lambda *_: pytest.fail("work has begun"))
    mixture = open_dataset(tiny.workspace.data_folder, Split.TEST)[0]
    figures = {"angle_deg": 1.0, "t60_measured_s": None, "scores": {}, "words": {}, "unavailable": {}}
    for name, utterance in ((mixture.id, "other"), ("other", mixture.target.utterance)):
        (tmp_path / "other.json").write_text(json.dumps({"utterances": [{"id": name, "utterance": utterance, **figures}]}))
        message = refusal(hwsearch("evaluate", tiny.folder, "--against", tmp_path / "other.json", "--processes", 1))
        assert "no mixture in common" in message


def test_a_recogniser_that_is_not_installed_is_refused_before_the_work(
    tmp_path: Path, no_work: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hwsearch.metrics.evaluation.find_spec", lambda _: None)
    recogniser = ("[search]", '[evaluation]\nrecogniser = "pocketsphinx-closed"\n[search]')
    file = write_tiny(tmp_path / "tiny.toml", recogniser)
    message = refusal(hwsearch("evaluate", file, "--runs-dir", tmp_path / "runs"))
    assert message == "evaluation.recogniser is 'pocketsphinx-closed', not installed; wanted: pip install 'hwsearch[asr]'"


# Paths

COMMANDS: tuple[tuple[str, Callable[[str], tuple[object, ...]]], ...] = (
    ("run", lambda path: ("run", path)),
    ("runs-dir", lambda path: ("search", "x.toml", "--runs-dir", path)),
    ("build", lambda path: ("data", "build", path)),
    ("train", lambda path: ("train", path)),
    ("sensitivity", lambda path: ("sensitivity", path)),
    ("status", lambda path: ("status", path)),
    ("pareto", lambda path: ("pareto", path)),
    ("plot", lambda path: ("pareto", "x", "--plot", path)),
    ("export", lambda path: ("export", path, "--candidate", 1, "--output", "x")),
    ("export to", lambda path: ("export", "x", "--candidate", 1, "--output", path)),
    ("separate", lambda path: ("separate", path, "--input", "x.wav", "--doa", 1, "--output", "y.wav")),
    ("input", lambda path: ("separate", "x", "--input", path, "--doa", 1, "--output", "y.wav")),
    ("output", lambda path: ("separate", "x", "--input", "x.wav", "--doa", 1, "--output", path)),
    ("evaluate", lambda path: ("evaluate", path)),
    ("model", lambda path: ("evaluate", "x", "--model", path)),
    ("figures", lambda path: ("evaluate", "x", "--output", path)),
    ("against", lambda path: ("evaluate", "x", "--against", path)),
    ("experiment", lambda path: ("cost", "bitfusion", "--experiment", path)),
    ("charged run", lambda path: ("cost", "bitfusion", "--run", path, "--candidate", 1)),
    ("plots", lambda path: ("cost", "bitfusion", "--plots", path)),
    ("measurements", lambda path: ("calibrate", "bitfusion", "--measurements", path, "--output", "x.toml")),
    ("target file", lambda path: ("calibrate", "bitfusion", "--measurements", "x", "--output", path)),
)


@pytest.mark.parametrize(("name", "command"), COMMANDS, ids=[name for name, _ in COMMANDS])
def test_a_path_that_no_file_can_have_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, command: Callable[[str], tuple[object, ...]]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    for path, reason in (
        ("", "it is empty; wanted a path"),
        ("b\udcff.wav", r"b'b\xff.wav' is not UTF-8; wanted a path in UTF-8"),
        ("loop", "'loop' is a link that leads back to itself; wanted another path"),
        ("loop/x.wav", "'loop/x.wav' is a link that leads back to itself; wanted another path"),
        ("x" * 300, "has a name that is too long; wanted another path"),
    ):
        message = refusal(hwsearch(*command(path)))
        assert message.startswith("Invalid value for ")
        assert message.endswith(reason)
    assert [entry.name for entry in tmp_path.iterdir()] == ["loop"]


def test_a_target_is_no_such_path_either(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for target, reason in (
        ("", "is a folder"),
        ("b\udcff.toml", "neither a file nor built in"),
        (tmp_path / "loop", "Too many levels of symbolic links"),
        ("/dev/zero", "is a device"),
        (tmp_path, "is a folder"),
    ):
        for command in ("targets", "cost"):
            assert reason in refusal(hwsearch(command, target))


# Without loading anything heavy

QUICK = """
import sys
from hwsearch.cli.commands import _run_commands
for arguments in %r:
    sys.argv = ["hwsearch", *arguments]
    assert _run_commands() == 2, arguments
    assert not {"torch", "ray", "brevitas", "optuna", "onnxruntime"} & sys.modules.keys(), arguments
"""


def test_what_arguments_say_is_refused_before_anything_heavy_is_loaded(tmp_path: Path) -> None:
    separate = ["separate", "x.onnx", "--input", "x.wav"]
    (tmp_path / "wrong.toml").write_text("name = 3")
    commands = [
        [*separate, "--doa", "nan", "--output", "y.wav"],
        [*separate, "--doa", "60", "--output", "y.mp3"],
        [*separate, "--doa", "60", "--output", ""],
        ["calibrate", "bitfusion", "--measurements", "x.json", "--output", "y.json"],
        ["calibrate", "bitfusion", "--measurements", "x.json", "--output", "/proc/y.toml"],
        ["evaluate", "x", "--output", "/proc/x.json"],
        ["export", "x", "--candidate", "1", "--output", "/proc/x"],
        ["run", "wrong.toml", "--dry-run"],
        ["run", "/dev/zero", "--dry-run"],
    ]
    command = [sys.executable, "-c", QUICK % commands]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert len(ended.stderr.splitlines()) == len(commands)
    assert all(line.startswith("hwsearch: error: ") for line in ended.stderr.splitlines())
