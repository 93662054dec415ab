import math
from pathlib import Path

import numpy as np
import pytest

from hwsearch.errors import UserError
from hwsearch.experiment import Fidelity, SeparatorConfig
from hwsearch.results.candidates import read_candidates
from hwsearch.search.record import RECORD_FILE
from hwsearch.separator.allocation import BitAllocation
from tests.results.tables import scored, write_record
from tests.sealed import edit_lines
from tests.separator.small import all_sites, uniform

SMALL = SeparatorConfig(X=1, R=1)


def changed(allocation: BitAllocation, **widths: int) -> BitAllocation:
    return BitAllocation.of(
        allocation.by_site | {site.replace("_weight", ".weight").replace("_output", ".output"): w for site, w in widths.items()}
    )


def test_rows_are_the_scored_candidates_without_the_reference(tmp_path: Path) -> None:
    allocations = [uniform(SMALL, 32, 32), uniform(SMALL, 4, 8), uniform(SMALL, 8, 8), uniform(SMALL, 2, 8)]
    write_record(tmp_path, SMALL, allocations, fails=(2,))
    table = read_candidates(tmp_path)
    assert table.candidate.tolist() == [1, 3]
    assert table.sites == all_sites(SMALL)
    assert [table.allocation(row) for row in range(2)] == [allocations[1], allocations[3]]
    assert table.columns["si_snr_improvement_db"].tolist() == [12 - 0.001, 12 - 0.003]
    assert table.columns["drop_db"] == pytest.approx([0.001, 0.003])
    assert table.reference["si_snr_improvement_db"] == 12.0
    assert table.failures == {2: "boom"}
    assert table.fidelity is Fidelity.POST_TRAINING
    assert table.weights == {}


def test_an_absent_cost_is_nan(tmp_path: Path) -> None:
    write_record(tmp_path, SMALL, [uniform(SMALL, 32, 32), uniform(SMALL, 4, 8), uniform(SMALL, 2, 8)])
    latency = read_candidates(tmp_path).columns["latency_ms[chip]"].tolist()
    assert math.isnan(latency[0])
    assert latency[1] == 3.5


def test_uniform_means_one_width_for_weights_and_one_for_activations(tmp_path: Path) -> None:
    four = uniform(SMALL, 4, 8)
    write_record(
        tmp_path,
        SMALL,
        [uniform(SMALL, 32, 32), four, changed(four, mask_head_weight=8), changed(four, mask_head_output=4)],
    )
    assert read_candidates(tmp_path).uniform.tolist() == [True, False, False]


def test_sites_fixed_by_pattern_do_not_spoil_uniformity(tmp_path: Path) -> None:
    four = uniform(SMALL, 4, 8)
    write_record(
        tmp_path,
        SMALL,
        [uniform(SMALL, 32, 32), changed(four, mask_head_weight=8), changed(four, input_proj_weight=8)],
        fixed=("mask_head.weight",),
    )
    assert read_candidates(tmp_path).uniform.tolist() == [True, False]


def test_a_search_that_has_scored_nothing_is_an_empty_table(tmp_path: Path) -> None:
    write_record(tmp_path, SMALL, [])
    table = read_candidates(tmp_path)
    assert len(table) == 0
    assert table.reference == {}
    assert table.widths.shape == (0, len(all_sites(SMALL)))


def test_taking_rows_takes_every_column(tmp_path: Path) -> None:
    write_record(tmp_path, SMALL, [uniform(SMALL, 32, 32)] + [uniform(SMALL, bits, 8) for bits in (2, 4, 8)])
    table = read_candidates(tmp_path).take(np.array([2, 0]))
    assert table.candidate.tolist() == [3, 1]
    assert table.columns["size_bytes"].tolist() == [1003.0, 1001.0]
    assert table.allocation(0) == uniform(SMALL, 8, 8)


def test_scores_of_different_fidelities_are_never_mixed(tmp_path: Path) -> None:
    allocations = [uniform(SMALL, 32, 32), uniform(SMALL, 4, 8), uniform(SMALL, 2, 8), uniform(SMALL, 8, 8)]
    write_record(tmp_path, SMALL, allocations)
    rungs = [
        scored(
            number,
            0,
            quality,
            allocation=allocations[number].to_json(),
            fidelity=Fidelity.SHORT_QAT,
            weights=f"{number:02x}.safetensors" if number else None,
        )
        for number, quality in ((0, 13.0), (3, 12.5), (1, 12.0))
    ]
    edit_lines(tmp_path / RECORD_FILE, lambda lines: [*lines, *(event.model_dump_json().encode() for event in rungs)])
    low, high = read_candidates(tmp_path, Fidelity.POST_TRAINING), read_candidates(tmp_path, Fidelity.SHORT_QAT)
    assert low.candidate.tolist() == [1, 2, 3]
    assert low.columns["drop_db"] == pytest.approx([0.001, 0.002, 0.003])
    assert low.weights == {}
    assert high.candidate.tolist() == [3, 1]
    assert high.columns["drop_db"].tolist() == [0.5, 1.0]  # against full precision at the same fidelity
    assert high.weights == {3: "03.safetensors", 1: "01.safetensors"}
    assert read_candidates(tmp_path).candidate.tolist() == [3, 1]
    assert high.take(np.array([1])).fidelity is Fidelity.SHORT_QAT
    assert high.take(np.array([1])).weights == high.weights
    with pytest.raises(UserError, match=r"nothing was scored at fidelity 'full-qat'; it has 'post-training', 'short-qat'"):
        read_candidates(tmp_path, Fidelity.FULL_QAT)


def test_a_search_without_any_score_says_so(tmp_path: Path) -> None:
    write_record(tmp_path, SMALL, [])
    with pytest.raises(UserError, match="nothing was scored at fidelity 'post-training'; it has nothing yet"):
        read_candidates(tmp_path, Fidelity.POST_TRAINING)
