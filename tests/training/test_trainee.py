"""Parameters in training: Adam's steps, what stays, and an exact resume."""

import copy

import pytest
import torch

from hwsearch.files.tensors import read_tensors, write_tensors
from hwsearch.training.trainee import Trainee

CPU = torch.device("cpu")


def parameters():
    random = torch.Generator().manual_seed(0)
    return {
        "a.weight": torch.randn(3, 4, generator=random),
        "b.weight": torch.randn(4, generator=random),
        "a.weight.scale@2": torch.rand(3, 1, generator=random) + 0.1,
        "c.scale": torch.tensor(0.3),
        "c.zero_point": torch.tensor(3, dtype=torch.int32),
    }


def loss_of(found, step):
    """Even steps do not read `b.weight`, odd ones not the scale of two bits."""
    total = (found["a.weight"] ** 2).sum() * found["c.scale"] * (step + 1)
    other = (found["b.weight"] - 1).abs().sum() if step % 2 else (found["a.weight.scale@2"] * found["a.weight"]).sum()
    return total + other


def train(trainee, first, last):
    for step in range(first, last):
        trainee.step(loss_of(trainee.parameters(), step), 0.02, 0.03, 1.5)


def test_steps_are_those_of_adam_with_logarithms_of_scales():
    """Against Adam's own formulas (arXiv 1412.6980, algorithm 1), in double precision."""
    trainee = Trainee(parameters(), CPU, {"b.weight": 3.0})
    train(trainee, 0, 5)
    start = {name: tensor.double() for name, tensor in parameters().items() if name != "c.zero_point"}
    free = {name: (tensor.log() if "scale" in name else tensor) for name, tensor in start.items()}
    moments = {name: (0, torch.zeros_like(tensor), torch.zeros_like(tensor)) for name, tensor in free.items()}
    for step in range(5):
        leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in free.items()}
        loss = loss_of({name: (leaf.exp() if "scale" in name else leaf) for name, leaf in leaves.items()}, step)
        gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()), allow_unused=True), strict=True))
        norm = sum(float((gradient**2).sum()) for gradient in gradients.values() if gradient is not None) ** 0.5
        for name, gradient in gradients.items():
            if gradient is None:
                continue
            clipped = gradient * min(1.0, 1.5 / norm)
            count, mean, square = moments[name]
            count, mean, square = count + 1, 0.9 * mean + 0.1 * clipped, 0.999 * square + 0.001 * clipped**2
            moments[name] = count, mean, square
            rate = 0.03 if "scale" in name else 0.02 * (3.0 if name == "b.weight" else 1.0)
            free[name] = free[name] - rate * (mean / (1 - 0.9**count)) / ((square / (1 - 0.999**count)).sqrt() + 1e-8)
    assert [moments[name][0] for name in free] == [5, 2, 3, 5]
    for name, tensor in trainee.values().items():
        if name != "c.zero_point":
            wanted = free[name].exp() if "scale" in name else free[name]
            torch.testing.assert_close(tensor.double(), wanted, rtol=1e-5, atol=1e-6)


def test_what_has_no_gradient_stays_and_so_do_its_moments():
    trainee = Trainee(parameters(), CPU)
    train(trainee, 0, 2)
    before = trainee.tensors()
    train(trainee, 2, 3)
    after = trainee.tensors()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in after if not name.endswith("b.weight")}
    assert int(after["adam.step.b.weight"]) == 1
    assert {name for name in after if name.startswith("adam")} >= {"adam.exp_avg.b.weight", "adam.exp_avg_sq.c.scale"}


def test_the_fixed_and_the_given_tensors_stay():
    given = parameters()
    trainee = Trainee(given, CPU)
    train(trainee, 0, 3)
    found = trainee.values()
    assert found.keys() == given.keys()
    assert torch.equal(found["c.zero_point"], given["c.zero_point"])
    assert found["c.zero_point"].dtype == torch.int32
    assert all(torch.equal(tensor, given[name]) for name, tensor in parameters().items())
    assert not any(tensor.requires_grad for tensor in found.values())
    assert set(trainee.parameters(["c.scale", "c.zero_point"])) == {"c.scale", "c.zero_point"}


@pytest.mark.parametrize("stop", [0, 1, 4])
def test_a_resumed_training_gives_the_same_bits(tmp_path, stop):
    """After one step, some parameters have no moments yet."""
    whole, first, second = (Trainee(parameters(), CPU, {"b.weight": 1.7}) for _ in range(3))
    train(whole, 0, 8)
    train(first, 0, stop)
    write_tensors(tmp_path / "kept", first.tensors(), "key", {})
    train(second, 0, 3)  # what was there before is gone
    second.take(read_tensors(tmp_path / "kept", "key", "a file")[1])
    train(second, stop, 8)
    wanted = whole.tensors()
    assert second.tensors().keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in second.tensors().items())


def test_the_order_of_parameters_does_not_matter():
    """The sum of the squared norms depends on it in the last bits."""
    random = torch.Generator().manual_seed(1)
    given = {f"p{number:02}": torch.randn(7 + number, generator=random) for number in range(40)}
    found = []
    for shift in range(8):
        names = [*list(given)[shift:], *list(given)[:shift]]
        trainee = Trainee({name: given[name] for name in names}, CPU)
        for _ in range(3):
            read = trainee.parameters()
            trainee.step(torch.stack([(read[name] ** 2).sum() for name in given]).sum(), 0.1, 0.1, 1.0)
        found.append(trainee.tensors())
    assert all(torch.equal(other[name], tensor) for other in found[1:] for name, tensor in found[0].items())


def test_copies_do_not_change_with_training():
    trainee = Trainee(parameters(), CPU)
    train(trainee, 0, 2)
    kept, values = trainee.tensors(), trainee.values()
    before = copy.deepcopy((kept, values))
    other = Trainee(parameters(), CPU)
    other.take(kept)
    train(trainee, 2, 4)
    train(other, 2, 4)
    for now, then in zip((kept, values), before, strict=True):
        assert all(torch.equal(now[name], tensor) for name, tensor in then.items())


def test_tensors_of_other_parameters_are_refused():
    trainee = Trainee(parameters(), CPU)
    train(trainee, 0, 2)
    good = trainee.tensors()
    before = trainee.tensors()
    without = {name: tensor for name, tensor in good.items() if name != "adam.exp_avg.c.scale"}
    for tensors, reason in (
        ({**good, "trained.d": torch.zeros(1)}, "unknown tensor 'trained.d'"),
        ({**good, "trained.c.scale": torch.zeros(2)}, r"'c.scale' is torch.float32 \[2\]; wanted torch.float32 \[\]"),
        (without, "tensors are missing"),
        ({}, "tensors are missing"),
    ):
        with pytest.raises(ValueError, match=reason):
            trainee.take(tensors)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainee.tensors().items())
