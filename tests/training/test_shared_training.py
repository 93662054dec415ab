"""One training for all allocations: what it draws, that it resumes bit for bit, and that it gains."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from hwsearch.errors import UserError
from hwsearch.experiment import QatConfig, SharedConfig
from hwsearch.separator.allocation import is_weight, uniform
from hwsearch.separator.quantizers import quantize_weight
from hwsearch.separator.second_order import input_statistics
from hwsearch.separator.shared import initial_shared
from hwsearch.separator.trained import TrainedState
from hwsearch.training import shared as shared_module
from hwsearch.training.distillation import Teacher, distilled_loss
from hwsearch.training.shared import SharedTraining, _spread, train_shared
from hwsearch.training.trainable import TrainableNetwork
from tests.separator.shared import trunk_base, widths_of
from tests.training.graphs import FEATURES, Gated, graph_base
from tests.training.pools import small_pool

CONFIG = SharedConfig(steps=10, batch_size=2, learning_rate=1e-3, report_steps=4)
KEY = "k" * 64


def training(config=CONFIG, groups=(), widths=None, **changes):
    widths = widths_of(trunk_base()) if widths is None else widths
    return replace(SharedTraining(widths, groups, config, QatConfig(), 0, KEY), **changes)


def loss_at(state, *widths):
    base, pool = trunk_base(), small_pool()
    one: TrainedState = state.at(uniform(base.sites, *widths))
    network = TrainableNetwork(base.graph, base.sites, one.allocation)
    with torch.no_grad():
        return float(distilled_loss(Teacher(base), network, one.parameters, pool, range(len(pool)), QatConfig()))


def quality(state):
    return {"2 bits": -loss_at(state, 2, 8)}


class KilledError(Exception):
    """In place of a kill."""


def same(first, second):
    assert first.parameters.keys() == second.parameters.keys()
    return all(torch.equal(second.parameters[name], tensor) for name, tensor in first.parameters.items())


@cache
def uninterrupted(folder):
    return train_shared(trunk_base(), training(), small_pool(), folder / "checkpoint.safetensors", quality)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_module, "CHECKPOINT_STEPS", 3)
        return uninterrupted(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("kills", [(2,), (3,), (4, 7), (8, 9, 10), (10,)])
def test_interrupted_training_gives_the_same_bits(whole, tmp_path, monkeypatch, kills):
    """Killed behind each of these steps, before a checkpoint, at one or behind it."""
    monkeypatch.setattr(shared_module, "CHECKPOINT_STEPS", 3)
    path, begun = tmp_path / "checkpoint.safetensors", []
    for kill in kills:

        def killing(step, steps, loss, kill=kill):
            begun.append(step)
            if step == kill:
                raise KilledError

        with pytest.raises(KilledError):
            train_shared(trunk_base(), training(), small_pool(), path, quality, killing)
    found = train_shared(trunk_base(), training(), small_pool(), path, quality)
    assert same(whole, found)
    assert found.made_by == whole.made_by
    assert (found.steps, found.base_sha256) == (10, trunk_base().base_sha256)
    if kills == (8, 9, 10):
        assert begun == [*range(1, 9), 7, 8, 9, 7, 8, 9, 10]  # each goes on from the checkpoint, also one made meanwhile


@pytest.mark.parametrize("interrupted", [0, 4, 8, 10])
def test_ctrl_c_loses_nothing(whole, tmp_path, interrupted):
    """Also in the middle of a report, which is made later."""
    path, begun = tmp_path / "checkpoint.safetensors", []

    def interrupt(state):
        if state.steps == interrupted:
            raise KeyboardInterrupt
        return quality(state)

    with pytest.raises(KeyboardInterrupt):
        train_shared(trunk_base(), training(), small_pool(), path, interrupt)
    found = train_shared(trunk_base(), training(), small_pool(), path, quality, lambda *step: begun.append(step[0]))
    assert begun == list(range(interrupted + 1, 11))
    assert same(whole, found)
    assert found.made_by == whole.made_by


def test_quality_is_reported_from_the_first_step_to_the_last(whole):
    assert [report["step"] for report in whole.made_by["reports"]] == [0, 4, 8, 10]
    assert whole.made_by["training"] == KEY
    first, *_, last = (report["quality_db"]["2 bits"] for report in whole.made_by["reports"])
    assert first == pytest.approx(quality(initial_shared(trunk_base(), widths_of(trunk_base())))["2 bits"], abs=1e-3)
    assert last == pytest.approx(quality(whole)["2 bits"], abs=1e-3)


def test_what_is_trained_is_what_is_kept(tmp_path):
    """The loss of the first step, on all examples, is that of the narrowest state before it."""
    losses, pool = [], small_pool()
    config = CONFIG.model_copy(update={"steps": 1, "batch_size": len(pool)})
    start = initial_shared(trunk_base(), widths_of(trunk_base()))
    train_shared(trunk_base(), training(config), pool, tmp_path / "c", quality, lambda *step: losses.append(step[2]))
    assert losses == [pytest.approx(loss_at(start, 2, 6), abs=1e-3)]


def test_trained_scales_of_weights_are_those_that_files_store(whole):
    scales = [tensor for name, tensor in whole.parameters.items() if ".weight.scale@" in name]
    assert scales
    assert all(torch.equal(scale, scale.bfloat16().float()) for scale in scales)


def test_biases_stay_centred(whole):
    """A layer's mean output for the means of its inputs is the same at every width."""
    base = trunk_base()
    judged = 0
    for layer, mean in base.means.items():
        outputs = []
        for bits in (2, 4, 8):
            state = whole.at(uniform(base.sites, bits, 8)).parameters
            rounded = quantize_weight(state[f"{layer}.weight"], state[f"{layer}.weight.scale"], bits).value
            groups, values = mean.shape
            outputs.append((rounded.reshape(groups, -1, values) @ mean[:, :, None]).flatten() + state[f"{layer}.bias"])
        torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(outputs[0], outputs[2], rtol=1e-4, atol=1e-5)
        judged += 1
    assert judged == len(base.sites.weights)


