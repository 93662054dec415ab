"""The steps of the main job: what may go on in a run folder, what is chosen, and what is refused before hours are spent."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwsearch.errors import UserError
from hwsearch.experiment import Split, parse_experiment
from hwsearch.files.reading import file_digest
from hwsearch.results.candidates import read_candidates
from hwsearch.search.record import RECORD_FILE, FolderLock, lock_holder
from hwsearch.separator.allocation import BitAllocation
from hwsearch.separator.base import EMBEDDED_BASE, load_base, save_base
from hwsearch.separator.configuration import Configuration
from hwsearch.training.full_precision import training_digest
from hwsearch.workflow import search as searching
from hwsearch.workflow.caller import Resources
from hwsearch.workflow.checks import check, check_provenance, claim, provenance
from hwsearch.workflow.choose import choose
from hwsearch.workflow.evaluate import candidate_system, float_system
from hwsearch.workflow.runs import open_workspace, read_run
from hwsearch.workflow.training import load_float_base, needs_training, prepare
from hwsearch.workspace import Workspace, open_run
from tests.results.tables import make_table
from tests.sealed import edit_lines
from tests.tiny import Tiny, tiny_content


def workspace(runs: Path, **changes: Any) -> Workspace:
    """Of the tiny experiment with sections put in their place, or keys of its search changed."""
    content = tiny_content()
    search = {**content["search"], **changes.pop("search", {})}
    return Workspace(runs, parse_experiment({**content, **changes, "search": search}, source="here"))


# The run folder


def test_until_a_search_has_begun_the_folder_follows_the_file(tmp_path: Path) -> None:
    for seed in (1, 2):
        claim(workspace(tmp_path, seed=seed))
        assert open_run(tmp_path / "tiny").seed == seed


@pytest.mark.parametrize("left", [b"", b'{"event":"header","schema_ver'])
def test_a_header_that_a_kill_tore_is_no_search_that_has_begun(tmp_path: Path, left: bytes) -> None:
    claim(workspace(tmp_path))
    (tmp_path / "tiny" / RECORD_FILE).write_bytes(left)
    for seed in (1, 2):
        claim(workspace(tmp_path, seed=seed))
        assert open_run(tmp_path / "tiny").seed == seed


def test_a_driver_that_searches_keeps_the_budgets_it_was_given(copied: Tiny) -> None:
    begun, other = workspace(copied.runs), workspace(copied.runs, search={"trials": 500})
    with FolderLock(copied.folder):
        check(begun, may_train=False)
        with pytest.raises(UserError, match=rf"process {os.getpid()} is searching here"):
            check(other, may_train=False)
    assert open_run(copied.folder) == begun.experiment


def test_the_record_says_whose_folder_it_is(copied: Tiny) -> None:
    """Not what another command has said there before the record was begun."""
    ours, other = workspace(copied.runs), workspace(copied.runs, seed=99)
    other.describe()
    with pytest.raises(UserError, match="holds the search of an experiment 'tiny' that differs"):
        claim(other)
    claim(ours)
    assert open_run(copied.folder) == ours.experiment


def test_a_folder_of_another_experiment_says_whose_it_is(copied: Tiny) -> None:
    copied.folder.rename(copied.runs / "renamed")
    with pytest.raises(UserError, match=r"renamed: holds the search of the experiment 'tiny'; wanted the same content, another"):
        claim(workspace(copied.runs, name="renamed"))


@pytest.mark.parametrize("place", ["runs", "runs/tiny"])
def test_a_file_in_the_place_of_the_run_folder_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).touch()
    with pytest.raises(UserError, match=rf"{place}: is a file; wanted a folder for the run: another name, or another --runs-dir"):
        check(workspace(tmp_path / "runs"), may_train=False)


def test_a_search_holds_its_folder_from_its_first_step_on(copied: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that estimate sensitivities at once would spend hours twice, before one of them is refused."""
    held = []

    def stop(given: Workspace, _: Sequence[int]) -> None:
        held.append(lock_holder(given.folder))
        raise UserError("enough")

    monkeypatch.setattr(searching, "prepare", stop)
    for _ in range(2):
        with pytest.raises(UserError, match=r"^enough$"):
            searching.search(workspace(copied.runs), Resources(1, 0))
    assert [holder is not None and holder.process for holder in held] == [str(os.getpid())] * 2
    with FolderLock(copied.folder), pytest.raises(UserError, match="is searching here"):
        searching.search(workspace(copied.runs), Resources(1, 0))


def test_what_no_candidate_depends_on_may_change_while_a_search_goes_on(copied: Tiny) -> None:
    for changes in (
        {"search": {"trials": 500}},
        {"search": {"max_attempts": 1}},
        {"search": {"promotions": [{"fidelity": "post-training", "keep": 3}]}},
        {"export": {"max_drop_db": 3.0}},
        {"evaluation": {"recogniser": "none"}},
    ):
        changed = workspace(copied.runs, **changes)
        claim(changed)
        assert open_run(copied.folder) == changed.experiment


