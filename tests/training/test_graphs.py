"""Networks that are no TCN are trained at any allocation, and what training leaves is kept, scored and begun from again."""

from dataclasses import replace

import pytest
import torch

from hwsearch.experiment import FLOAT_BITS, QatConfig
from hwsearch.network.operations import TransposedConvolution
from hwsearch.network.run import run
from hwsearch.separator.fast import FastNetwork
from hwsearch.separator.trained import TrainedState, initial_state, load_trained, save_trained, trained_mask_function
from hwsearch.training.qat import TrainingOptions, train_quantized
from hwsearch.training.trainable import TrainableNetwork
from tests.separator.bfloat16 import next_bfloat16
from tests.training.graphs import FEATURES, Gated, Pooled, cycled, graph_base
from tests.training.pools import small_pool

WIDTHS = (2, 4, 8, FLOAT_BITS), (8, 4, FLOAT_BITS)


def straight_through(x, scale, low, high):
    """A value on a grid, with autograd's gradients but for the rounding, which has that of the identity."""
    quotient = x / scale
    return (quotient + (quotient.round() - quotient).detach()).clamp(low, high) * scale


def rounded_run(base, allocation, parameters, x):
    """The graph with everything that has a width rounded, one thing after another."""
    widths, rounded = allocation.by_site, dict(parameters)
    for site in base.sites.weights:
        layer = base.graph.by_name[site.removesuffix(".weight")]
        bias, read = f"{layer.name}.bias", base.sites.read_by(layer)
        if widths[site] != FLOAT_BITS:
            scale, limit = parameters[f"{site}.scale"], 2 ** (widths[site] - 1) - 1
            rounded[site] = straight_through(parameters[site], scale, -limit, limit)
            if widths[read] != FLOAT_BITS:
                groups = layer.groups if isinstance(layer, TransposedConvolution) else 1
                step = torch.cat([scale.flatten()] * groups) * parameters[f"{read}.scale"]
                rounded[bias] = straight_through(parameters[bias], step, -(2**30), 2**30)
    site_of = {tensor: site for site, tensor in base.sites.tensors.items() if widths[site] != FLOAT_BITS}

    def at_tensor(name, value):
        if name not in site_of:
            return value
        site = site_of[name]
        zero_point = int(parameters[f"{site}.zero_point"])
        return straight_through(value, parameters[f"{site}.scale"], -zero_point, 2 ** widths[site] - 1 - zero_point)

    graph = replace(base.graph, parameters={name: rounded[name] for name in base.graph.parameters})
    return run(graph, {base.graph.inputs[0]: x}, at_tensor)[0]


@pytest.mark.parametrize("kind", [Gated, Pooled])
@pytest.mark.parametrize("turn", [0, 1, 2, 3])
def test_outputs_and_gradients_are_those_of_plain_rounding(kind, turn):
    """In double precision, where no value comes near enough to a half for the order of sums to matter."""
    base = graph_base(kind)
    weights, activations = WIDTHS
    allocation = cycled(base, weights[turn:] + weights[:turn], activations[turn % 3 :] + activations[: turn % 3])
    state = initial_state(base, allocation)
    x = FEATURES.double()
    both = []
    for compute in (
        lambda own: rounded_run(base, allocation, own, x),
        lambda own: TrainableNetwork(base.graph, base.sites, allocation)(own, x.transpose(0, 1)).transpose(0, 1),
    ):
        own = {
            name: tensor.double().requires_grad_() if tensor.is_floating_point() else tensor
            for name, tensor in state.parameters.items()
        }
        made = compute(own)
        (made * torch.linspace(-1, 1, made.numel(), dtype=made.dtype).reshape(made.shape)).sum().backward()
        both.append((made.detach(), {name: tensor.grad for name, tensor in own.items() if tensor.requires_grad}))
    (wanted, gradients), (found, ours) = both
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    assert gradients.keys() == ours.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-8, atol=1e-9 * (1 + float(gradient.abs().max())), msg=name)


def test_training_lowers_the_loss_and_moves_every_parameter():
    base, allocation, losses = graph_base(), cycled(graph_base(), (4, 3), (8, 6)), []
    config = QatConfig(batch_size=6, learning_rate=1e-3, scale_learning_rate=1e-3)
    watched = TrainingOptions(on_step=lambda *step: losses.append(step[2]))
    state = train_quantized(base, allocation, small_pool(), config, 20, 0, options=watched)
    assert losses[-1] < losses[0] - 0.02
    unmoved = {name for name, tensor in base.graph.parameters.items() if torch.equal(state.parameters[name], tensor)}
    assert not unmoved


def test_a_state_survives_the_disk_and_means_what_the_scorer_computes(tmp_path):
    base, allocation = graph_base(), cycled(graph_base(), *WIDTHS)
    state = initial_state(base, allocation)
    save_trained(tmp_path / "state.safetensors", state)
    read = load_trained(tmp_path / "state.safetensors", base, allocation)
    assert all(torch.equal(read.parameters[name], tensor) for name, tensor in state.parameters.items())
    wanted = FastNetwork(base.graph, base.calibration, base.quantization).mask_function(allocation)(FEATURES)
    assert torch.equal(trained_mask_function(base, read)(FEATURES), wanted)


def test_a_warm_start_keeps_parameters_and_makes_the_scales_of_other_widths_anew():
    base = graph_base()
    first = initial_state(base, cycled(base, (4,), (8,)))
    doubled = {name: 2 * tensor if name.startswith("up.") else tensor for name, tensor in first.parameters.items()}
    start = TrainedState(doubled, first.allocation, base.base_sha256, 5)
    narrower = cycled(base, (3,), (8,))
    state = initial_state(base, narrower, start)
    assert all(torch.equal(state.parameters[name], start.parameters[name]) for name in base.graph.parameters)
    scale = state.parameters["up.weight.scale"]
    assert scale.shape == (1, 3, 1)  # an output channel of each of its groups
    assert torch.equal(scale, next_bfloat16(start.parameters["up.weight"].abs().amax((0, 2), keepdim=True) / 3))
    torch.testing.assert_close(2 * initial_state(base, narrower).parameters["up.weight.scale"], scale)
