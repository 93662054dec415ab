"""Experiment files: what may be written in them, what each key means for identity, and what is said of a wrong one."""

import codecs
import copy
import datetime as dt
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from hwsearch.errors import UserError
from hwsearch.experiment import (
    ConvTasNetConfig,
    Experiment,
    Fidelity,
    Section,
    SeparatorConfig,
    WorkersConfig,
    load_experiment,
    parse_experiment,
    with_search,
)
from hwsearch.search.identity import search_digest
from hwsearch.separator.base import EMBEDDED_BASE, load_base
from hwsearch.training.full_precision import training_digest
from hwsearch.view.experiment_reference import explain
from tests.tiny import tiny_content, write_tiny

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
SHIPPED = sorted(EXPERIMENTS.glob("*.toml"))

Place = tuple[str | int, ...]


def parsed(**sections: Any) -> Experiment:
    """The tiny experiment with sections put in their place."""
    return parse_experiment({**tiny_content(), **sections}, source="here")


@contextmanager
def refused(line: str, source: object = "here") -> Iterator[None]:
    """What runs inside is refused with this one line."""
    with pytest.raises(UserError) as error:
        yield
    assert str(error.value) == f"{source}: {line}"


def put(content: Any, place: Place, value: object) -> Any:
    """Content with a value put in at a place."""
    changed = copy.deepcopy(content)
    parent = changed
    for part in place[:-1]:
        parent = parent[part]
    parent[place[-1]] = value
    return changed


