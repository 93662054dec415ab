"""Quantization-aware training lowers the loss, repeatably, and says when it cannot."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from hwsearch.errors import UserError
from hwsearch.experiment import FLOAT_BITS, QatConfig
from hwsearch.network.operations import Add
from hwsearch.network.run import run
from hwsearch.separator.allocation import BitAllocation
from hwsearch.separator.trained import initial_state, trained_network
from hwsearch.training import qat
from hwsearch.training.distillation import Teacher, distilled_loss
from hwsearch.training.loss import si_snr
from hwsearch.training.qat import TrainingDivergedError, TrainingOptions, batches, train_quantized
from hwsearch.training.trainable import TrainableNetwork
from tests.separator.small import CAUSAL, PRELU, RELU, uniform
from tests.training.pools import small_base, small_pool

CONFIG = QatConfig(batch_size=2, learning_rate=3e-4, scale_learning_rate=1e-3)


def loss_of(base, state, pool, distillation=0.5):
    with torch.no_grad():
        network = TrainableNetwork(base.graph, base.sites, state.allocation)
        config = QatConfig(distillation=distillation)
        return float(distilled_loss(Teacher(base), network, state.parameters, pool, range(len(pool)), config))


@pytest.mark.parametrize(
    ("config", "widths"),
    [
        *((RELU, widths) for widths in ((3, 8), (4, FLOAT_BITS), (FLOAT_BITS, FLOAT_BITS))),
        *((PRELU, widths) for widths in ((2, 4), (FLOAT_BITS, 4))),
        (CAUSAL, (2, 4)),
    ],
)
def test_training_lowers_the_loss(config, widths):
    base, pool, allocation = small_base(config), small_pool(config), uniform(config, *widths)
    # A network that nothing is quantized in is its own teacher; only the target is left to come nearer to.
    share = 0.0 if widths == (FLOAT_BITS, FLOAT_BITS) else 0.5
    state = train_quantized(base, allocation, pool, CONFIG.model_copy(update={"distillation": share}), 20, 0)
    assert (state.allocation, state.base_sha256, state.steps) == (allocation, base.base_sha256, 20)
    assert loss_of(base, state, pool, share) < loss_of(base, initial_state(base, allocation), pool, share) - 0.02


def test_the_loss_mixes_target_and_teacher():
    """Computed from the Brevitas network, with the base itself as the teacher."""
    base, pool = small_base(), small_pool()
    state = initial_state(base, uniform(RELU, 4, 32))
    mixtures, targets = pool.mixtures[:3].float(), pool.target[:3].float()
    with torch.no_grad():
        estimates = base.separator.separate(mixtures, pool.doa_deg[:3], trained_network(base, state))
        teacher = base.separator(mixtures, pool.doa_deg[:3])
    to_target, to_teacher = -float(si_snr(estimates, targets).mean()), -float(si_snr(estimates, teacher).mean())
    assert to_teacher < to_target - 1.0
    network = TrainableNetwork(base.graph, base.sites, state.allocation)
    for share in (0.0, 0.3, 1.0):
        found = float(distilled_loss(Teacher(base), network, state.parameters, pool, (0, 1, 2), QatConfig(distillation=share)))
        assert found == pytest.approx((1 - share) * to_target + share * to_teacher, abs=0.02)  # the pool keeps 16 bits


def test_the_loss_compares_the_outputs_of_blocks():
    """Computed from the base's graph with rounded weights. A network in full precision has no error but the floor."""
    base, pool = small_base(), small_pool()
    blocks = [operation.name for operation in base.graph.operations if isinstance(operation, Add)]
    assert len(blocks) > 1
    plain, weighed = QatConfig(), QatConfig(block_distillation=0.25)
    batch = pool.batch((0, 1), base.separator)
    for bits in (3, FLOAT_BITS):
        state = initial_state(base, uniform(RELU, bits, FLOAT_BITS))
        network = TrainableNetwork(base.graph, base.sites, state.allocation)
        losses = [
            float(distilled_loss(Teacher(base), network, state.parameters, pool, (0, 1), config)) for config in (plain, weighed)
        ]
        found: list[dict[str, torch.Tensor]] = []
        for graph in (base.graph, base.weights.graph_at(state.allocation)):
            parameters = dict(graph.parameters)
            for site in state.allocation.quantized(base.sites.weights) if graph is not base.graph else ():
                parameters[site] = base.weights.layer(site.removesuffix(".weight"), bits).weight.value
            found.append({})
            run(
                replace(graph, parameters=parameters),
                {graph.inputs[0]: batch.analysis.normalised},
                found[-1].setdefault,
            )
        errors = [
            10 * np.log10(float((b - a).square().sum() / (a - a.mean((0, 2), keepdim=True)).square().sum()) + 1e-8)
            for a, b in ((found[0][name], found[1][name]) for name in blocks)
        ]
        assert losses[1] - losses[0] == pytest.approx(0.25 * np.mean(errors), abs=1e-3 if bits == 3 else 0.5)


