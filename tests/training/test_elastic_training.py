"""One training for all structures: what it draws, that it resumes bit for bit, and that narrow networks gain."""

import itertools
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from hwsearch.experiment import QatConfig, SharedConfig
from hwsearch.network.importance import channel_orders
from hwsearch.separator.allocation import uniform
from hwsearch.separator.prepare import PreparedBase
from hwsearch.separator.quantizers import stored_scale
from hwsearch.separator.shared import KeptValues, SharedState, initial_shared, mean_outputs
from hwsearch.separator.trained import TrainedState, initial_state
from hwsearch.training import shared as shared_module
from hwsearch.training.distillation import Teacher, distilled_loss
from hwsearch.training.qat import TrainingOptions, batches, train_quantized
from hwsearch.training.rates import rate_factors, rate_share
from hwsearch.training.shared import SharedTraining, train_shared
from hwsearch.training.trainable import TrainableNetwork
from hwsearch.training.trainee import Trainee
from tests.separator.elastic import elastic_base, values_of
from tests.separator.shared import trunk_base, widths_of
from tests.training.pools import small_pool

CONFIG = SharedConfig(steps=12, batch_size=2, learning_rate=1e-3, report_steps=100)
BASE = elastic_base()
VALUES: KeptValues = {name: (0, 1) if kept[0] == 0 else (4, 8, 16) for name, kept in values_of(BASE.options).items()}
NARROW = {"blocks.1.kept": 0, "blocks.0.expand.channels": 4, "blocks.2.expand.channels": 8}


def training(steps: int = 12, structure: KeptValues = VALUES, base: PreparedBase = BASE, seed: int = 0) -> SharedTraining:
    config = CONFIG.model_copy(update={"steps": steps})
    return SharedTraining(widths_of(base), (), config, QatConfig(), seed, "k" * 64, structure)


def narrow_state(shared: SharedState, structure: Mapping[str, int]) -> tuple[PreparedBase, TrainedState]:
    narrow = BASE.narrowed(structure, shared.orders)
    return narrow, shared.narrowed(BASE, structure).at(uniform(narrow.sites, 8, 8))


def loss_of(shared: SharedState, structure: Mapping[str, int]) -> float:
    """The loss of a narrow network with 8 bits, as a trained state by itself."""
    pool = small_pool()
    narrow, state = narrow_state(shared, structure)
    network = TrainableNetwork(narrow.graph, narrow.sites, state.allocation)
    with torch.no_grad():
        return float(distilled_loss(Teacher(BASE), network, state.parameters, pool, range(len(pool)), QatConfig()))


def same(first: SharedState, second: SharedState) -> bool:
    assert first.parameters.keys() == second.parameters.keys()
    return all(torch.equal(second.parameters[name], tensor) for name, tensor in first.parameters.items())