def leaves(content: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every value that is no section, with its place."""
    if isinstance(content, dict) and content:
        for key, value in content.items():
            yield from leaves(value, (*place, key))
    elif isinstance(content, list) and content and isinstance(content[0], dict):
        for index, value in enumerate(content):
            yield from leaves(value, (*place, index))
    else:
        yield place, content


def sections(section: Section, place: Place = ()) -> Iterator[Place]:
    """Where every section of an experiment is."""
    yield place
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from sections(value, (*place, name))
        elif isinstance(value, tuple) and value and isinstance(value[0], Section):
            for index, part in enumerate(value):
                yield from sections(part, (*place, name, index))


# What ships


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_experiment_loads_under_the_name_of_its_file(path: Path) -> None:
    assert load_experiment(path).name == path.stem.replace("_", "-")


def test_the_base_that_ships_fits_its_recipe_the_quickstart_and_the_default() -> None:
    _, description = load_base(EMBEDDED_BASE)
    quickstart, recipe = (load_experiment(EXPERIMENTS / name) for name in ("quickstart.toml", "embedded_base.toml"))
    assert quickstart.base == "embedded"
    assert (quickstart.data.sample_rate, quickstart.data.array) == (description.sample_rate, description.array)
    assert quickstart.separator == recipe.separator == SeparatorConfig() == description.separator
    assert description.made_by["experiment"] == recipe.name


# Defaults


def test_every_default_is_a_value_that_could_be_written() -> None:
    """Pydantic takes defaults as they are: reading them back as input holds them to their own ranges."""
    experiment = parsed()
    written = json.loads(json.dumps(experiment.model_dump(mode="json")))
    assert parse_experiment(written, source="here") == experiment


def test_every_default_is_stated_once() -> None:
    """A section left out is the section with nothing in it."""
    experiment = parsed()
    for name, field in Experiment.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel) and not field.is_required():
            wanted = field.annotation().model_dump()
            if name == "search":  # what the targets decide
                wanted["trunk_bits"] = wanted["activation_bits"]
            assert parsed(**{name: {}}).model_dump()[name] == wanted, name
    assert experiment.separator == parsed(separator={}).separator


# Mistakes


def test_an_unknown_key_is_refused_in_every_section() -> None:
    promoted = parsed(search={"promotions": [{"fidelity": "post-training", "keep": 3}]})
    places = list(sections(promoted))
    assert len(places) == 17
    for place in places:
        key = ".".join(map(str, (*place, "colour")))
        section = ".".join(part for part in place if isinstance(part, str))
        command = f"hwsearch explain {section}" if section else "hwsearch explain"
        with refused(f"unknown key '{key}'; '{command}' lists the keys"):
            parse_experiment(put(promoted.model_dump(mode="json"), (*place, "colour"), "red"), source="here")
        assert explain(section or None, markdown=False)


@pytest.mark.parametrize(
    ("place", "near"),
    [
        (("search", "trails"), "search.trials"),
        (("sead",), "seed"),
        (("search", "promotions", 0, "fidelty"), "search.promotions.0.fidelity"),
        (("data", "corpora", 0, "speaker"), "data.corpora.0.speakers"),
        (("data", "rooms", "t60_max"), "data.rooms.t60_max_s"),
    ],
)
def test_the_nearest_key_of_the_section_is_named(place: tuple[int | str, ...], near: str) -> None:
    whole = parsed(search={"promotions": [{"fidelity": "post-training", "keep": 3}]}).model_dump(mode="json")
    with pytest.raises(UserError, match=rf"unknown key '{'.'.join(map(str, place))}', near to '{near}'; 'hwsearch explain"):
        parse_experiment(put(whole, place, "red"), source="here")


@pytest.mark.parametrize(
    ("kind", "key", "near"),
    [
        ({"module": "net.py:build"}, "argument", "separator.arguments"),
        ({"module": "net.py:build"}, "causal", None),  # a key of the networks that ship
        ({"module": "net.py:build", "spectral": {"hop_lenth": 1}}, "spectral.hop_lenth", "separator.spectral.hop_length"),
        ({"network": "conv-tasnet"}, "norms", "separator.norm"),
        ({"network": "conv-tasnet"}, "n_fft", None),
        ({}, "modul", "separator.module"),
    ],
)
def test_the_nearest_key_of_a_network_is_one_of_its_own(kind: dict[str, object], key: str, near: str | None) -> None:
    meant = "" if near is None else f", near to '{near}'"
    section = "separator.spectral" if "." in key else "separator"
    with refused(f"unknown key 'separator.{key}'{meant}; 'hwsearch explain {section}' lists the keys"):
        parsed(separator=kind if "." in key else {**kind, key: 1})


def test_a_value_of_another_kind_is_refused_at_every_key() -> None:
    whole = parsed().model_dump(mode="json")
    whole["data"]["mixtures"]["noise_snr_db"] = 30.0
    whole["search"]["fixed"] = {"mask_head.output": 8}
    for place, value in leaves(whole):
        if value is None:
            continue
        with pytest.raises(UserError, match=rf"^here: {'.'.join(map(str, place))}\b.+\Z"):
            parse_experiment(put(whole, place, {"a": [["list"]]}), source="here")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("name",), "Two words"),
        (("name",), "../up"),
        (("name",), "data"),
        (("name",), "corpora"),
        (("seed",), -1),
        (("data", "sample_rate"), 44100),
        (("data", "array"), "cube"),
        (("data", "corpora"), []),
        (("data", "corpora", 0, "splits"), {}),
        (("data", "corpora", 0, "splits"), {"test": 0.6, "train": 0.5}),
        (("data", "corpora", 0, "splits", "dev"), 0.1),
        (("data", "corpora", 0, "speakers"), 2),
        (("data", "corpora", 0, "kind"), "timit"),
        (("data", "rooms", "t60_max_s"), 0.04),
        (("data", "rooms", "t60_min_s"), 0.2),
        (("data", "rooms", "size_min_m"), [7.0, 4.0, 2.5]),
        (("data", "rooms", "distance_min_m"), 3.0),
        (("data", "rooms", "sources_per_room"), 1),
        (("data", "mixtures", "seconds"), 0.4),
        (("data", "mixtures", "overlap_min"), 1.5),
        (("data", "mixtures", "sir_mean_db"), float("nan")),
        (("separator", "hop_length"), 100),
        (("separator", "hop_length"), 512),
        (("separator", "P"), 4),
        (("training", "gradient_clip"), float("inf")),
        (("training", "speeds"), []),
        (("search", "weight_bits"), [8, 4]),
        (("search", "weight_bits"), [4, 4]),
        (("search", "activation_bits"), [2]),
        (("search", "sampler"), "grid"),
        (("search", "strategy"), "luck"),
        (("search", "priors"), ["kl", "kl"]),
        (("search", "priors"), ["hessian"]),
        (("search", "seed_sizes"), 7),
        (("search", "objectives"), ["si_snr_improvement_db"]),
        (("search", "objectives"), ["size_bytes", "si_snr_improvement_db"]),
        (("search", "objectives"), ["si_snr_improvement_db", "size_bytes", "size_bytes"]),
        (("search", "objectives"), ["si_snr_improvement_db", "a", "b", "c", "d"]),
        (("search", "limits"), {"size_bytes": "small"}),
        (("search", "limits"), {"size_bytes": float("nan")}),
        (("search", "allowed"), {"mask_head.output": []}),
        (("search", "allowed"), {"mask_head.output": [8, 4]}),
        (("search", "groups"), ["mask_head.output"]),
        (("search", "structure"), {"*.kept": 0.5}),
        (("search", "structure"), {"*.channels": [0.5, 0.25]}),
        (("search", "structure"), {"*.channels": [0.5, 0.5]}),
        (("search", "promotions"), [{"fidelity": "post-training-subset", "keep": 3}]),
        (("search", "promotions"), [{"fidelity": "short-qat", "keep": 0}]),
        (("search", "promotions"), [{"fidelity": "full-qat", "keep": 3}, {"fidelity": "short-qat", "keep": 3}]),
        (("search", "promotions"), [{"fidelity": "short-qat", "keep": 3}, {"fidelity": "short-qat", "keep": 2}]),
        (("sensitivity", "mixtures"), 0),
        (("sensitivity", "probe"), "sine"),
        (("sensitivity", "relative_error"), 0.0),
        (("qat", "steps"), 0),
        (("qat", "learning_rate"), 0.0),
        (("qat", "distillation"), 1.5),
        (("nas", "cost_weights"), []),
        (("nas", "temperature"), [1.0]),
        (("nas", "relaxation"), "hard"),
        (("export", "max_drop_db"), -0.1),
        (("evaluation", "angle_bins_deg"), [0, 90, 45]),
        (("evaluation", "angle_bins_deg"), [0, 200]),
        (("evaluation", "angle_bins_deg"), [0]),
        (("evaluation", "recogniser"), "whisper"),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_key(place: Place, value: object) -> None:
    section = place if len(place) == 1 else place[:-1]
    with pytest.raises(UserError, match=rf"^here: {'.'.join(map(str, section))}\b.+\Z"):
        parse_experiment(put(parsed().model_dump(mode="json"), place, value), source="here")


def test_a_key_that_is_wanted_is_named() -> None:
    for place in (("name",), ("data",), ("data", "rooms"), ("data", "rooms", "count"), ("data", "corpora", 0, "kind")):
        content = parsed().model_dump(mode="json")
        parent = content
        for part in place[:-1]:
            parent = parent[part]
        del parent[place[-1]]
        with pytest.raises(UserError, match=f"here: {'.'.join(map(str, place))} is missing; wanted a value"):
            parse_experiment(content, source="here")


def test_a_file_that_is_no_experiment_is_refused(tmp_path: Path) -> None:
    (tmp_path / "syntax.toml").write_text("name = ")
    (tmp_path / "bytes.toml").write_bytes(b"\xff")
    (tmp_path / "deep.toml").write_text("name = " + "[" * 10_000)
    (tmp_path / "long.toml").write_text("seed = " + "9" * 10_000)
    (tmp_path / "dotted.toml").write_text("a" + ".a" * 20_000 + " = 1")
    (tmp_path / "large.toml").write_text("# " + "x" * 2**20)
    (tmp_path / "loop.toml").symlink_to("loop.toml")
    os.mkfifo(tmp_path / "pipe.toml")
    for name, found in (
        ("syntax.toml", "not valid TOML (Invalid value (at end of document))"),
        ("bytes.toml", "not UTF-8 text (invalid start byte at byte 0)"),
        ("deep.toml", "not valid TOML (nested too deep)"),
        ("long.toml", "not valid TOML (a number of too many digits)"),
        ("dotted.toml", "not valid TOML (a key of more than 64 parts)"),
        ("large.toml", "larger than 1 MiB"),
        ("loop.toml", "cannot be read (Too many levels of symbolic links)"),
        ("pipe.toml", "is a pipe"),
        ("syntax.toml/x", "cannot be read (Not a directory)"),
        ("absent.toml", "no such file"),
        ("", "is a folder"),
        ("/dev/zero", "is a device"),
    ):
        with refused(f"{found}; wanted an experiment file in TOML", source=tmp_path / name):
            load_experiment(tmp_path / name)


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path: Path) -> None:
    write_tiny(tmp_path / "tiny.toml")
    (tmp_path / "marked.toml").write_bytes(codecs.BOM_UTF8 + (tmp_path / "tiny.toml").read_bytes())
    assert load_experiment(tmp_path / "marked.toml") == load_experiment(tmp_path / "tiny.toml")


@pytest.mark.parametrize(
    ("place", "value", "line"),
    [
        (("search", "trials"), True, "search.trials is true; wanted a whole number"),
        (("search", "trials"), "100", "search.trials is '100'; wanted a whole number"),
        (("search", "trials"), 100.0, "search.trials is 100.0; wanted a whole number"),
        (("search", "trials"), 0, "search.trials is 0; wanted at least 1"),
        (("search", "trials"), 10**7, "search.trials is 10000000; wanted at most 1000000"),
        (("search", "hours"), "8", "search.hours is '8'; wanted a number"),
        (("search", "hours"), 0, "search.hours is 0; wanted more than 0"),
        (("search", "nas"), 1, "search.nas is 1; wanted true or false"),
        (("search", "nas"), "yes", "search.nas is 'yes'; wanted true or false"),
        (("search", "weight_bits"), [True, 8], "search.weight_bits.0 is true; wanted one of 2, 3, 4, 5, 6, 7, 8, 16 or 32"),
        (("search", "weight_bits"), [], "search.weight_bits is []; wanted at least 1 entry"),
        (("search", "priors"), "kl", "search.priors is 'kl'; wanted a list"),
        (("search", "limits"), {"size_bytes": False}, "search.limits.size_bytes is false; wanted a number"),
        (("search", "structure"), {"*.kept": []}, "search.structure.*.kept is []; wanted at least 1 entry"),
        (("search", "structure"), {"*.kept": [0, 1.5]}, "search.structure.*.kept.1 is 1.5; wanted at most 1"),
        (("search", "structure"), {"*.kept": [-0.5]}, "search.structure.*.kept.0 is -0.5; wanted at least 0"),
        (("search", "structure"), {"*.kept": [1, 0]}, "search: structure of '*.kept' [1.0, 0.0] must rise without repeats"),
        (("search", "targets"), [8], "search.targets.0 is 8; wanted text"),
        (("search", "utterance_seconds"), float("inf"), "search.utterance_seconds is inf; wanted a finite number"),
        (("search", "promotions"), [3], "search.promotions.0 is 3; wanted a table of keys and values"),
        (("seed",), 2**31, "seed is 2147483648; wanted less than 2147483648"),
        (("base",), {}, "base is a table of keys and values; wanted text"),
        (("name",), "x" * 65, f"name is '{'x' * 65}'; wanted at most 64 characters"),
        (("name",), "", "name is ''; wanted text that matches ^[a-z0-9][a-z0-9_-]*$"),
        (("name",), "\x1b[31m", r"name is '\x1b[31m'; wanted text that matches ^[a-z0-9][a-z0-9_-]*$"),
        (("base",), "\ud800", "holds text, or lies in a folder, whose name is not UTF-8; wanted UTF-8"),
        (("base",), dt.date(2026, 1, 2), "holds the date or time 2026-01-02; no key takes one"),
        (("data", "corpora", 0, "root"), 3, "data.corpora.0.root is 3; wanted text"),
        (("data", "corpora", 0, "speakers"), 8.5, "data.corpora.0.speakers is 8.5; wanted a whole number"),
        (("data", "rooms", "size_max_m"), [6.0, 5.0], "data.rooms.size_max_m.2 is missing; wanted a value"),
        (("data", "rooms", "size_max_m"), [6.0, 5, 3, 1], "data.rooms.size_max_m is [6.0, 5, 3, 1]; wanted at most 3 entries"),
        (
            ("data", "rooms", "count"),
            {"dev\n": 3},
            "data.rooms.count.dev\\n is 'dev\\n'; wanted one of 'train', 'validation' or 'test'",
        ),
    ],
)
def test_a_mistake_is_told_in_plain_words(place: Place, value: object, line: str) -> None:
    with refused(line):
        parse_experiment(put(tiny_content(), place, value), source="here")


def test_a_whole_number_stands_for_any_number() -> None:
    assert parsed(search={"hours": 8}).search.hours == 8.0


def test_other_mistakes_are_counted() -> None:
    """A list of one wrong entry is not too short as well."""
    content = put(put(tiny_content(), ("seed",), -1), ("data", "corpora", 0, "speakers"), 2)
    with refused("seed is -1; wanted at least 0 (2 more)"):
        parse_experiment(put(content, ("colour",), "red"), source="here")


# Paths and identity


def test_paths_are_relative_to_the_file_wherever_it_is_read_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_tiny(
        tmp_path / "here" / "tiny.toml",
        ('base = "embedded"', 'base = "../base.safetensors"'),
        ('kind = "espeak"', 'kind = "csv"\nroot = "speech/all.csv"'),
        ("population = 8", 'targets = ["bitfusion", "chips/mine.toml"]'),
    )
    monkeypatch.chdir(tmp_path)
    experiment = load_experiment(Path("here") / "tiny.toml")
    assert experiment == load_experiment(file)
    assert Path(experiment.base or "").resolve() == tmp_path / "base.safetensors"
    assert experiment.data.corpora[0].root == tmp_path / "here" / "speech" / "all.csv"
    assert experiment.search.targets == ("bitfusion", str(tmp_path / "here" / "chips" / "mine.toml"))


def changed_digests(place: Place, value: object) -> tuple[bool, bool]:
    """Whether a changed value changes the digest of the data, and that of the experiment."""
    whole = parsed().model_dump(mode="json")
    whole["data"]["corpora"][0] |= {"kind": "csv", "root": "one.csv"}
    before, after = parse_experiment(whole, "here"), parse_experiment(put(whole, place, value), "here")
    return before.data_digest() != after.data_digest(), before.digest() != after.digest()


def test_data_depend_on_their_section_and_the_seed_alone() -> None:
    for place, value in (
        (("seed",), 9),
        (("data", "array"), "circular6"),
        (("data", "corpora", 0, "splits", "test"), 0.4),
        (("data", "rooms", "t60_max_s"), 0.5),
        (("data", "mixtures", "seconds"), 2.0),
    ):
        assert changed_digests(place, value) == (True, True), place
    for place, value in (
        (("name",), "other"),
        (("separator", "B"), 32),
        (("search", "trials"), 5),
        (("search", "sampler"), "random"),
        (("sensitivity", "mixtures"), 2),
        (("qat", "steps"), 7),
        (("evaluation", "recogniser"), "none"),
    ):
        assert changed_digests(place, value) == (False, True), place


def test_where_files_lie_is_no_part_of_an_experiments_identity() -> None:
    assert changed_digests(("data", "corpora", 0, "root"), "elsewhere/one.csv") == (False, False)
    assert changed_digests(("base",), "elsewhere.safetensors") == (False, False)


def test_the_default_activation_of_conv_tasnet_is_no_part_of_its_identity() -> None:
    """Bases and searches of before there was a choice keep their digests."""
    given = ConvTasNetConfig(network="conv-tasnet")
    before = {name: value for name, value in given if name != "activation"}
    assert given.model_dump(mode="json") == before
    assert given.model_copy(update={"activation": "relu"}).model_dump(mode="json") == {**before, "activation": "relu"}


def test_an_experiment_is_a_value() -> None:
    assert parsed() == parsed()
    assert parsed().digest() == parsed().digest()
    with pytest.raises(ValueError, match="frozen"):
        parsed().seed = 4  # type: ignore[misc]


def test_keys_of_the_search_may_be_replaced() -> None:
    experiment = parsed()
    changed = with_search(experiment, {"strategy": "kl", "sampler": "random"})
    assert (changed.search.strategy, changed.search.sampler) == ("kl", "random")
    assert with_search(changed, {"strategy": "prior-corrected", "sampler": "posterior"}) == experiment
    assert with_search(experiment, {}) == experiment
    with pytest.raises(UserError, match=r"command line: search\.sampler is 'grid'"):
        with_search(experiment, {"sampler": "grid"})


def test_fidelities_rise_from_cheap_to_dear_and_the_last_ones_train() -> None:
    assert [fidelity.trained for fidelity in Fidelity] == [False, False, False, False, True, True, True]


def test_integer_kernels_are_the_processors() -> None:
    with refused(
        "search.integer_kernels is true, and they are the processor's; workers.device is 'cuda': wanted false, or 'cpu'"
    ):
        parsed(workers={"device": "cuda"}, search={"integer_kernels": True})
    assert parsed(workers={"device": "cuda"}).workers.device == "cuda"
    assert parsed(search={"integer_kernels": True}).search.integer_kernels


def test_the_device_of_training_alone_is_no_key_any_more() -> None:
    with pytest.raises(UserError, match=r"here: unknown key 'training\.device'; wanted 'workers\.device'"):
        parsed(training={"device": "cpu"})


def test_no_result_is_bound_to_where_it_was_computed() -> None:
    here, there = parsed(), parsed(workers={"device": "cuda", "gpus": 0.5})
    for identity in (search_digest, training_digest, Experiment.data_digest):
        assert identity(here) == identity(there)


def test_a_worker_of_one_core_keeps_the_device_and_its_share() -> None:
    each = {"cpus": 4, "memory_bytes": 10**9, "time_limit_s": 5}
    assert WorkersConfig.model_validate({**each, "gpus": 1}).one_core == WorkersConfig()
    wanted = WorkersConfig(device="cuda", gpus=0.5)
    assert WorkersConfig.model_validate({**each, "device": "cuda", "gpus": 0.5}).one_core == wanted


@pytest.mark.parametrize(("cpus", "threads"), [(0.25, 1), (1, 1), (4, 4)])
def test_a_scorer_has_a_thread_for_every_whole_core(cpus: float, threads: int) -> None:
    assert WorkersConfig(cpus=cpus).threads == threads


@pytest.mark.parametrize(
    "content", [{"cpus": 0}, {"cpus": 1.5}, {"gpus": 1.5}, {"gpus": -1}, {"time_limit_s": 0}, {"memory_bytes": 0}]
)
def test_workers_get_whole_things_or_a_share_of_one(content: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        WorkersConfig.model_validate(content)
