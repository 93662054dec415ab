"""The help of every command: whole sentences, and an example that works."""

import json
import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from hwsearch.cli import commands
from tests.test_cli_hardware import measurements_of
from tests.tiny import Tiny, hwsearch

WIDTH = 80

PARSED_ONLY = {"run", "train", "train-shared", "search", "sensitivity", "publish", "export", "finetune", "compare", "dashboard"}
"""Commands whose examples take long, or write where others read. Tests of their own run them."""

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


CHEAP = [(words, command) for words, command in COMMANDS if words and words[0] not in PARSED_ONLY]


@pytest.fixture(scope="module")
def quickstart(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which examples find what they name: a run of the quickstart, its experiment, a model, a recording."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "runs").mkdir()
    for inside in tiny.runs.iterdir():
        (folder / "runs" / inside.name).symlink_to(inside)
    (folder / "runs" / "quickstart").symlink_to(tiny.folder)
    (folder / "experiments").mkdir()
    (folder / "experiments" / "quickstart.toml").symlink_to(tiny.file)
    (folder / "model.onnx").symlink_to(tiny.model)
    (folder / "mix.wav").symlink_to(tiny.recording())
    measured = {"source": "a board", "measurements": measurements_of("gap8-pulp-nn", 1.5)}
    (folder / "mine.json").write_text(json.dumps(measured))
    return folder


@pytest.mark.parametrize("command", [command for _, command in CHEAP], ids=[" ".join(words) for words, _ in CHEAP])
def test_the_example_runs(command: click.Command, quickstart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(quickstart)
    arguments = example(command)[1:]
    answer = hwsearch(*arguments)
    assert answer.code == 0, answer.stderr
    for option, file in pairwise(arguments):
        if option == "--output":
            assert (quickstart / file).exists()