def test_a_base_without_means_trains_too(tmp_path):
    base, config = replace(trunk_base(), means={}), CONFIG.model_copy(update={"steps": 2})
    found = train_shared(base, training(config), small_pool(), tmp_path / "c", quality)
    assert torch.equal(*(found.bias("input_proj.weight", bits) for bits in (2, 8)))
    assert torch.equal(found.bias("input_proj.weight", 2), found.parameters["input_proj.output"])


def test_another_network_trains(tmp_path):
    """Norms, whose biases are no layers', and a transposed convolution, whose inputs are not measured."""
    base = graph_base(Gated)
    statistics = input_statistics(base.graph, [FEATURES])
    base = replace(base, means={name: found.mean.float() for name, found in statistics.items()})
    widths = widths_of(base, (2, 32), (8, 16, 32))
    config = CONFIG.model_copy(update={"steps": 4, "scale_learning_rate": 0.05})
    start = initial_shared(base, widths)
    found = train_shared(base, training(config, widths=widths), small_pool(), tmp_path / "c", lambda state: {})
    unchanged = {name for name, tensor in found.parameters.items() if torch.equal(tensor, start.parameters[name])}
    assert all(".zero_point@" in name or name.endswith((".scale@16", ".mean")) for name in unchanged)
    assert found.at(uniform(base.sites, 32, 32)).parameters.keys() == base.graph.parameters.keys()


def test_training_gains_at_narrow_widths_and_changes_neither_base_nor_zero_points(tmp_path):
    base = trunk_base()
    before = {name: tensor.clone() for name, tensor in base.graph.parameters.items()}
    start = initial_shared(base, widths_of(base))
    config = CONFIG.model_copy(update={"steps": 60, "scale_learning_rate": 0.01})
    found = train_shared(base, training(config), small_pool(), tmp_path / "c.safetensors", quality)
    for widths in ((2, 6), (2, 8)):
        assert loss_at(found, *widths) < loss_at(start, *widths) - 0.05, widths
    assert all(torch.equal(base.graph.parameters[name], tensor) for name, tensor in before.items())
    for name, tensor in found.parameters.items():
        assert tensor.dtype == start.parameters[name].dtype
        assert torch.equal(tensor, start.parameters[name]) == (".zero_point@" in name or name.endswith(".mean")), name


