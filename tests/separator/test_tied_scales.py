"""Tied activations have one scale: in the calibration, in files, in training, and in the search space."""

from dataclasses import replace

import pytest
import torch

from hwsearch.errors import UserError
from hwsearch.experiment import QatConfig, SearchConfig, SharedConfig
from hwsearch.network.run import run
from hwsearch.network.sites import Tie, find_sites
from hwsearch.search.space import build_space, uniform_seeds
from hwsearch.separator.calibration import GRID_WIDTHS, calibrate
from hwsearch.separator.prepare import PreparedBase
from hwsearch.separator.quantized import build_quantized
from hwsearch.separator.shared import initial_shared, load_shared, save_shared, tied_names
from hwsearch.separator.tied_scales import SUM_ZERO_POINT, follower_names, followers
from hwsearch.separator.trained import initial_state, load_trained, save_trained, trained_network
from hwsearch.training.qat import train_quantized
from hwsearch.training.shared import SharedTraining, train_shared
from hwsearch.training.trainable import TrainableNetwork
from tests.export.tied import TIED, tied_allocation, tied_network
from tests.separator.small import RELU, normalised_features
from tests.training import pools

NARROW = (Tie(("input_proj.output", "blocks.0.project.output")), Tie(("blocks.0.add.output", "blocks.1.project.output")))
WIDE = (Tie(("input_proj.output", "blocks.0.project.output", "blocks.1.project.output"), ("blocks.0.add.output",)),)


def base_of(trunk: int) -> PreparedBase:
    separator, graph, _, calibration = tied_network(RELU, trunk)
    return PreparedBase(separator, graph, calibration, TIED, pools.BASE_SHA256)


@pytest.mark.parametrize(("trunk", "ties"), [(8, NARROW), (16, WIDE)])
def test_what_a_sum_adds_is_tied(trunk: int, ties: tuple[Tie, ...]) -> None:
    _, graph, sites, _ = tied_network(RELU, trunk)
    assert sites.ties == ties
    assert find_sites(graph).ties == ()
    assert replace(sites, ties=()) == find_sites(graph)


@pytest.mark.parametrize("trunk", [8, 16])
def test_tied_grids_have_the_largest_scale_of_them(trunk: int) -> None:
    separator, graph, sites, calibration = tied_network(RELU, trunk)
    own = calibrate(graph, [normalised_features(separator, 3000, mixture) for mixture in (1, 2)])
    apart = set(sites.activations)
    for tie in sites.ties:
        apart -= {*tie.sites, *tie.sums}
        for bits in (4, 5, 6, 7, 8):
            scale = max(own.grids[site][bits].scale for site in tie.sites)
            assert {calibration.grids[site][bits].scale for site in tie.sites} == {scale}
        for site in tie.sums:
            assert calibration.grids[site][16].scale == calibration.grids[tie.sites[0]][8].scale
            assert calibration.grids[site][16].zero_point == SUM_ZERO_POINT
            assert all(calibration.grids[site][bits] == own.grids[site][bits] for bits in GRID_WIDTHS if bits != 16)
    assert all(calibration.grids[site] == own.grids[site] for site in apart)


def test_the_zero_point_at_a_scale_has_the_least_error() -> None:
    """Against all zero points, tried one by one on the activations themselves."""
    separator, graph, sites, calibration = tied_network(RELU, 8)
    seen: dict[str, list[torch.Tensor]] = {}

    def keep(tensor: str, x: torch.Tensor) -> torch.Tensor:
        seen.setdefault(tensor, []).append(x.double().flatten())
        return x

    for mixture in (1, 2):
        run(graph, {graph.inputs[0]: normalised_features(separator, 3000, mixture)}, keep)
    for site in (site for tie in sites.ties for site in tie.sites):
        x, grid = torch.cat(seen[sites.tensors[site]]), calibration.grids[site][5]
        steps = (x / grid.scale).round()
        errors = [
            float(((steps.clamp(-zero, grid.levels - zero) * grid.scale - x) ** 2).sum()) for zero in range(grid.levels + 1)
        ]
        assert errors[grid.zero_point] <= 1.02 * min(errors)