def test_training_starts_from_the_base_to_train():
    """The loss of the first step, on all examples, is that of this base's state; the result runs on the base that was given."""
    other, pool, allocation = small_base(), small_pool(), uniform(RELU, 3, 8)
    moved = {name: tensor * 1.1 if name.endswith(".weight") else tensor for name, tensor in other.graph.parameters.items()}
    start = replace(other, graph=replace(other.graph, parameters=moved))
    base, losses = replace(other, untrained=start), []
    options = TrainingOptions(lambda *step: losses.append(step[2]))
    config = CONFIG.model_copy(update={"batch_size": len(pool)})
    state = train_quantized(base, allocation, pool, config, 1, 0, options=options)
    found = float(
        distilled_loss(
            Teacher(start),
            TrainableNetwork(start.graph, start.sites, allocation),
            initial_state(start, allocation).parameters,
            pool,
            range(len(pool)),
            config,
        )
    )
    assert losses == [pytest.approx(found, abs=1e-3)]
    assert abs(loss_of(base, initial_state(base, allocation), pool) - found) > 0.01
    x = pool.batch((0, 1), base.separator).analysis.normalised
    with torch.no_grad():
        assert torch.equal(trained_network(base, state)(x), trained_network(start, state)(x))


def test_the_same_arguments_give_the_same_state_bit_for_bit():
    base, pool, allocation = small_base(), small_pool(), uniform(RELU, 3, 6)
    first, second = (train_quantized(base, allocation, pool, CONFIG, 5, 3) for _ in range(2))
    assert all(torch.equal(second.parameters[name], tensor) for name, tensor in first.parameters.items())
    other = train_quantized(base, allocation, pool, CONFIG, 5, 4)
    assert not torch.equal(other.parameters["mask_head.weight"], first.parameters["mask_head.weight"])


def test_training_changes_neither_base_nor_warm_start():
    base, pool = small_base(PRELU), small_pool(PRELU)
    before = {name: tensor.clone() for name, tensor in base.graph.parameters.items()}
    start = train_quantized(base, uniform(PRELU, 4, 8), pool, CONFIG, 2, 0)
    kept = {name: tensor.clone() for name, tensor in start.parameters.items()}
    train_quantized(base, uniform(PRELU, 3, 8), pool, CONFIG, 2, 0, start=start)
    assert all(torch.equal(base.graph.parameters[name], tensor) for name, tensor in before.items())
    assert all(torch.equal(start.parameters[name], tensor) for name, tensor in kept.items())


def test_a_warm_start_begins_where_the_other_ended():
    base, pool, allocation = small_base(), small_pool(), uniform(RELU, 3, 6)
    start = train_quantized(base, allocation, pool, CONFIG, 30, 0)
    losses = []
    narrower = BitAllocation.of({**start.allocation.by_site, "mask_head.weight": 2})
    state = train_quantized(
        base,
        narrower,
        pool,
        CONFIG.model_copy(update={"batch_size": 6}),
        1,
        0,
        start=start,
        options=TrainingOptions(on_step=lambda *step: losses.append(step)),
    )
    assert state.steps == 31
    assert losses == [(1, 1, pytest.approx(loss_of(base, initial_state(base, narrower, start), pool)))]
    assert losses[0][2] < loss_of(base, initial_state(base, narrower), pool)


