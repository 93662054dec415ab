"""The help of every command: whole sentences, and an example that works."""

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from hwsearch.cli import commands
from tests.test_cli_hardware import measurements_of
from tests.test_init import librispeech
from tests.tiny import SPOKEN, TRAINED, Tiny, hwsearch

WIDTH = 80

COMPARISON = f"""\
name = "comparison"
seed = 3

[data]
array = "linear4"

{SPOKEN}{TRAINED}[shared]
steps = 4
batch_size = 2

[search]
priors = ["output-noise-ratio"]
trials = 34
fidelity = "shared"
validation_mixtures = 2
targets = ["x86-onnxruntime"]
"""
"""An experiment that trains all that can be trained, in seconds."""

Words = tuple[str, ...]


def walk(command: click.Command, words: Words = ()) -> Iterator[tuple[Words, click.Command]]:
    yield words, command
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from walk(inner, (*words, name))


COMMANDS = list(walk(commands))
IDS = [" ".join(words) or "hwsearch" for words, _ in COMMANDS]


def example(command: click.Command) -> list[str]:
    """The words of the example that the help ends with."""
    lines = (command.epilog or "").split("Example:\n")[-1].splitlines()
    assert len(lines) == 1, "wanted one example"
    return shlex.split(lines[0])


def shown(words: Words) -> str:
    answer = CliRunner().invoke(commands, [*words, "--help"], prog_name="hwsearch", env={"COLUMNS": str(WIDTH)})
    assert answer.exit_code == 0
    return answer.output


@pytest.mark.parametrize(("words", "command"), COMMANDS, ids=IDS)
def test_the_help_holds_whole_sentences_and_fits_the_terminal(words: Words, command: click.Command) -> None:
    text = shown(words)
    assert not re.search(r"[^]]\.\.\.$", text, re.MULTILINE), "a sentence is cut"
    assert max(map(len, text.splitlines())) <= WIDTH
    assert (command.help or "").rstrip().endswith(".")
    for option in command.params:
        if isinstance(option, click.Option):
            assert re.fullmatch(r"[A-Z0-9].*\.", option.help or ""), f"{option.opts[0]}: {option.help}"


@pytest.mark.parametrize(("words", "command"), COMMANDS, ids=IDS)
def test_the_help_ends_with_an_example_that_the_command_takes(words: Words, command: click.Command) -> None:
    name, *arguments = example(command)
    assert name == "hwsearch"
    assert tuple(arguments[: len(words)]) == words
    assert shown(words).endswith(f"Example:\n    {command.epilog.splitlines()[-1].strip()}\n")
    inner, place = commands, 0
    while isinstance(inner, click.Group):
        inner, place = inner.commands[arguments[place]], place + 1
    inner.make_context("hwsearch", arguments[place:])  # an unknown option or a wrong value raises
    for argument in arguments:
        if argument.startswith("experiments/"):
            assert (Path(__file__).parents[1] / argument).is_file()


SERVES = ("dashboard",)
"""Commands that do not end by themselves: tests of their own run them."""

RUNNABLE = [(words, command) for words, command in COMMANDS if words and words != SERVES]


@pytest.fixture(scope="module")
def quickstart(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which examples find what they name: runs and their experiments, a model, a recording, speech.

    The experiments are small, and the names are those of the large ones.
    """
    folder = tmp_path_factory.mktemp("examples")
    shutil.copytree(tiny.runs, folder / "runs")
    (folder / "runs" / "quickstart").symlink_to("tiny")
    (folder / "experiments").mkdir()
    shutil.copy(tiny.file, folder / "experiments" / "quickstart.toml")
    (folder / "experiments" / "comparison.toml").write_text(COMPARISON)
    (folder / "experiments" / "real_speech.toml").write_text(COMPARISON.replace("comparison", "real-speech"))
    answer = hwsearch("run", folder / "experiments" / "comparison.toml", "--runs-dir", folder / "runs", "--workers", "0")
    assert answer.code == 0, answer.stderr
    librispeech(folder / "my_speech")
    (folder / "model.onnx").symlink_to(tiny.model)
    (folder / "mix.wav").symlink_to(tiny.recording())
    measured = {"source": "a board", "measurements": measurements_of("gap8-pulp-nn", 1.5)}
    (folder / "mine.json").write_text(json.dumps(measured))
    return folder


@pytest.mark.parametrize("command", [command for _, command in RUNNABLE], ids=[" ".join(words) for words, _ in RUNNABLE])
def test_the_example_runs(command: click.Command, quickstart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done already is not done again: the example of a long command takes seconds."""
    monkeypatch.chdir(quickstart)
    arguments = example(command)[1:]
    answer = hwsearch(*arguments)
    assert answer.code == 0, answer.stderr
    for option, file in pairwise(arguments):
        if option == "--output":
            assert (quickstart / file).exists()