def test_what_candidates_depend_on_may_not(copied: Tiny) -> None:
    data = tiny_content()["data"]
    for changes in (
        {"seed": 4},
        {"search": {"population": 9}},
        {"search": {"sampler": "random"}},
        {"search": {"strategy": "kl"}},
        {"search": {"priors": ["kl", "output-noise-ratio"]}},
        {"search": {"limits": {"size_bytes": 1e6}}},
        {"sensitivity": {"mixtures": 2}},
        {"qat": {"steps": 7}},
        {"search": {"weight_bits": [4, 8]}},
        {"search": {"utterance_seconds": 2.0}},
        {"search": {"targets": ["bitfusion"]}},
        {"quantization": {"weight_scale": "per_tensor"}},
        {"data": {**data, "mixtures": {**data["mixtures"], "seconds": 1.4}}},
    ):
        with pytest.raises(UserError, match=r"wanted .*another --runs-dir"):
            claim(workspace(copied.runs, **changes))
    assert open_run(copied.folder) == workspace(copied.runs).experiment


def test_a_run_is_opened_by_its_folder_alone(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_workspace(tiny.folder) == Workspace(tiny.runs, tiny.workspace.experiment)
    monkeypatch.chdir(tiny.folder)
    assert open_workspace(Path("../tiny")).folder.resolve() == tiny.folder
    assert len(read_run(tiny.folder).table) == len(tiny.events()) - 1


def test_a_candidates_allocation_is_that_of_the_record(tiny: Tiny) -> None:
    run = read_run(tiny.folder)
    for event in tiny.events()[1:]:
        assert run.configuration(event["candidate"]) == Configuration.of(event["allocation"])
    with pytest.raises(UserError, match="no candidate 0"):
        run.row(0)


def test_a_candidate_that_failed_is_refused_with_its_reason(copied: Tiny) -> None:
    path = copied.folder / RECORD_FILE
    last = copied.events()[-1]
    kept = ("candidate", "strategy", "fidelity", "seconds", "worker", "attempts", "time")
    failed = {"event": "failed", "reason": "no sound", **{name: last[name] for name in kept}}
    edit_lines(path, lambda lines: [*lines[:-1], json.dumps(failed).encode()])
    with pytest.raises(UserError, match=rf"candidate {last['candidate']} failed \(no sound\); wanted one that was scored"):
        read_run(copied.folder).configuration(last["candidate"])


# Checks before the work


def test_an_experiment_that_can_be_searched_passes_without_any_data(tmp_path: Path) -> None:
    check(workspace(tmp_path), may_train=False)
    assert [path.name for path in tmp_path.rglob("*")] == ["tiny", "experiment.json"]


@pytest.mark.parametrize("may_train", [True, False])
def test_an_experiment_that_cannot_be_searched_leaves_no_trace(tmp_path: Path, may_train: bool) -> None:
    data = tiny_content()["data"]
    for changes, reason in (
        ({"search": {"fixed": {"blocks.77.*": 8}}}, "blocks.77"),
        ({"search": {"targets": ["abacus"]}}, "abacus"),
        ({"search": {"limits": {"size_bytes": 1000.0}}}, "limit size_bytes <= 1000 cannot be met"),
        ({"search": {"objectives": ["si_snr_improvement_db", "latency_ms[abacus]"]}}, r"no cost 'latency_ms\[abacus\]'"),
        ({"search": {"groups": [["blocks.77.*"]]}}, r"search\.groups: pattern 'blocks\.77"),
        ({"search": {"promotions": [{"fidelity": "short-qat", "keep": 3}]}}, "fidelity 'short-qat' trains, wanted rooms"),
        ({"base": str(tmp_path / "absent")}, "no base there"),
        ({"separator": {"B": 32}}, "separator.B"),
        ({"data": {**data, "mixtures": {"count": {"test": 3}}}}, "validation"),
    ):
        with pytest.raises(UserError, match=reason):
            check(workspace(tmp_path, **changes), may_train=may_train)
    assert not list(tmp_path.iterdir())


def save_trained(at: Workspace, digest: str) -> None:
    """The embedded base as if it had been trained in a run folder."""
    separator, description = load_base(EMBEDDED_BASE)
    made_by = {**description.made_by, "training_digest": digest}
    save_base(at.base_path, separator, description.model_copy(update={"made_by": made_by}))


def test_a_base_is_trained_where_none_is_named_and_none_is_there(tmp_path: Path) -> None:
    content = tiny_content()["data"]
    content["corpora"][0]["splits"] = {"train": 0.4, "validation": 0.3, "test": 0.3}
    content["rooms"]["count"]["train"] = 2
    own = workspace(tmp_path, base=None, data=content)
    assert needs_training(own)
    assert not needs_training(workspace(tmp_path))
    check(own, may_train=True)
    with pytest.raises(UserError, match="run 'hwsearch train'"):
        check(own, may_train=False)
    with pytest.raises(UserError, match="training wants rooms to train and to validate in"):
        check(workspace(tmp_path, base=None), may_train=True)
    save_trained(own, training_digest(own.experiment))
    assert not needs_training(own)
    check(own, may_train=False)


def test_a_base_trained_with_other_settings_is_refused(tmp_path: Path) -> None:
    own, other = workspace(tmp_path, base=None), workspace(tmp_path, base=None, training={"epochs": 3})
    save_trained(own, training_digest(own.experiment))
    load_float_base(workspace(tmp_path, base=None, search={"trials": 7}))
    with pytest.raises(UserError, match="whose data, separator or training differ"):
        load_float_base(other)


# The choice


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 9)), min_size=1, max_size=12), st.integers(0, 8))
def test_the_smallest_near_full_precision_is_chosen_else_the_best(pairs: list[tuple[int, int]], limit: int) -> None:
    quality, size = ([float(pair[side]) for pair in pairs] for side in (0, 1))
    number = choose(make_table(quality, size, drop_db=[10 - value for value in quality]), float(limit), {})
    chosen = pairs[number - 1]
    near = [pair for pair in pairs if 10 - pair[0] <= limit]
    if near:
        smallest = min(pair[1] for pair in near)
        assert chosen == max(pair for pair in near if pair[1] == smallest)
    else:
        best = max(pair[0] for pair in pairs)
        assert chosen == (best, min(pair[1] for pair in pairs if pair[0] == best))


