import math
from pathlib import Path

import numpy as np
import pytest

from hwsearch.errors import UserError
from hwsearch.experiment import Fidelity, SeparatorConfig
from hwsearch.results.candidates import read_candidates
from hwsearch.search.record import RECORD_FILE, Record
from hwsearch.separator.allocation import BitAllocation
from hwsearch.separator.configuration import Configuration
from tests.results.tables import PARTLY, asked, header, scored, write_partly, write_record
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
    assert [table.configuration(row) for row in range(2)] == [Configuration(allocations[1]), Configuration(allocations[3])]
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
    assert table.configuration(0) == Configuration(uniform(SMALL, 8, 8))


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


def test_a_table_says_what_each_candidate_keeps(tmp_path: Path) -> None:
    write_partly(tmp_path)
    table = read_candidates(tmp_path)
    assert [table.configuration(row) for row in range(4)] == list(PARTLY)
    assert table.options == (("block.kept", 1), ("b.channels", 8), ("c.channels", 4))
    assert table.kept.tolist() == [[1, 8, 4], [0, 8, 4], [1, 2, 3], [0, 8, 3]]
    assert table.widths.tolist() == [[4, 4, 8], [4, 0, 0], [2, 2, 8], [2, 0, 0]]
    assert table.columns["blocks_left_out"].tolist() == [0, 1, 0, 1]
    assert table.columns["channels_kept"].tolist() == [1.0, 1.0, 0.5, 0.875]
    assert table.uniform.tolist() == [True, False, False, False]  # one width of what is kept is not enough
    some = table.take(np.array([2, 1]))
    assert [some.configuration(row) for row in range(2)] == [PARTLY[2], PARTLY[1]]
    assert some.columns["blocks_left_out"].tolist() == [0, 1]


def test_a_search_that_leaves_out_blocks_only_has_no_share_of_channels(tmp_path: Path) -> None:
    with Record(tmp_path, header(options={"block.kept": (0, 1)})) as record:
        record.extend([asked(0, 0), scored(0, 0, allocation={"x.weight": 32})])
    table = read_candidates(tmp_path)
    assert len(table) == 0
    assert table.kept.shape == (0, 1)
    assert "blocks_left_out" in table.columns
    assert "channels_kept" not in table.columns


def test_a_search_that_leaves_nothing_out_has_no_columns_for_it(tmp_path: Path) -> None:
    write_record(tmp_path, SMALL, [uniform(SMALL, 32, 32), uniform(SMALL, 4, 8)])
    table = read_candidates(tmp_path)
    assert table.options == ()
    assert not {"blocks_left_out", "channels_kept"} & table.columns.keys()
