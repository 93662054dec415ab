"""The reference of the experiment file: every key is in it, with what the models say of it."""

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from hwsearch.experiment import Experiment
from hwsearch.view.experiment_reference import explain, sections
from tests.tiny import hwsearch, refusal

PAGE = Path(__file__).parents[1] / "experiments" / "REFERENCE.md"

WIDTH = 80


def models_in(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in models_in(part)]


def fields(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, Any]]:
    """Every key that holds a plain value, with its field: read from the models, not from their schema."""
    for name, field in model.model_fields.items():
        inner = models_in(field.annotation)
        for found in inner:
            yield from fields(found, f"{path}{name}.")
        if not inner or name == "array":  # a name, or a table of positions
            yield path + name, field


FIELDS = list(fields(Experiment))
ENTRIES = [key for section in sections() for key in section.keys]


def test_every_key_of_the_models_is_in_the_reference_and_no_other() -> None:
    assert sorted(key.path for key in ENTRIES) == sorted(path for path, _ in FIELDS)
    assert len(ENTRIES) > 130


def test_every_key_and_section_says_what_it_is_in_whole_sentences() -> None:
    for place, meaning in [(key.path, key.meaning) for key in ENTRIES] + [(part.heading, part.meaning) for part in sections()]:
        assert re.match(r"[A-Z`]", meaning), place
        assert re.search(r"\.$", meaning), place
        assert not meaning.startswith("Of "), place
        for path in re.findall(r"`((?:search|nas|qat|workers)\.\w+)`", meaning):
            assert path in dict(FIELDS), f"{place} speaks of {path}"


def test_docstrings_of_keys_are_read_by_the_reference_alone() -> None:
    """Pydantic would parse the source of every section whenever an experiment file is read."""
    assert {field.description for _, field in FIELDS} == {None}


def test_every_default_stated_is_that_of_the_model_written_in_toml() -> None:
    stated = [(key.path, key.takes.rpartition("; ")[2]) for key in ENTRIES]
    for path, default in stated:
        of_path = [field for name, field in FIELDS if name == path]
        if default == "required":
            assert any(field.is_required() for field in of_path), path
        elif default == "optional":
            assert any(field.get_default(call_default_factory=True) in (None, {}) for field in of_path), path
        else:
            value = tomllib.loads(f"value = {default.removeprefix('default `').removesuffix('`')}")["value"]
            wanted = [json.loads(json.dumps(field.default)) for field in of_path if not field.is_required()]
            assert value in wanted, path
    assert {"required", "optional", "default `64`"} <= {default for _, default in stated}


@pytest.mark.parametrize(
    ("key", "takes"),
    [
        ("search.trials", "whole number from 1 to 1000000; default `64`"),
        ("seed", "whole number at least 0 and below 2147483648; default `0`"),
        ("qat.learning_rate", "number above 0 and at most 1; default `0.0001`"),
        ("separator.L", "whole number from 4 to 256 in steps of 2; default `16`"),
        ("data.rooms.size_min_m", "list of 3 values, each: number from 1 to 100; default `[4.0, 4.0, 2.5]`"),
        ("data.corpora.splits", 'table from `"train"`, `"validation"`, `"test"` to number from 0 to 1; required'),
        ("data.corpora.root", "path; optional"),
        ("search.promotions.fidelity", 'one of `"post-training"`, `"shared"`, `"short-qat"`, `"full-qat"`; required'),
    ],
)
def test_type_range_and_default_are_said_in_plain_words(key: str, takes: str) -> None:
    assert [entry.takes for entry in ENTRIES if entry.path == key] == [takes]


def test_the_page_is_what_the_models_say() -> None:
    """`hwsearch explain --format markdown > experiments/REFERENCE.md` writes it anew."""
    assert PAGE.read_text("utf-8") == explain(None, markdown=True)


# The command


def test_a_key_is_explained_with_type_range_default_and_meaning() -> None:
    takes, meaning = "whole number from 8 to 1000; default `8`", "Number of sizes at which each prior's exact front is scored."
    key = "search.seed_sizes"
    assert hwsearch("explain", key).stdout == f"{key}\n  {takes}\n    {meaning}\n"
    assert hwsearch("explain", key, "--format", "markdown").stdout == f"- `{key}`: {takes}. {meaning}\n"


def test_a_key_of_several_networks_is_explained_for_each() -> None:
    said = hwsearch("explain", "separator.B").stdout
    assert 'separator.B with `network = "tcn"`\n' in said
    assert 'separator.B with `network = "conv-tasnet"`\n' in said


def test_the_path_of_a_message_about_an_entry_of_a_list_is_taken() -> None:
    assert hwsearch("explain", "search.promotions.0.keep") == hwsearch("explain", "search.promotions.keep")


def test_a_section_is_explained_with_all_its_keys() -> None:
    said = hwsearch("explain", "search").stdout.splitlines()
    assert said[0] == "`[search]`"
    keys = [path for path, _ in FIELDS if path.startswith("search.") and path.count(".") == 1]
    assert [line for line in said if line and not line.startswith((" ", "`"))] == keys


def test_without_a_key_all_sections_are_listed() -> None:
    said = hwsearch("explain").stdout.splitlines()
    assert [line for line in said if line.startswith("`[")] == [section.heading for section in sections() if section.path]


def test_what_is_printed_fits_80_columns() -> None:
    for key in (None, *(section.path for section in sections() if section.path)):
        for line in explain(key, markdown=False).splitlines():
            assert len(line) <= WIDTH or len(line.split()) == 1, line


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("search.trails", "search.trials"),
        ("serch", "search"),
        ("promotions.keep", "search.promotions.keep"),
        ("trials", "search.trials"),
        ("separator.hop_len", "separator.hop_length"),
    ],
)
def test_a_wrong_key_is_refused_in_a_line_that_names_the_nearest_one(wrong: str, near: str) -> None:
    assert refusal(hwsearch("explain", wrong)) == f"an experiment file has no key '{wrong}'; the nearest is '{near}'"


def test_no_key_at_all_is_refused_too() -> None:
    for empty in ("", ".", "0", "search..trials"):
        assert refusal(hwsearch("explain", empty)).startswith(f"an experiment file has no key '{empty}'")