def test_zero_points_and_absent_grids_stay():
    base, pool, allocation = small_base(), small_pool(), uniform(RELU, 32, 8)
    before, after = initial_state(base, allocation), train_quantized(base, allocation, pool, CONFIG, 3, 0)
    assert after.parameters.keys() == before.parameters.keys()
    for name, tensor in after.parameters.items():
        assert tensor.dtype == before.parameters[name].dtype
        assert torch.equal(tensor, before.parameters[name]) == name.endswith(".zero_point"), name
        assert not tensor.requires_grad


def test_a_rate_that_is_too_high_is_named():
    base, pool = small_base(), small_pool()
    config = QatConfig(batch_size=2, learning_rate=1.0, scale_learning_rate=1.0, gradient_clip=1e30)
    broken = replace(pool, target=torch.full_like(pool.target, torch.nan))
    with pytest.raises(
        TrainingDivergedError, match=r"^the loss became nan at training step 1 of 9; .*qat.learning_rate than 1.0"
    ):
        train_quantized(base, uniform(RELU, 4, 8), broken, config, 9, 0)


def test_a_pool_of_another_base_is_refused():
    with pytest.raises(ValueError, match="training mixtures for base bbbb"):
        train_quantized(small_base(), uniform(RELU, 4, 8), replace(small_pool(), base_sha256="b" * 64), CONFIG, 1, 0)


def test_every_pass_visits_every_example_once():
    found = [number for batch in islice(batches(5, 3, 1), 10) for number in batch]
    passes = [found[first : first + 5] for first in range(0, 30, 5)]
    assert all(sorted(order) == list(range(5)) for order in passes)
    assert len({tuple(order) for order in passes}) > 3
    assert found == [number for batch in islice(batches(5, 3, 1), 10) for number in batch]
    assert found != [number for batch in islice(batches(5, 3, 2), 10) for number in batch]
    # A batch may be larger than the pool.
    assert sorted(next(batches(2, 6, 0))) == [0, 0, 0, 1, 1, 1]


def test_a_batch_is_what_the_front_end_makes_of_its_mixtures():
    base, pool = small_base(), small_pool()
    with torch.no_grad():
        analysis = base.separator.analyse(pool.mixtures[:4].float(), pool.doa_deg[:4])
    batch = pool.batch((0, 1, 2, 3), base.separator)
    # Sixteen bits show in the phases of bins that hold almost nothing.
    assert float((batch.analysis.normalised - analysis.normalised).abs().mean()) < 1e-3
    torch.testing.assert_close(batch.analysis.context[0], analysis.context[0])
    torch.testing.assert_close(batch.analysis.context[1], analysis.context[1], rtol=5e-3, atol=5e-3)


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(second[name], tensor) for name, tensor in first.items())


class KilledError(Exception):
    """The process dies here."""


def killed_after(count):
    """What hears of steps, and kills the training after one of them."""

    def on_step(step, steps, loss):
        if step == count:
            raise KilledError

    return on_step


def nearness(state):
    """A score that falls as training goes on, so that the first state that is judged stays the best."""
    start = initial_state(small_base(), state.allocation).parameters
    return -float((state.parameters["mask_head.weight"] - start["mask_head.weight"]).norm())


@pytest.mark.parametrize("judge", [None, nearness])
@pytest.mark.parametrize("stops", [(3,), (6, 17), (18, 19, 20)])
def test_a_training_that_was_killed_goes_on_with_the_same_bits(tmp_path, monkeypatch, stops, judge):
    monkeypatch.setattr(qat, "CHECKPOINT_STEPS", 3)
    base, pool, allocation, path = small_base(), small_pool(), uniform(RELU, 2, 6), tmp_path / "checkpoint"
    whole = train_quantized(base, allocation, pool, CONFIG, 20, 0, options=TrainingOptions(judge=judge))
    for stop in stops:
        options = TrainingOptions(killed_after(stop), path, judge)
        with pytest.raises(KilledError):
            train_quantized(base, allocation, pool, CONFIG, 20, 0, options=options)
        assert path.is_file() == (stop > 3)
    seen = []
    options = TrainingOptions(lambda step, *_: seen.append(step), path, judge)
    resumed = train_quantized(base, allocation, pool, CONFIG, 20, 0, options=options)
    assert seen[0] == (stops[-1] - 1) // 3 * 3 + 1
    assert same(resumed.parameters, whole.parameters)
    assert resumed.steps == whole.steps == 20


