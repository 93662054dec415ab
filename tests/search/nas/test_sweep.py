"""A sweep over cost weights runs its jobs on an executor, keeps what they find, and goes on where it stopped."""

from dataclasses import replace

import numpy as np
import pytest

from hwsearch.data.build import build_data
from hwsearch.errors import UserError
from hwsearch.executor import LocalExecutor
from hwsearch.experiment import parse_experiment
from hwsearch.search.exact.problem import AllocationProblem
from hwsearch.search.nas.expected_cost import nas_cost
from hwsearch.search.nas.sweep import NAS_FILE, NasFactory, ensure_nas
from hwsearch.search.space import build_space
from hwsearch.separator.prepare import prepare_base
from hwsearch.separator.untrained import untrained_sites
from hwsearch.training.pool import build_pool
from hwsearch.workspace import Workspace
from tests.sealed import edit_json
from tests.tiny import tiny_content
from tests.travel import travelled

WEIGHTS = (30.0, 0.1, 3.0)


def silent(_done, _all):
    pass


@pytest.fixture(scope="module")
def factory(tmp_path_factory):
    """The embedded base, three layers of it free, and examples to train on."""
    folder = tmp_path_factory.mktemp("nas")
    content = tiny_content()
    content["data"]["corpora"][0] |= {"splits": {"train": 0.4, "validation": 0.3, "test": 0.3}}
    content["data"]["rooms"]["count"] = {"train": 2, "validation": 1}
    content["data"]["mixtures"] |= {"count": {"validation": 2}}
    content["training"] = {"speeds": [1.0]}
    content["quantization"] |= {"weight_scale_method": "max"}  # the search for better scales takes seconds
    content["qat"] = {"examples": 4, "segment_seconds": 0.5}
    content["nas"] = {"steps": 4, "cost_weights": WEIGHTS}
    content["search"] |= {"weight_bits": [2, 8], "fixed": {"blocks.?.*.weight": 8, "blocks.1?.*.weight": 8}}
    experiment = parse_experiment(content, "test")
    workspace = Workspace(folder / "runs", experiment)
    build_data(experiment, workspace.data_folder, workspace.corpora_folder, 1, silent)
    calibration = workspace.folder / "calibration.json"
    prepare_base(experiment, workspace.base_path, workspace.data_folder, calibration)
    pool = build_pool(workspace, 1, silent)
    space = build_space(experiment.search, untrained_sites(experiment))
    problem = AllocationProblem(space.widths, np.zeros((len(space.widths), 2)), ())
    cost = nas_cost(experiment, space.widths)
    paths = (workspace.base_path, workspace.data_folder, calibration, pool)
    return NasFactory(experiment, *paths, problem=problem, cost=cost)


class Counting:
    """Opens executors and counts them; may stop after some jobs, as a killed driver does."""

    def __init__(self, stop_after=None):
        self.opened = 0
        self.done = []
        self.stop_after = stop_after

    def __call__(self, factory):
        self.opened += 1

        def build():
            work = factory()

            def run(cost_weight):
                if len(self.done) == self.stop_after:
                    raise KeyboardInterrupt
                self.done.append(cost_weight)
                return work(cost_weight)

            return run

        return LocalExecutor(build)


@pytest.fixture(scope="module")
def whole(factory, tmp_path_factory):
    """An undisturbed sweep and its file."""
    path = tmp_path_factory.mktemp("run") / NAS_FILE
    return ensure_nas(factory, path, Counting()), path


def test_a_sweep_gives_a_candidate_for_each_cost_weight_in_their_order(factory, whole):
    results, _ = whole
    assert [result.cost_weight for result in results] == list(WEIGHTS)
    for result in results:
        assert [site for site, _ in result.allocation.widths] == list(factory.problem.sites)


def test_a_factory_that_travelled_gives_the_same_results(factory, whole):
    results, _ = whole
    work = travelled(factory)()
    assert work(0.1) == results[1]


def test_an_interrupted_sweep_goes_on_where_it_stopped(factory, whole, tmp_path):
    path = tmp_path / NAS_FILE
    with pytest.raises(KeyboardInterrupt):
        ensure_nas(factory, path, Counting(stop_after=1))
    rest, said = Counting(), []
    assert ensure_nas(factory, path, rest, lambda *step: said.append(step)) == whole[0]
    assert rest.done == [0.1, 3.0]
    assert said == [(1, 3), (2, 3), (3, 3)]
    assert path.read_bytes() == whole[1].read_bytes()


def test_a_sweep_that_is_done_opens_no_executor(factory, whole):
    results, path = whole
    counting = Counting()
    assert ensure_nas(factory, path, counting) == results
    assert counting.opened == 0


def with_nas(factory, **changes):
    return replace(
        factory, experiment=factory.experiment.model_copy(update={"nas": factory.experiment.nas.model_copy(update=changes)})
    )


def test_another_sweep_takes_what_is_there_but_nothing_of_other_settings(factory, whole, tmp_path):
    path = tmp_path / NAS_FILE
    path.write_bytes(whole[1].read_bytes())
    counting = Counting()
    results = ensure_nas(with_nas(factory, cost_weights=(3.0, 7.0)), path, counting)
    assert counting.done == [7.0]
    assert results[0] == whole[0][2]
    ensure_nas(with_nas(factory, cost_weights=(3.0,), steps=2), path, counting)
    assert counting.done == [7.0, 3.0]


def test_the_key_names_all_that_results_depend_on(factory):
    same = with_nas(factory, cost_weights=(1.0,))
    others = [
        with_nas(factory, learning_rate=0.2),
        replace(factory, experiment=factory.experiment.model_copy(update={"seed": 4})),
        replace(factory, problem=replace(factory.problem, groups=(("input_proj.weight", "mask_head.weight"),))),
        replace(factory, cost=replace(factory.cost, constants=factory.cost.constants + 1)),
    ]
    assert same.key() == factory.key()
    assert len({factory.key(), *(other.key() for other in others)}) == 5


def test_a_damaged_file_is_refused_in_one_line(factory, whole, tmp_path):
    path = tmp_path / NAS_FILE
    path.write_bytes(whole[1].read_bytes().replace(b'"cost_weight": 3.0', b'"cost_weight": 30.0'))
    with pytest.raises(UserError, match=r"nas\.json: changed since it was written .*; delete it and it is made again$"):
        ensure_nas(factory, path, Counting())
    path.write_bytes(whole[1].read_bytes())
    edit_json(path, lambda content: content["results"][0].update(loss_db="loud"))
    with pytest.raises(UserError, match=r"nas\.json: 0\.loss_db: found 'loud', wanted a number; delete it and it is made again$"):
        ensure_nas(factory, path, Counting())
    path.write_bytes(whole[1].read_bytes())
    edit_json(path, lambda content: content["results"][0].update(probabilities=[]))
    with pytest.raises(UserError, match=r"nas\.json: holds results of another space; delete it and it is made again$"):
        ensure_nas(factory, path, Counting())


def test_a_pool_that_is_not_there_is_refused(factory, tmp_path):
    with pytest.raises(UserError, match="no such file; wanted training mixtures"):
        ensure_nas(replace(factory, pool=tmp_path / "none"), tmp_path / NAS_FILE, Counting())


def test_a_job_that_fails_names_its_cost_weight(factory, tmp_path):
    def broken(_cost_weight):
        raise MemoryError("no room")

    with pytest.raises(UserError, match=r"^nas: cost weight 30 failed: MemoryError: no room$"):
        ensure_nas(factory, tmp_path / NAS_FILE, lambda _factory: LocalExecutor(lambda: broken))