class KilledError(Exception):
    """In place of a kill."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> SharedState:
    return train_shared(BASE, training(), small_pool(), tmp_path_factory.mktemp("whole") / "c", lambda _: {})


@pytest.mark.parametrize("kills", [(2,), (3, 4), (5, 8), (12,)])
def test_interrupted_training_gives_the_same_bits(
    whole: SharedState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kills: tuple[int, ...]
) -> None:
    """Killed before and behind the step that computes the orders anew, and at the checkpoint before it."""
    monkeypatch.setattr(shared_module, "CHECKPOINT_STEPS", 3)
    assert training().order_step == 3
    path = tmp_path / "checkpoint.safetensors"
    for kill in kills:

        def killing(step: int, steps: int, loss: float, kill: int = kill) -> None:
            if step == kill:
                raise KilledError

        with pytest.raises(KilledError):
            train_shared(BASE, training(), small_pool(), path, lambda _: {}, killing)
    found = train_shared(BASE, training(), small_pool(), path, lambda _: {})
    assert same(whole, found)
    assert (found.structure, found.steps) == (VALUES, 12)


def test_orders_are_computed_anew_from_the_weights_of_that_step(whole: SharedState, tmp_path: Path) -> None:
    seen: list[SharedState] = []

    def keep(state: SharedState) -> dict[str, float]:
        seen.append(state)
        return {}

    plan = training()
    plan = replace(plan, config=plan.config.model_copy(update={"report_steps": 1}))
    found = train_shared(BASE, plan, small_pool(), tmp_path / "c", keep)
    assert same(found, whole)
    graph = BASE.graph
    parameters = {name: seen[3].parameters.get(name, tensor) for name, tensor in graph.parameters.items()}
    wanted = channel_orders(replace(graph, parameters=parameters), BASE.options, BASE.squares)
    assert [state.orders for state in seen[:4]] == [dict(BASE.orders)] * 4
    assert [state.orders for state in seen[4:]] == [wanted] * 9


def test_what_is_trained_is_what_is_kept(tmp_path: Path) -> None:
    """The loss of the first step, on all examples, is that of the narrow state before it."""
    losses: list[float] = []
    pool, plan = small_pool(), replace(training(1), widths=widths_of(BASE, (8,), (8,)))
    plan = replace(plan, config=plan.config.model_copy(update={"batch_size": len(pool)}))
    start = initial_shared(BASE, plan.widths, VALUES)
    train_shared(BASE, plan, pool, tmp_path / "c", lambda _: {}, lambda *step: losses.append(step[2]))
    structure = BASE.options.relevant(plan.configuration(0).kept)
    assert structure
    assert losses == [pytest.approx(loss_of(start, structure), abs=1e-3)]


def test_narrow_networks_gain(tmp_path: Path) -> None:
    values = {name: (NARROW.get(name, kept[-1]), kept[-1]) for name, kept in VALUES.items()}
    values = {name: kept for name, kept in values.items() if kept[0] != kept[-1]}
    start = initial_shared(BASE, widths_of(BASE), values)
    found = train_shared(BASE, training(80, values), small_pool(), tmp_path / "c", lambda _: {})
    assert loss_of(found, NARROW) < loss_of(start, NARROW) - 0.1
    assert loss_of(found, {}) < loss_of(start, {}) + 0.1


@pytest.mark.parametrize("kind", ["prelu", "transposed-makes", "transposed-reads"])
def test_other_networks_train(tmp_path: Path, kind: str) -> None:
    base = elastic_base(kind)
    start = initial_shared(base, widths_of(base), values_of(base.options))
    plan = training(8, values_of(base.options), base)
    found = train_shared(base, plan, small_pool(), tmp_path / "c", lambda _: {})
    for name, tensor in found.parameters.items():
        if "@" not in name and not name.endswith(".order"):
            assert torch.equal(tensor, start.parameters[name]) == name.endswith(".mean"), name


def test_without_a_structure_training_is_that_of_bit_widths_alone(tmp_path: Path) -> None:
    """The same bits as a loop that knows nothing of structures."""
    base, pool, steps = trunk_base(), small_pool(), 6
    plan = training(steps, {}, base)
    start = initial_shared(base, plan.widths)
    outputs = mean_outputs(base)
    beside = (".mean", ".output")
    trained = {name: tensor for name, tensor in start.parameters.items() if not name.endswith(beside)} | outputs
    trainee = Trainee(trained, base.device, rate_factors(base.graph))
    for step, examples in zip(range(steps), batches(len(pool), 2, 0), strict=False):
        allocation = plan.allocation(step)
        names = {name: name for name in (*base.graph.parameters, *outputs)}
        for site, bits in allocation.widths:
            parts = ("scale",) if site.endswith(".weight") else ("scale", "zero_point")
            names |= {f"{site}.{part}": f"{site}.{part}@{bits}" for part in parts}
        found = trainee.parameters(names.values())
        network = TrainableNetwork(base.graph, base.sites, allocation, base.means)
        parameters = {name: found[shared] for name, shared in names.items()}
        loss = distilled_loss(Teacher(base), network, parameters, pool, examples, plan.qat)
        share = rate_share(step, steps)
        rates = share * plan.config.learning_rate, share * plan.config.scale_learning_rate
        trainee.step(loss, *rates, plan.qat.gradient_clip)
    values = trainee.values()
    state = train_shared(base, plan, pool, tmp_path / "c", lambda _: {})
    for name, tensor in state.parameters.items():
        if name.endswith(".mean"):
            continue
        wanted = values[name.replace(".output", ".bias") if name.endswith(".output") else name]
        wanted = stored_scale(wanted) if ".weight.scale@" in name else wanted
        assert torch.equal(tensor, wanted), name


def test_the_turns_are_random_random_whole_and_either() -> None:
    plan = training(400)
    structures = [plan.configuration(step).kept for step in range(400)]
    assert not any(structures[2::4])
    assert all(map(any, [structures[0::4], structures[1::4], structures[3::4]]))
    assert sum(bool(each) for each in structures[0::4]) > 90
    assert 30 < sum(bool(each) for each in structures[3::4]) < 70
    for step, structure in enumerate(structures):
        configuration = plan.configuration(step)
        assert configuration.allocation == training(400, {}).allocation(step) == plan.allocation(step)
        assert list(structure) == [name for name in VALUES if name in structure]
        assert all(kept in VALUES[name][:-1] for name, kept in structure.items())
        assert configuration == training(400).configuration(step)
    assert structures != [training(400, seed=1).configuration(step).kept for step in range(400)]


def test_random_structures_are_of_all_sizes() -> None:
    values = {f"{number}.channels": (8, 16, 24, 32) for number in range(100)} | {
        f"{number}.kept": (0, 1) for number in range(100)
    }
    plan = training(400, values)
    shares = []
    for step in itertools.chain(range(0, 400, 4), range(1, 400, 4)):
        kept = plan.configuration(step).kept
        channels = np.mean([kept.get(name, 32) for name in values if name.endswith(".channels")]) / 32
        shares.append((channels, np.mean([kept.get(name, 1) for name in values if name.endswith(".kept")])))
    channels, blocks = np.array(shares).T
    assert channels.min() < 0.32
    assert channels.max() > 0.93
    assert 0.25 < blocks.min() < 0.5
    assert blocks.max() > 0.95
    assert np.histogram(channels, bins=5, range=(0.25, 1.0))[0].min() > 20
    assert np.histogram(blocks, bins=4, range=(0.4, 1.0))[0].min() > 25
    assert abs(np.corrcoef(channels, blocks)[0, 1]) < 0.25


def _keep_loss(losses: list[float], step: int, steps: int, loss: float) -> None:
    losses.append(loss)


def test_a_narrowed_candidate_is_trained_towards_the_whole_network() -> None:
    """Also where outputs of blocks are compared: only those that both have count."""
    structure, pool = {"blocks.1.kept": 0, "blocks.0.expand.channels": 4}, small_pool()
    narrow = BASE.narrowed(structure)
    allocation = uniform(narrow.sites, 4, 8)
    for block_distillation in (0.0, 0.5):
        config = QatConfig(batch_size=len(pool), learning_rate=1e-3, block_distillation=block_distillation)
        losses: list[float] = []
        options = TrainingOptions(partial(_keep_loss, losses))
        state = train_quantized(narrow, allocation, pool, config, 1, 0, options=options)
        assert state.parameters["blocks.0.project.weight"].shape == (8, 4, 1)
        start = initial_state(narrow, allocation)
        network = TrainableNetwork(narrow.graph, narrow.sites, allocation)
        with torch.no_grad():
            wanted = distilled_loss(Teacher(BASE), network, start.parameters, pool, range(len(pool)), config)
        assert losses == [pytest.approx(float(wanted), abs=1e-3)]


def test_outputs_of_blocks_with_other_channels_do_not_count() -> None:
    teacher, x = Teacher(BASE), torch.randn(BASE.separator.front_end.inputs, 2, 20)
    network = TrainableNetwork(BASE.graph, BASE.sites, uniform(BASE.sites, 32))
    _, sums = network.watched(BASE.graph.parameters, x, teacher.blocks)
    first, *_ = sums
    doubled = {name: 2 * tensor for name, tensor in sums.items()}
    narrow = {**doubled, first: doubled[first][:4]}
    without = {name: tensor for name, tensor in doubled.items() if name != first}
    assert float(teacher.block_error(x, narrow)) == float(teacher.block_error(x, without)) != 0.0
    assert float(teacher.block_error(x, {first: doubled[first][:4]})) == 0.0
