"""Results in JSON and back, and those that are refused."""

import json

import pytest
from pydantic import ValidationError

from hwsearch.search.nas.result import NasResult
from hwsearch.separator.allocation import BitAllocation
from tests.search.nas.small import problem_of

GROUP = ("blocks.0.expand.weight", "mask_head.weight")
PROBLEM = problem_of([*GROUP, "input_proj.weight"], groups=(GROUP,))


def allocation(**changes):
    by_site = {site: options[-1] for site, options in PROBLEM.widths}
    return BitAllocation.of(by_site | {site.replace("__", "."): bits for site, bits in changes.items()})


RESULT = NasResult(
    cost_weight=0.3,
    allocation=allocation(),
    halfway=allocation(input_proj__weight=4),
    probabilities=tuple((0.25, 0.25, 0.5) if count == 3 else (1.0,) for count in PROBLEM.option_valid.sum(axis=1).tolist()),
    loss_db=-9.5,
    cost=0.6,
)


def read(changes):
    return NasResult.model_validate_json(json.dumps(RESULT.model_dump(mode="json") | changes))


def test_it_survives_json():
    assert read({}) == RESULT
    assert RESULT.belongs_to(PROBLEM)


@pytest.mark.parametrize(
    "changes",
    [{"more": 1}, {"loss_db": None}, {"cost": float("inf")}, {"halfway": [8]}, {"allocation": {"input_proj.weight": "8"}}],
)
def test_another_form_is_refused(changes):
    with pytest.raises(ValidationError):
        read(changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"probabilities": []},
        {"probabilities": [[0.5]] * len(RESULT.probabilities)},
        {"allocation": {"input_proj.weight": 8}},
        {"allocation": allocation(input_proj__weight=3).to_json()},
        {"halfway": allocation(mask_head__weight=2).to_json()},
    ],
)
def test_results_of_another_space_do_not_belong(changes):
    assert not read(changes).belongs_to(PROBLEM)