def test_the_turns_are_narrowest_random_widest_random():
    plan = training()
    for step in (0, 4, 8):
        assert {bits for site, bits in plan.allocation(step).widths if is_weight(site)} == {2}
        assert {bits for site, bits in plan.allocation(step).widths if not is_weight(site)} == {6}
        assert set(plan.allocation(step + 2).by_site.values()) == {8}
    assert len({plan.allocation(step) for step in (1, 3, 5, 7)}) == 4
    assert plan.allocation(5) == training().allocation(5) != training(seed=1).allocation(5)


def test_random_allocations_cover_the_mean_widths_up_to_four_and_a_half_bits():
    widths = dict.fromkeys((f"{number}.weight" for number in range(200)), (2, 3, 4, 5, 6, 8))
    plan = training(widths=widths | {"trunk": (8, 16)})
    means = [np.mean([bits for _, bits in plan.allocation(step).widths[:-1]]) for step in range(1, 200, 2)]
    assert 1.99 < min(means) < 2.2
    assert 4.2 < max(means) < 4.9
    assert np.histogram(means, bins=5, range=(2.0, 4.5))[0].min() > 8
    trunk = [plan.allocation(step).by_site["trunk"] for step in range(1, 200, 2)]
    assert 30 < trunk.count(8) < 70


@pytest.mark.parametrize("weights", [(3,), (2, 3), (5, 8)])
def test_fewer_widths_are_drawn_too(weights):
    plan = training(widths=widths_of(trunk_base(), weights, (8,)))
    drawn = [plan.allocation(step) for step in range(1, 60, 2)]
    assert {bits for each in drawn for site, bits in each.widths if is_weight(site)} == set(weights)
    assert {bits for each in drawn for site, bits in each.widths if not is_weight(site)} == {8}


def test_a_group_has_one_width():
    first, second = trunk_base().sites.weights[:2]
    plan = training(groups=((first, second),))
    drawn = [plan.allocation(step).by_site for step in range(1, 60, 2)]
    assert all(each[first] == each[second] for each in drawn)
    assert len({each[first] for each in drawn}) == 3
    assert list(drawn[0]) == list(plan.widths)


@pytest.mark.parametrize("mean", [2.0, 2.3, 4.0, 4.8, 7.9, 8.0])
def test_widths_are_drawn_with_the_largest_entropy_for_their_mean(mean):
    """Of no other distribution of this mean is the entropy higher: along any direction that keeps the mean it falls."""
    widths = (2, 3, 4, 5, 6, 8)
    found, bits = _spread(widths, mean), np.array(widths, float)
    assert found @ bits == pytest.approx(mean, abs=1e-6)
    assert found.sum() == pytest.approx(1.0)
    if 2.0 < mean < 8.0:
        slopes = np.diff(np.log(found)) / np.diff(bits)
        assert slopes == pytest.approx(slopes[0], rel=1e-6, abs=1e-9)


def test_a_diverging_loss_is_named_in_one_line_and_leaves_no_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(shared_module, "CHECKPOINT_STEPS", 1)
    path = tmp_path / "checkpoint.safetensors"
    config = CONFIG.model_copy(update={"learning_rate": 1.0, "scale_learning_rate": 1.0})
    pool = replace(small_pool(), target=torch.full_like(small_pool().target, torch.nan))
    with pytest.raises(UserError, match=r"^the loss became nan at step 1 of 10 .*shared.learning_rate than 1.0") as refused:
        train_shared(trunk_base(), training(config), pool, path, lambda state: {})
    assert "\n" not in str(refused.value)
    assert not path.exists()


def test_foreign_and_damaged_checkpoints_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(shared_module, "CHECKPOINT_STEPS", 2)
    path = tmp_path / "checkpoint.safetensors"
    config = CONFIG.model_copy(update={"steps": 3})

    def train(plan):
        return train_shared(trunk_base(), plan, small_pool(), path, lambda state: {})

    train(training(config))
    with pytest.raises(UserError, match="checkpoint of another training of a shared network"):
        train(training(config, key="o" * 64))
    with pytest.raises(UserError, match=r"not a checkpoint of the training of a shared network .*(missing|unknown)"):
        train(training(config, widths=widths_of(trunk_base(), (2, 4))))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="it changed since it was written"):
        train(training(config))


def test_a_pool_of_another_base_is_refused(tmp_path):
    with pytest.raises(ValueError, match="training mixtures for base bbbb"):
        train_shared(trunk_base(), training(), replace(small_pool(), base_sha256="b" * 64), tmp_path / "c", quality)
