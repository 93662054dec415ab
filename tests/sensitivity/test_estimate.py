"""Whatever was interrupted, added later or run elsewhere: the tables are those of the plain functions, mixture by mixture."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hwsearch.data.dataset import open_dataset
from hwsearch.errors import UserError
from hwsearch.executor import LocalExecutor
from hwsearch.experiment import QuantizationConfig, Split
from hwsearch.sensitivity.cache import JOBS_FILE, open_journal
from hwsearch.sensitivity.choices import make_choices
from hwsearch.sensitivity.curvature import ProbeRule, probe_traces
from hwsearch.sensitivity.estimate import (
    DEFAULT_METHODS,
    check_sensitivity,
    ensure,
    kept_tables,
    parse_methods,
    run_and_keep,
    sensitivity_folder,
    table_path,
)
from hwsearch.sensitivity.gradient import gradient_scores, site_gradients
from hwsearch.sensitivity.jobs import Job, Kind, Result, Results
from hwsearch.sensitivity.kernels import through_onednn
from hwsearch.sensitivity.mixture import MixtureReader
from hwsearch.sensitivity.one_site import OneSiteOutput, Score, full_precision_output, score_sites
from hwsearch.sensitivity.recoverability import score_trained
from hwsearch.sensitivity.scores import (
    bernoulli_kl,
    measured_losses,
    measured_si_snr,
    output_divergence,
    output_noise,
    paper_kl,
)
from hwsearch.separator import rounded_weights
from hwsearch.separator.base import load_base, save_base
from hwsearch.separator.prepare import PreparedBase, prepare_base
from hwsearch.separator.quantizers import weight_scale
from hwsearch.separator.untrained import untrained_sites
from hwsearch.training.pool import build_pool, load_pool
from hwsearch.workspace import Workspace
from tests.sealed import edit_lines
from tests.sensitivity.workspaces import SEARCH, SITES, make_experiment

Maker = Callable[..., Workspace]


def prepared(workspace: Workspace) -> tuple[PreparedBase, MixtureReader]:
    experiment, data = workspace.experiment, workspace.data_folder
    base = prepare_base(experiment, workspace.base_path, data, workspace.folder / "calibration.json")
    base = replace(base, graph=through_onednn(base.graph))
    return base, MixtureReader(base, data, open_dataset(data, Split.VALIDATION)[: experiment.sensitivity.mixtures])


def lines(workspace: Workspace) -> list[dict]:
    return [json.loads(line) for line in (sensitivity_folder(workspace) / JOBS_FILE).read_text().splitlines()]


def written(workspace: Workspace) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sensitivity_folder(workspace).glob("*.json")}


def test_a_table_is_the_mean_over_mixtures_of_what_its_function_gives(workspace: Maker) -> None:
    here = workspace()
    methods = [*DEFAULT_METHODS, "paper-kl", "measured", "measured-noise", "average-fisher"]
    tables = ensure(here, methods, SITES)
    base, mixtures = prepared(here)
    choices = make_choices(base, SITES)
    full = [full_precision_output(base.separator, mixture) for mixture in mixtures]

    def one_by_one(score: Callable[[OneSiteOutput], Score]) -> list[np.ndarray]:
        return [score_sites(choices, output.mixture, [score(output)])[0] for output in full]

    losses = [
        measured_losses(measured_si_snr(output)[0], si_snr)
        for output, si_snr in zip(full, one_by_one(lambda _: measured_si_snr), strict=True)
    ]
    for method, wanted in {
        **{method: [loss[method] for loss in losses] for method in ("measured", "measured-noise", "measured-noise-ratio")},
        "kl": one_by_one(lambda output: output_divergence(output, bernoulli_kl)),
        "paper-kl": one_by_one(lambda output: output_divergence(output, paper_kl)),
        "output-noise-ratio": one_by_one(output_noise),
        "gradient": [gradient_scores(choices, mixture) for mixture in mixtures],
    }.items():
        np.testing.assert_allclose(tables[method].value, np.mean(wanted, axis=0), rtol=1e-12)
        assert np.isfinite(tables[method].standard_error).tolist() == np.isfinite(tables[method].value).tolist()
    assert tables["gradient"].widths == (2, 4, 8)
    assert np.isfinite(tables["gradient"].value).tolist() == [[True, False, True], [True, False, True], [False, True, True]]
    rule = ProbeRule(relative_error=0.1, max_probes=8, seed=here.experiment.seed)
    gradients = [site_gradients(base, mixture) for mixture in mixtures]
    for row, (site, widths) in enumerate(SITES):
        traces = probe_traces(base, mixtures, [site], rule)[site].by_mixture
        norms = [float(found[site].double().square().sum()) for found in gradients]
        for bits in widths:
            column = tables["curvature"].widths.index(bits)
            if site == "features":
                moved = [choices.activation(site, bits, m.tensors[site]) - m.tensors[site] for m in mixtures]
            else:
                moved = [choices.weight(site, bits) - base.graph.parameters[site]] * 2
            squares = np.array([float((error.double() ** 2).sum()) for error in moved])
            means = np.array([float((error.double() ** 2).mean()) for error in moved])
            for method, trace, error in (
                ("curvature", traces, squares),
                ("average-curvature", traces, means),
                ("fisher", norms, squares),
                ("average-fisher", norms, means),
            ):
                wanted = np.mean(0.5 * np.array(trace) * error)
                assert tables[method].value[row, column] == pytest.approx(wanted, rel=1e-9), (method, site, bits)


@pytest.mark.parametrize(
    ("quantization", "bases"),
    [({}, 2), ({"rounding": "nearest", "bias_correction": False, "equalise": False, "centre_trunk": False}, 1)],
)
def test_weights_are_rounded_once_for_each_base(
    workspace: Maker, monkeypatch: pytest.MonkeyPatch, quantization: dict[str, Any], bases: int
) -> None:
    """Those of the search's widths are there before the first job. Training may start from a base of its own."""
    searched: list[tuple[float, int]] = []

    def search(weight: torch.Tensor, bits: int, config: QuantizationConfig) -> torch.Tensor:
        searched.append((float(weight.sum()), bits))
        return weight_scale(weight, bits, config)

    monkeypatch.setattr(rounded_weights, "weight_scale", search)
    made = workspace(search={**SEARCH, "weight_bits": [2, 8]}, quantization=quantization)
    ensure(made, ["kl"], SITES)
    assert {bits for _, bits in searched} == {2, 8}
    assert len(searched) == bases * 2 * len(untrained_sites(made.experiment).weights)