def test_what_is_chosen_is_within_the_limits() -> None:
    table = make_table([5.0, 8.0, 9.9], [1.0, 2.0, 3.0], drop_db=[5.0, 2.0, 0.1])
    assert choose(table, 0.5, {}) == 3
    assert choose(table, 0.5, {"size_bytes": 2.5}) == 2
    with pytest.raises(UserError, match=r"none of 3 candidates is within search.limits \(size_bytes <= 0.5\)"):
        choose(table, 0.5, {"size_bytes": 0.5})


def test_nothing_is_chosen_where_nothing_is_scored(copied: Tiny) -> None:
    path = copied.folder / RECORD_FILE
    path.write_text("\n".join(path.read_text().splitlines()[:3]) + "\n")
    with pytest.raises(UserError, match="scored no candidate"):
        choose(read_candidates(copied.folder), 0.5, {})


# What candidates depend on


def test_provenance_is_the_hashes_of_base_data_and_targets(tiny: Tiny) -> None:
    found = provenance(tiny.workspace)
    assert found["base_sha256"] == file_digest(EMBEDDED_BASE)
    assert found["validation_sha256"] == file_digest(tiny.workspace.data_folder / "validation" / "manifest.jsonl")
    assert {name for name in found if name.startswith("target[")} == {
        "target[bitfusion]",
        "target[cortex-m7-cmsis-nn]",
        "target[ethos-u55-128]",
        "target[x86-onnxruntime]",
    }
    check_provenance(tiny.workspace)


def test_data_or_a_base_that_changed_since_the_search_are_refused(copied: Tiny) -> None:
    manifest = copied.workspace.data_folder / "validation" / "manifest.jsonl"
    whole = manifest.read_text()
    manifest.write_text(whole.splitlines()[0] + "\n")
    with pytest.raises(UserError, match=f"{copied.workspace.data_folder}: changed since the search"):
        check_provenance(copied.workspace)
    manifest.write_text(whole)
    separator, description = load_base(EMBEDDED_BASE)
    save_base(copied.runs / "base.safetensors", separator, description.model_copy(update={"made_by": {}}))
    other = workspace(copied.runs, base=str(copied.runs / "base.safetensors"))
    with pytest.raises(UserError, match=r"base\.safetensors: changed since the search"):
        check_provenance(other)
    with pytest.raises(UserError, match="scored with another experiment"):
        check_provenance(workspace(copied.runs, seed=4))


# Systems


def test_a_candidate_at_full_precision_sounds_like_the_base(tiny: Tiny) -> None:
    base = float_system(load_float_base(tiny.workspace))
    full = candidate_system(prepare(tiny.workspace), BitAllocation.of(tiny.events()[0]["allocation"]))
    coarse = candidate_system(prepare(tiny.workspace), BitAllocation.of(tiny.events()[1]["allocation"]))
    for mixture, sound, target in tiny.mixtures(Split.TEST):
        wanted = base(sound, mixture.target.doa_deg)
        assert wanted.shape == target.shape
        np.testing.assert_allclose(full(sound, mixture.target.doa_deg), wanted, atol=1e-5)
        assert np.abs(coarse(sound, mixture.target.doa_deg) - wanted).max() > 1e-3


def test_a_run_folder_may_move_with_all_runs(copied: Tiny, tmp_path: Path) -> None:
    moved = shutil.move(copied.runs, tmp_path / "elsewhere")
    run = read_run(Path(moved) / "tiny")
    check_provenance(run.workspace)
    assert len(run.table) == len(read_candidates(Path(moved) / "tiny"))