@pytest.mark.parametrize("during", ["a step", "a judgement"])
def test_a_training_that_is_interrupted_keeps_every_step(tmp_path, monkeypatch, during):
    base, pool, allocation, path = small_base(), small_pool(), uniform(RELU, 3, 6), tmp_path / "checkpoint"
    whole = train_quantized(base, allocation, pool, CONFIG, 10, 0, options=TrainingOptions(judge=nearness))
    with monkeypatch.context() as patch:
        looks = iter([*([None] * 9), KeyboardInterrupt()])

        def look():
            if (found := next(looks)) is not None:
                raise found

        def judge(state):
            raise KeyboardInterrupt

        patch.setattr(qat, "checkpoint", look)
        options = TrainingOptions(None, path, nearness if during == "a step" else judge)
        with pytest.raises(KeyboardInterrupt):
            train_quantized(base, allocation, pool, CONFIG, 10, 0, options=options)
    seen = []
    options = TrainingOptions(lambda step, *_: seen.append(step), path, nearness)
    resumed = train_quantized(base, allocation, pool, CONFIG, 10, 0, options=options)
    assert seen == ([10] if during == "a step" else [9, 10])
    assert same(resumed.parameters, whole.parameters)


def test_the_best_state_is_returned_and_of_equal_ones_the_last():
    base, pool, allocation = small_base(), small_pool(), uniform(RELU, 3, 6)
    final = train_quantized(base, allocation, pool, CONFIG, 10, 0)
    for scores, chosen in (((1.0, 3.0, 2.0), 1), ((3.0, 1.0, 3.0), 2), ((3.0, 2.0, 1.0), 0), ((float("nan"), 1.0, 0.0), 1)):
        states, left = [], iter(scores)

        def judge(state, states=states, left=left):
            states.append(state)
            return next(left)

        found = train_quantized(base, allocation, pool, CONFIG, 10, 0, options=TrainingOptions(judge=judge))
        assert len(states) == 3
        assert same(found.parameters, states[chosen].parameters)
        assert same(states[2].parameters, final.parameters)
        assert not same(states[1].parameters, final.parameters)


def test_a_checkpoint_of_another_training_or_a_damaged_one_is_refused(tmp_path):
    base, pool, path = small_base(), small_pool(), tmp_path / "checkpoint"

    def train(bits=3, config=CONFIG, steps=60, seed=0, start=None, stop=None):
        options = TrainingOptions(None if stop is None else killed_after(stop), path)
        return train_quantized(base, uniform(RELU, bits, 6), pool, config, steps, seed, start=start, options=options)

    with pytest.raises(KilledError):
        train(stop=51)
    content = path.read_bytes()
    start = train_quantized(base, uniform(RELU, 4, 6), pool, CONFIG, 1, 0)
    slower = CONFIG.model_copy(update={"learning_rate": 1e-4})
    refusal = r"checkpoint: a checkpoint of another training of a candidate; .*; delete it to train from the start$"
    for other in ({"bits": 4}, {"config": slower}, {"steps": 61}, {"seed": 1}, {"start": start}):
        with pytest.raises(UserError, match=refusal):
            train(**other)
    assert path.read_bytes() == content
    refusal = r"checkpoint: not a checkpoint of the training of a candidate.*; delete it to train from the start$"
    for damaged in (content[:-9], b"nothing", content[:-4] + b"abcd"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=refusal):
            train()
    path.write_bytes(content)
    assert train().steps == 60


def test_a_training_that_diverges_leaves_no_checkpoint(tmp_path, monkeypatch):
    base, pool, path = small_base(), small_pool(), tmp_path / "checkpoint"
    broken = replace(pool, target=pool.target.clone())
    broken.target[0] = torch.nan
    config = CONFIG.model_copy(update={"batch_size": 1})
    order = batches(len(pool), 1, 0)
    first = next(step for step, (number,) in enumerate(order) if number == 0)
    assert first > 1
    monkeypatch.setattr(qat, "CHECKPOINT_STEPS", 1)
    there = []
    options = TrainingOptions(lambda *_: there.append(path.is_file()), path)
    with pytest.raises(TrainingDivergedError, match=f"at training step {first + 1} of 60"):
        train_quantized(base, uniform(RELU, 4, 8), broken, config, 60, 0, options=options)
    assert there[-1]
    assert not path.exists()
