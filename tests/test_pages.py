"""README and the pages behind it: their links lead somewhere, their commands run, and the names they mention exist."""

import re
import runpy
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import pytest

from hwsearch.cli import commands
from hwsearch.experiment import Experiment, parse_experiment
from hwsearch.view.experiment_reference import explain, sections
from tests.tiny import Tiny, hwsearch, tiny_content

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"

TESTED = "<!-- tested -->"
"""Stands above a block that runs here, on the run of the tiny experiment in place of the quickstart's."""

MOST_LINES = 150

FENCE = re.compile(r"^(<!-- [\w ]+ -->\n)?```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
PATH = re.compile(r"(?:experiments|hwsearch|hw_models|tests)/[\w./-]*\w")

RAY_OPTIONS = {"--node-manager-port", "--object-manager-port", "--min-worker-port", "--max-worker-port"}


class Block(NamedTuple):
    """A fenced block of a page."""

    tested: bool
    language: str
    text: str


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", page.read_text("utf-8"))


def blocks(page: Path) -> list[Block]:
    return [Block(mark.strip() == TESTED, language, text) for mark, language, text in FENCE.findall(page.read_text("utf-8"))]


def links(page: Path) -> list[tuple[Path, str]]:
    """Where the relative links of a page lead: the file or folder, and the heading in it."""
    found = [link.partition("#") for link in LINK.findall(prose(page)) if "://" not in link]
    return [((page.parent / place).resolve() if place else page, heading) for place, _, heading in found]


def anchors(page: Path) -> set[str]:
    """What links to the headings of a page are called."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def linked_pages(page: Path) -> list[Path]:
    return list(dict.fromkeys(target for target, _ in links(page) if target.suffix == ".md" and target != page))


def all_pages() -> list[Path]:
    """README and every page that can be reached from it."""
    found = [README]
    for page in found:
        found += [target for target in linked_pages(page) if target not in found and target.is_file()]
    return found


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def command_lines(page: Path) -> Iterator[list[str]]:
    """The arguments of every call of hwsearch in the fenced blocks of a page."""
    for block in blocks(page):
        if block.language in ("bash", ""):
            for line in re.split(r"\n|&&", block.text):
                program, *arguments = shlex.split(line, comments=True) or [""]
                if Path(program).name == "hwsearch":
                    yield arguments


def resolved(arguments: list[str]) -> tuple[click.Command, list[str]]:
    """The command that arguments begin with, and those that are left for it."""
    command: click.Command = commands
    while isinstance(command, click.Group):
        first, *arguments = arguments
        assert first in command.commands, f"there is no command {first}"
        command = command.commands[first]
    return command, arguments


def options(command: click.Command) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts}


PAGES = all_pages()
OUR_PAGES = [page for page in PAGES if not page.is_relative_to(ROOT / "experiments" / "results")]
FIRST_PAGES = linked_pages(README)
every_page = pytest.mark.parametrize("page", OUR_PAGES, ids=name)


def test_the_readme_is_short() -> None:
    assert len(README.read_text("utf-8").splitlines()) <= MOST_LINES


def test_the_readme_leads_to_every_page() -> None:
    written = {page for folder in ("hwsearch", "hw_models", "experiments") for page in (ROOT / folder).rglob("README.md")}
    assert len(written) > 5
    assert written <= set(FIRST_PAGES)


@every_page
def test_links_lead_to_what_is_there(page: Path) -> None:
    for target, heading in links(page):
        assert target.exists(), target
        if heading:
            assert heading in anchors(target), f"{name(target)} has no heading {heading}"


@every_page
def test_files_that_a_page_names_are_there(page: Path) -> None:
    for path in PATH.findall(" ".join(CODE.findall(prose(page)))):
        assert (ROOT / path).exists(), path


@every_page
def test_commands_of_a_page_are_understood(page: Path) -> None:
    for arguments in command_lines(page):
        command, rest = resolved(arguments)
        command.make_context(command.name, rest)
    for code in CODE.findall(prose(page)):
        if re.match(r"hwsearch [a-z]", code):
            command, rest = resolved(re.findall(r"[\w.-]+", code)[1:])
            assert {word for word in rest if word.startswith("--")} <= options(command), code


@every_page
def test_options_that_a_page_names_exist(page: Path) -> None:
    known = set().union(*(options(resolved([first])[0]) for first in commands.commands if first != "data"), RAY_OPTIONS)
    named = [code.split()[0].split("=")[0] for code in CODE.findall(prose(page)) if code.startswith("--")]
    assert set(named) <= known | {"--help"}


@every_page
def test_keys_that_a_page_names_are_in_the_experiment_file(page: Path) -> None:
    heads = "|".join({section.path.partition(".")[0] for section in sections()} - {""})
    for key in re.findall(rf"`((?:{heads})\.(?!log|py|json|onnx)\w+)(?: = [^`]*)?`", prose(page)):
        assert explain(key, markdown=False)


@every_page
def test_pieces_of_experiment_files_are_valid(page: Path) -> None:
    pieces = [tomllib.loads(block.text) for block in blocks(page) if block.language == "toml"]
    for piece in pieces:
        if piece.keys() <= Experiment.model_fields.keys():
            whole = tiny_content()
            data = whole["data"] | piece.get("data", {})  # a page shows the parts of this section one by one
            parse_experiment(whole | piece | {"data": data}, name(page))


class Bench:
    """A folder in which the tiny experiment stands where the quickstart would, and has run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ran: set[tuple[str, ...]] = set()

    def run_command(self, line: str) -> None:
        """Run a command, once for all pages that show it."""
        program, *arguments = shlex.split(line, comments=True)
        assert program == "hwsearch"
        if tuple(arguments) not in self.ran:
            answer = hwsearch(*arguments)
            assert answer.code == 0, f"{line}: {answer.stderr}"
            self.ran.add(tuple(arguments))

    def run_script(self, text: str) -> None:
        script = self.folder / "example.py"
        script.write_text(text, "utf-8")
        runpy.run_path(str(script))


@pytest.fixture(scope="module")
def bench(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("pages")
    shutil.copytree(tiny.runs, folder / "runs")
    (folder / "experiments").mkdir()
    shutil.copy(tiny.file, folder / "experiments" / "quickstart.toml")
    shutil.copy(tiny.recording(), folder / "mixture.wav")
    return Bench(folder)


@pytest.mark.parametrize("page", [README, *FIRST_PAGES], ids=name)
def test_the_tested_commands_of_a_page_run(page: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bench.folder)
    tested = [block for block in blocks(page) if block.tested]
    assert tested
    if page != README:
        assert page.read_text("utf-8").endswith(f"{tested[-1].text}```\n"), "a page ends with commands that a test runs"
    for block in tested:
        text = block.text.replace("runs/quickstart", "runs/tiny")
        if block.language == "python":
            bench.run_script(text)
        else:
            for line in text.splitlines():
                bench.run_command(line)
