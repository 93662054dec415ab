"""Results in JSON and back, and what is refused."""

import json
from dataclasses import replace

import pytest

from hwsearch.errors import UserError
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


def test_it_survives_json():
    assert NasResult.from_json(json.loads(json.dumps(RESULT.to_json())), PROBLEM, "there") == RESULT


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"more": 1}, "holds no result of a differentiable search"),
        ({"loss_db": None}, "has numbers"),
        ({"cost": float("inf")}, "has numbers"),
        ({"probabilities": []}, "has probabilities that are not those of the space"),
        ({"probabilities": [[0.5]] * len(RESULT.probabilities)}, "has probabilities"),
        ({"allocation": {"input_proj.weight": 8}}, "its sites are not those of the space"),
        ({"allocation": allocation(input_proj__weight=3).to_json()}, "site 'input_proj.weight' has width 3; wanted one of"),
        ({"halfway": allocation(mask_head__weight=2).to_json()}, "site 'blocks.0.expand.weight' has another width than the rest"),
    ],
)
def test_what_is_broken_is_refused_in_one_line(changes, message):
    with pytest.raises(UserError) as refused:
        NasResult.from_json(RESULT.to_json() | changes, PROBLEM, "runs/nas.json")
    assert str(refused.value).startswith("runs/nas.json: ")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_results_are_plain_values():
    assert hash(RESULT) == hash(replace(RESULT))