def test_workers_change_nothing(workspace: Maker) -> None:
    alone, together = workspace(name="alone"), workspace(name="together")
    ensure(alone, ["kl", "curvature", "gradient"], SITES)
    ensure(together, ["kl", "curvature", "gradient"], SITES, workers=2)
    assert written(alone) == written(together)


def test_work_goes_on_where_it_was_cut_off(workspace: Maker) -> None:
    whole, methods = workspace(name="whole"), ["kl", "curvature", "gradient"]
    ensure(whole, methods, SITES)
    content = (sensitivity_folder(whole) / JOBS_FILE).read_bytes()
    for per_mille in (0, 310, 770, 999):
        cut = workspace(name=f"cut-at-{per_mille}")
        shutil.copytree(whole.folder, cut.folder)
        for method in methods:
            table_path(cut, method).unlink()
        left = content[: per_mille * len(content) // 1000]
        (sensitivity_folder(cut) / JOBS_FILE).write_bytes(left)
        kept = left.count(b"\n")
        seen: list[tuple[int, int]] = []
        ensure(cut, methods, SITES, progress=lambda done, total, seen=seen: seen.append((done, total)))
        assert written(cut) == written(whole)
        assert len(lines(cut)) == len(lines(whole))
        assert lines(cut)[:kept] == lines(whole)[:kept]
        # One report before the first job and one behind each that was missing; all traces are one job.
        missing = {"traces" if line["kind"] == "trace" else (line["kind"], line["subject"]) for line in lines(whole)[kept:]}
        assert len(seen) == 1 + len(missing)
        assert seen == sorted(seen)
        assert seen[-1][0] == seen[-1][1] == seen[0][1]


def test_an_interrupted_run_keeps_what_was_done(workspace: Maker) -> None:
    class StoppedError(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise StoppedError

    here = workspace()
    with pytest.raises(StoppedError):
        ensure(here, ["kl", "curvature"], SITES, progress=stop)
    kept = lines(here)
    assert kept
    assert not table_path(here, "kl").exists()
    ensure(here, ["kl", "curvature"], SITES)
    assert lines(here)[: len(kept)] == kept


def test_what_is_there_is_read_and_not_estimated_again(workspace: Maker) -> None:
    here = workspace()
    first = ensure(here, ["kl", "gradient"], SITES)
    done = len(lines(here))
    assert [(line["kind"], line["subject"]) for line in lines(here)] == [
        (kind, f"validation-0000{index}") for index in range(2) for kind in ("kl", "gradient")
    ]
    seen: list[int] = []
    again = ensure(here, ["gradient", "kl"], SITES, progress=lambda done, total: seen.append(done))
    assert (len(lines(here)), seen) == (done, [])
    assert all(np.array_equal(first[method].value, again[method].value, equal_nan=True) for method in first)
    assert [table.to_json() for table in kept_tables(here, SITES)] == [first[method].to_json() for method in ("kl", "gradient")]
    ensure(here, ["kl"], SITES[:1])
    assert [table.method for table in kept_tables(here, SITES)] == ["gradient"]


def test_a_method_a_site_or_a_width_added_later_costs_only_its_own_jobs(workspace: Maker) -> None:
    here = workspace()
    ensure(here, ["curvature"], SITES[:2])
    before = len(lines(here))
    ensure(here, ["average-curvature", "kl"], SITES[:2])
    assert [line["kind"] for line in lines(here)[before:]] == ["kl", "kl"]
    before = len(lines(here))
    wider = (("blocks.0.depthwise.weight", (2, 3, 8)), *SITES[1:])
    tables = ensure(here, ["curvature", "kl"], wider)
    added = lines(here)[before:]
    assert [(line["kind"], line["subject"]) for line in added] == [
        ("trace", "features"),
        *((kind, f"validation-0000{index}") for index in range(2) for kind in ("kl", "errors")),
    ]
    assert added[1]["by_width"]["kl"].keys() == {"blocks.0.depthwise.weight", "features"}
    assert added[1]["by_width"]["kl"]["blocks.0.depthwise.weight"].keys() == {"3"}
    fresh = ensure(workspace(name="fresh"), ["curvature", "kl"], wider)
    for method, table in tables.items():
        np.testing.assert_allclose(table.value, fresh[method].value, rtol=1e-4)


def test_methods_of_one_walk_are_one_job_and_those_that_are_missing_are_made_alone(workspace: Maker) -> None:
    methods = ["measured", "output-noise-ratio", "kl", "paper-kl"]
    together, apart = workspace(name="together"), workspace(name="apart")
    seen: list[int] = []
    whole = ensure(together, methods, SITES, progress=lambda done, total: seen.append(done))
    assert len(seen) == 1 + 2
    assert sorted(line["kind"] for line in lines(together)) == sorted(["measured", "output-noise", "kl", "paper-kl"] * 2)
    for done, method in enumerate(methods, start=1):
        found = ensure(apart, [method], SITES)
        assert len(lines(apart)) == 2 * done
        np.testing.assert_array_equal(found[method].value, whole[method].value)
    kinds = [(line["kind"], line["subject"]) for line in lines(together)]
    journal = sensitivity_folder(together) / JOBS_FILE
    first, *_ = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(first)
    again = ensure(together, methods, SITES)
    assert [(line["kind"], line["subject"]) for line in lines(together)] == kinds
    for method, table in whole.items():
        np.testing.assert_array_equal(again[method].value, table.value)


def test_traces_of_too_few_mixtures_are_refused(workspace: Maker) -> None:
    here = workspace()
    ensure(here, ["curvature"], SITES[:1])
    journal = sensitivity_folder(here) / JOBS_FILE

    def shorten(lines: list[bytes]) -> list[bytes]:
        entries = [json.loads(line) for line in lines]
        return [
            json.dumps({**entry, "samples": entry["samples"][1:]} if "samples" in entry else entry).encode() for entry in entries
        ]

    edit_lines(journal, shorten)
    with pytest.raises(UserError, match=r"jobs\.jsonl: 'trace' of .* holds samples of 1 mixtures; wanted 2: delete"):
        ensure(here, ["curvature"], SITES[:1])


def test_more_mixtures_cost_only_the_new_ones_where_mixtures_stand_alone(workspace: Maker) -> None:
    ensure(workspace(), ["gradient"], SITES)
    more = workspace(sensitivity={"mixtures": 3})
    assert ensure(more, ["gradient"], SITES)["gradient"].mixtures == 3
    assert [line["subject"] for line in lines(more)] == [f"validation-0000{index}" for index in range(3)]


def test_recoverability_is_what_training_leaves_and_the_output_noise_at_wide_widths(workspace: Maker) -> None:
    here = workspace()
    path = build_pool(here, 1, lambda done, total: None)
    tables = ensure(here, ["recoverability", "output-noise-ratio"], SITES, pool=path)
    base, mixtures = prepared(here)
    pool = load_pool(path)

    def scores(*candidates: tuple[str, tuple[int, ...]]) -> np.ndarray:
        return np.array(score_trained(base, mixtures, candidates, pool, here.experiment))

    floating = scores()
    table, noise = tables["recoverability"], tables["output-noise-ratio"]
    assert np.array_equal(table.value[:, 2], noise.value[:, 2])
    for row, (site, (bits, _)) in enumerate(SITES):
        wanted = np.mean(10 ** ((floating - scores((site, (bits,)))) / 10) - 1)
        assert table.value[row, table.widths.index(bits)] == pytest.approx(wanted, rel=1e-9)


# What is refused


def test_what_the_sensitivities_were_made_with_must_not_change(workspace: Maker, tmp_path: Path) -> None:
    ensure(workspace(), ["curvature"], SITES)
    separator, description = load_base(workspace().base_path)
    with torch.no_grad():
        separator.network.mask_head.bias.mul_(1.01)
    save_base(tmp_path / "other.safetensors", separator, description)
    for changes, message in (
        ({"base": str(tmp_path / "other.safetensors")}, "made with another base; delete the folder"),
        ({"quantization": {"weight_scale": "per_tensor"}}, r"another \[quantization\] \(calibration_mixtures 2, now 8\)"),
        ({"sensitivity": {"mixtures": 3, "max_probes": 8}}, r"another \[sensitivity\] \(mixtures 2, now 3\)"),
    ):
        with pytest.raises(UserError, match=message) as refused:
            ensure(workspace(**changes), ["curvature"], SITES)
        assert "\n" not in str(refused.value)
    ensure(workspace(sensitivity={"mixtures": 2, "max_probes": 48, "recoverability_steps": 7}), ["gradient"], SITES)


def test_other_validation_mixtures_are_refused(workspace: Maker, tmp_path: Path) -> None:
    here = workspace()
    ensure(here, ["gradient"], SITES)
    data = tmp_path / "data"
    real = data.resolve()
    data.unlink()
    shutil.copytree(real, data)
    manifest = here.data_folder / "validation" / "manifest.jsonl"
    manifest.write_text("".join(manifest.read_text().splitlines(keepends=True)[::-1]))
    with pytest.raises(UserError, match="made with another validation set"):
        ensure(here, ["gradient"], SITES)


def test_an_unknown_method_is_named_with_those_there_are() -> None:
    with pytest.raises(UserError, match=r"^unknown method 'hessian'; wanted one of curvature, .*recoverability$"):
        parse_methods(["kl", "hessian"])
    assert parse_methods(["kl", "gradient", "kl"]) == ("kl", "gradient")


def test_an_experiment_that_cannot_be_estimated_is_refused_before_any_work() -> None:
    experiment = make_experiment()
    with pytest.raises(UserError, match="'features' cannot be quantized to 2 bits"):
        check_sensitivity(experiment, ("kl",), (("features", (2, 8)),))
    data = experiment.model_dump(mode="json")["data"]
    rooms = {**data["rooms"], "count": {"validation": 1}}
    silent = [{**data["corpora"][0], "splits": {"validation": 1.0}}]
    for changed, message in (({"rooms": rooms}, "rooms.count: no 'train'"), ({"corpora": silent}, "none has a share 'train'")):
        without = make_experiment(data={**data, **changed})
        with pytest.raises(UserError, match=message):
            check_sensitivity(without, ("kl", "recoverability"), SITES)
        check_sensitivity(without, DEFAULT_METHODS, SITES)
    with pytest.raises(UserError, match="makes no validation mixtures"):
        check_sensitivity(make_experiment(data={**data, "mixtures": {"count": {}}}), ("kl",), SITES)


@pytest.mark.parametrize("method", ["gradient", "curvature"])
def test_a_loss_that_is_no_number_is_named(workspace: Maker, tmp_path: Path, method: str) -> None:
    """The sound still has numbers; their squares have not."""
    separator, description = load_base(workspace().base_path)
    with torch.no_grad():
        separator.network.mask_head.bias.fill_(1e30)
    save_base(tmp_path / "broken.safetensors", separator, description)
    with pytest.raises(UserError, match="mixture 'validation-00000': the loss of the full-precision network is nan; wanted"):
        ensure(workspace(base=str(tmp_path / "broken.safetensors")), [method], SITES)


def moody(fails: str) -> Callable[[Job], tuple[Result, ...]]:
    def work(job: Job) -> tuple[Result, ...]:
        if job.subject == fails:
            raise RuntimeError("no memory")
        return (Result(kind=job.kinds[0], subject=job.subject, samples=((1.0, 2.0),)),)

    return work


def test_a_job_that_fails_is_named_and_the_others_are_kept(tmp_path: Path) -> None:
    jobs = [Job((Kind.TRAINING,), site) for site in ("a", "b", "c")]
    with open_journal(tmp_path, {}) as journal, LocalExecutor(partial(moody, "b")) as executor:
        message = "1 of 3 jobs failed, the first: training of b: RuntimeError: no memory; the others are kept"
        with pytest.raises(UserError, match=message):
            run_and_keep(executor, jobs, journal, Results(), lambda done, total: None)
    with open_journal(tmp_path, {}) as journal:
        assert [result.subject for result in journal.results] == ["a", "c"]