def test_the_first_grid_of_a_width_holds_the_scale() -> None:
    ties = (Tie(("a", "b", "c"), ("s",)),)
    grids = [("a", 8), ("a", 4), ("b", 8), ("c", 4), ("s", 16), ("s", 8), ("x", 8), ("c", 32)]
    assert followers(ties, grids) == {("b", 8): ("a", 8), ("c", 4): ("a", 4), ("s", 16): ("a", 8)}
    assert follower_names(ties, {"b": 8, "s": 16}) == {"s.scale": "b.scale"}


def test_the_brevitas_network_has_one_parameter_for_a_tie() -> None:
    _, graph, sites, calibration = tied_network(RELU, 16)
    network = build_quantized(graph, tied_allocation(RELU, 16, 4), calibration, TIED)

    def scale(site: str) -> object:
        return network.site(site).quantizer.act_quant.fused_activation_quant_proxy.tensor_quant.scale

    (tie,) = sites.ties
    assert len({id(scale(site)) for site in (*tie.sites, *tie.sums)}) == 1
    assert scale("blocks.1.add.output") is not scale(tie.sites[0])


@pytest.mark.parametrize("trunk", [8, 16])
def test_the_gradient_of_a_tied_scale_is_that_of_the_brevitas_network(trunk: int) -> None:
    """In double precision; there it is one parameter, here the gradients of all that follow it add up."""
    base, allocation = base_of(trunk), tied_allocation(RELU, trunk, 4)
    state = initial_state(base, allocation)
    x = normalised_features(base.separator, 1500, 5).double()
    brevitas = trained_network(base, state).double().train()
    wanted = brevitas(x)
    direction = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1)).double()
    (wanted * direction).sum().backward()

    names = follower_names(base.sites.ties, allocation.by_site)
    own = {
        name: tensor.double().requires_grad_() if tensor.is_floating_point() else tensor
        for name, tensor in state.parameters.items()
    }
    parameters = own | {name: own[holder] for name, holder in names.items()}
    found = TrainableNetwork(base.graph, base.sites, allocation)(parameters, x.transpose(0, 1)).transpose(0, 1)
    (found * direction).sum().backward()
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    for holder in set(names.values()):
        site = brevitas.site(holder.removesuffix(".scale"))
        scale = site.quantizer.act_quant.fused_activation_quant_proxy.tensor_quant.scale
        torch.testing.assert_close(own[holder].grad, scale.grad.reshape(()), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("trunk", [8, 16])
def test_training_keeps_tied_scales_equal(trunk: int, tmp_path) -> None:
    base, allocation = base_of(trunk), tied_allocation(RELU, trunk, 4)
    names = follower_names(base.sites.ties, allocation.by_site)
    assert names
    config = QatConfig(batch_size=2, learning_rate=1e-3, scale_learning_rate=1e-2)
    state = train_quantized(base, allocation, pools.small_pool(), config, 3, 0)
    before = initial_state(base, allocation)
    for name, holder in names.items():
        assert torch.equal(state.parameters[name], state.parameters[holder])
        assert not torch.equal(state.parameters[name], before.parameters[name])
    path = tmp_path / "state.safetensors"
    save_trained(path, state)
    loaded = load_trained(path, base, allocation)
    grids = trained_network(base, loaded).activation_grids()
    for tie in base.sites.ties:
        assert len({grid.scale for site in (*tie.sites, *tie.sums) if (grid := grids[site]) is not None}) == 1


def test_a_state_whose_tied_scales_differ_is_refused(tmp_path) -> None:
    base, allocation = base_of(8), tied_allocation(RELU, 8, 4)
    state = initial_state(base, allocation)
    name, holder = next(iter(follower_names(base.sites.ties, allocation.by_site).items()))
    path = tmp_path / "state.safetensors"
    save_trained(path, replace(state, parameters={**state.parameters, name: state.parameters[name] * 1.5}))
    with pytest.raises(
        UserError, match=rf"^{path}: '{name}' is not '{holder}', to which quantization\.tied_adds ties it; delete"
    ):
        load_trained(path, base, allocation)


@pytest.mark.parametrize("trunk", [8, 16])
def test_the_shared_network_trains_one_scale_for_a_tie(trunk: int, tmp_path) -> None:
    base = base_of(trunk)
    search = SearchConfig(weight_bits=(4, 8), activation_bits=(6, 8), trunk_bits=(16,) if trunk == 16 else None)
    space = build_space(search, base.sites)
    widths = dict(space.widths)
    config = SharedConfig(steps=4, batch_size=2, learning_rate=1e-3, scale_learning_rate=1e-2, report_steps=4)
    training = SharedTraining(widths, space.groups, config, QatConfig(), 0, "key")
    state = train_shared(base, training, pools.small_pool(), tmp_path / "checkpoint", lambda state: {})
    names, before = tied_names(base, widths), initial_shared(base, widths)
    assert names
    for name, holder in names.items():
        assert torch.equal(state.parameters[name], state.parameters[holder])
    assert any(not torch.equal(state.parameters[name], before.parameters[name]) for name in names)
    path = tmp_path / "shared.safetensors"
    save_shared(path, base, state)
    load_shared(path, base, widths)
    name, holder = next(iter(names.items()))
    save_shared(path, base, replace(state, parameters={**state.parameters, name: state.parameters[name] * 1.5}))
    with pytest.raises(UserError, match=rf"^{path}: '{name}' is not '{holder}'"):
        load_shared(path, base, widths)


def test_a_search_gives_tied_sites_one_width() -> None:
    _, _, sites, _ = tied_network(RELU, 8)
    search = SearchConfig(activation_bits=(4, 6, 8), groups=(("blocks.0.expand.output", "blocks.0.project.output"),))
    space = build_space(search, sites)
    assert set(space.groups) == {
        ("input_proj.output", "blocks.0.expand.output", "blocks.0.project.output"),
        ("blocks.0.add.output", "blocks.1.project.output"),
    }
    for seed in uniform_seeds(space):
        widths = space.decode(seed.point).allocation.by_site
        for tie in sites.ties:
            assert len({widths[site] for site in tie.sites}) == 1


def test_a_search_with_a_wide_trunk_gives_its_parts_8_bits() -> None:
    _, _, sites, _ = tied_network(RELU, 16)
    space = build_space(SearchConfig(activation_bits=(4, 8), trunk_bits=(16,)), sites)
    widths = dict(space.widths)
    (tie,) = sites.ties
    assert {widths[site] for site in tie.sites} == {(8,)}
    assert {widths[site] for site in tie.sums} == {(16,)}
    assert widths["mask_head.output"] == (4, 8)


@pytest.mark.parametrize(
    ("search", "said"),
    [
        (
            {"activation_bits": (4, 6), "trunk_bits": (16,)},
            r"may take \[4, 6\] bits; .* wanted 8 .* change search\.activation_bits",
        ),
        ({"trunk_bits": (32,)}, r"may take \[32\] bits; .* wanted 16 .* change search\.trunk_bits"),
    ],
)
def test_a_wide_trunk_that_cannot_have_its_widths_is_refused(search: dict[str, object], said: str) -> None:
    _, _, sites, _ = tied_network(RELU, 16)
    with pytest.raises(UserError, match=rf"^quantization\.tied_adds: '.*' {said}"):
        build_space(SearchConfig.model_validate(search), sites)


def test_ties_without_a_common_width_are_refused() -> None:
    _, _, sites, _ = tied_network(RELU, 8)
    search = SearchConfig(activation_bits=(4, 8), fixed={"input_proj.output": 4, "blocks.0.project.output": 8})
    with pytest.raises(UserError, match=r"^search\.groups, quantization\.tied_adds: no width that all sites"):
        build_space(search, sites)
