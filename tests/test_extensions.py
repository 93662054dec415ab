"""Each kind of extension is one file and one registration: the command line, the experiment file and its reference follow."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import soundfile as sf

from hw_models.target import BUILT_IN
from hwsearch.data.corpus import read_corpora
from hwsearch.experiment import Split, load_experiment
from hwsearch.extensions import CORPORA, EXPORTERS, QUALITY_METRICS, RECORDED, SAMPLERS, SENSITIVITIES, STRATEGIES, Registry
from tests.tiny import Tiny, hwsearch, read_events, refusal, write_tiny

ADDED = (
    (SAMPLERS, "dice", "tests.extensions.sampler:make", "draws each width at random"),
    (SENSITIVITIES, "step", "tests.extensions.sensitivity:STEP", "the squared step of the grid"),
    (QUALITY_METRICS, "level_error_db", "tests.extensions.metric:LEVEL_ERROR", "how far the level is off"),
    (CORPORA, "folders", "tests.extensions.corpus:read_corpus", "a folder for each speaker"),
    (EXPORTERS, "listing", "tests.extensions.export_format:LISTING", "lists the parameters"),
)
PAGE = Path(__file__).parents[1] / "hwsearch" / "EXTENDING.md"


@pytest.fixture
def added() -> Iterator[None]:
    with ExitStack() as kept:
        for registry, name, place, says in ADDED:
            kept.enter_context(patch.dict(registry.entries))
            registry.register(name, place, says)
        yield


@pytest.mark.parametrize("registry", [CORPORA, EXPORTERS, QUALITY_METRICS, RECORDED, SAMPLERS, SENSITIVITIES, STRATEGIES])
def test_every_extension_that_ships_can_be_loaded_and_says_what_it_does(registry: Registry[object]) -> None:
    assert len(list(registry)) >= 2
    for name, entry in registry.entries.items():
        assert registry.load(name) is not None
        assert entry.says
        assert not entry.says.endswith(".")


def test_a_name_is_registered_once_and_at_a_place() -> None:
    with pytest.raises(ValueError, match="sampler 'tpe' is registered already"):
        SAMPLERS.register("tpe", "a:b", "is another")
    with pytest.raises(ValueError, match=r"sampler 'grid' is at 'somewhere'; wanted 'module:object'"):
        SAMPLERS.register("grid", "somewhere", "is nowhere")
    assert "grid" not in SAMPLERS


@pytest.mark.parametrize(
    ("key", "name", "says"),
    [
        ("search.sampler", "dice", "draws each width at random."),
        ("search.priors", "step", "the squared step of the grid."),
        ("data.corpora.kind", "folders", "a folder for each speaker."),
    ],
)
def test_the_reference_names_what_was_added(added: None, key: str, name: str, says: str) -> None:
    for command in (("explain", key), ("explain", "--format", "markdown")):
        shown = " ".join(hwsearch(*command).stdout.split())
        assert f"- `{name}`: {says}" in shown
        assert f'`"{name}"`' in shown
    assert f"`{name}`" not in (Path(__file__).parents[1] / "experiments" / "REFERENCE.md").read_text()


def test_the_command_line_takes_what_was_added_and_nothing_else(added: None) -> None:
    assert "|dice]" in hwsearch("search", "--help").stdout
    assert "|listing]" in hwsearch("export", "--help").stdout
    assert "'dice'" in refusal(hwsearch("search", "x.toml", "--sampler", "grid"))


def test_the_page_shows_these_very_files_and_registrations() -> None:
    blocks = dict(re.findall(r"<!-- (tests/extensions/\w+\.py) -->\n```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL))
    assert set(blocks) == {f"{place.partition(':')[0].replace('.', '/')}.py" for *_, place, _ in ADDED}
    for path, code in blocks.items():
        assert code == (PAGE.parents[1] / path).read_text()


def test_nothing_of_it_is_known_without_its_registration(tmp_path: Path) -> None:
    file = write_tiny(tmp_path / "tiny.toml", ("population = 8", 'sampler = "dice"'))
    message = refusal(hwsearch("search", file, "--runs-dir", tmp_path))
    assert "search.sampler is 'dice'; wanted 'posterior', 'random', 'nsga2', 'tpe', 'gp'" in message


def test_a_search_works_with_a_sampler_a_sensitivity_a_metric_a_target_and_an_export_format_that_were_added(
    added: None, tiny: Tiny, tmp_path: Path
) -> None:
    shutil.copytree(tiny.runs / "data", tmp_path / "runs" / "data")
    board = (BUILT_IN / "bitfusion.toml").read_text().replace('name = "bitfusion"', 'name = "board"')
    (tmp_path / "board.toml").write_text(board)
    changes = (
        ('name = "tiny"', 'name = "extended"'),
        ('priors = ["output-noise-ratio", "kl"]\ntrials = 60', 'priors = ["step"]\nsampler = "dice"\ntrials = 40'),
        ("population = 8", 'objectives = ["level_error_db", "size_bytes"]\ntargets = ["board.toml"]'),
    )
    file = write_tiny(tmp_path / "extended.toml", *changes)
    answer = hwsearch("search", file, "--runs-dir", tmp_path / "runs", "--workers", 0, "--processes", 1)
    assert answer.code == 0, answer.stderr
    folder = tmp_path / "runs" / "extended"
    events = read_events(folder)
    assert {"step", "dice"} <= {event["strategy"] for event in events}
    assert all(event["metrics"]["level_error_db"] >= 0 for event in events)
    assert any(name.endswith("[board]") for name in events[-1]["costs"])
    assert json.loads((folder / "sensitivity" / "step.json").read_text())["unit"] == "steps squared"

    front = json.loads(hwsearch("pareto", folder, "--format", "json").stdout)
    errors, sizes = ([row[column] for row in front] for column in ("level_error_db", "size_bytes"))
    assert sizes == sorted(sizes)
    assert errors == sorted(errors, reverse=True)

    exported = hwsearch(
        "export", folder, "--candidate", front[0]["candidate"], "--format", "listing", "--output", tmp_path / "out"
    )
    assert exported.code == 0, exported.stderr
    assert "weight [" in (tmp_path / "out" / "parameters.txt").read_text()
    assert json.loads((tmp_path / "out" / "verification.json").read_text())["listed"] is True


def test_a_corpus_that_was_added_is_read_and_dealt_to_splits(added: None, tmp_path: Path) -> None:
    speech = tmp_path / "speech"
    names = [f"{speaker}/{number}.wav" for speaker in "abcdef" for number in range(2)]
    for name in names:
        (speech / name).parent.mkdir(parents=True, exist_ok=True)
        sf.write(speech / name, np.zeros(800, np.float32), 8000)
    corpus = f'kind = "folders"\nroot = "{speech}"'
    options = "\nspeakers = 8\nutterances_per_speaker = 3\ndigit_strings = 0.5"
    experiment = load_experiment(write_tiny(tmp_path / "tiny.toml", (f'kind = "espeak"{options}', corpus)))
    found = read_corpora(experiment.data, experiment.seed, tmp_path / "cache").speech
    assert {one.id for split in Split for one in found[split]} == {f"folders:{name}" for name in names}
    speakers = [{one.speaker for one in found[split]} for split in (Split.VALIDATION, Split.TEST)]
    assert [len(names) for names in speakers] == [3, 3]
    assert not speakers[0] & speakers[1]
