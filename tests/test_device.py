"""Nothing that trains or scores is tied to the processor.

On a pretended GPU (`tests.pretended`) an operation on tensors of both devices fails, and so does reading one that was not brought
back. The numbers are the processor's, so results must be the same to the last bit.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch

from hwsearch.data.arrays import ARRAYS
from hwsearch.data.example import Example
from hwsearch.experiment import ConvTasNetConfig, NasConfig, QatConfig, QuantizationConfig
from hwsearch.search.mixture_batches import improvements, mixture_batches
from hwsearch.search.nas.job import nas_job
from hwsearch.search.nas.network import make_options
from hwsearch.sensitivity.choices import make_choices
from hwsearch.sensitivity.curvature import ProbeRule, probe_traces
from hwsearch.sensitivity.jobs import ONE_SITE_KINDS, Kind
from hwsearch.sensitivity.mixture import analyse_mixture
from hwsearch.sensitivity.work import of_mixture
from hwsearch.separator.calibration import calibrate
from hwsearch.separator.fast import FastNetwork
from hwsearch.separator.prepare import PreparedBase
from hwsearch.separator.separator import build_separator
from hwsearch.separator.traced import traced
from hwsearch.separator.trained import TrainedState, trained_mask_function
from hwsearch.training.pool import TrainingPool, analysed_pool
from hwsearch.training.qat import train_quantized
from tests.pretended import CUDA, pretended_cuda
from tests.search.nas import small as nas
from tests.sensitivity.small import candidates
from tests.separator.small import noise_mixture, weight_sites
from tests.training import pools
from tests.training.graphs import cycled, graph_base
from tests.training.test_fit import CONFIG, train

Found = TypeVar("Found")


@cache
def waveform_base() -> PreparedBase:
    """Conv-TasNet, which separates both speakers in any order."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = ConvTasNetConfig(network="conv-tasnet", N=8, L=16, B=8, H=8, Sc=8, X=2, R=1, norm="global")
        separator = build_separator(config, ARRAYS["linear4"], 8000).eval()
    graph = traced(separator)
    calibration = calibrate(graph, [separator.analyse(noise_mixture()[None], torch.tensor([0.0])).normalised])
    return PreparedBase(separator, graph, calibration, QuantizationConfig(weight_scale_method="max"), pools.BASE_SHA256)


BASES: dict[str, Callable[[], PreparedBase]] = {"tcn": pools.small_base, "gated": graph_base, "waveform": waveform_base}


@cache
def pool_of(name: str) -> TrainingPool:
    return analysed_pool(BASES[name]().separator, pools.BASE_SHA256, map(pools.example, range(4)), 4)


@cache
def mixtures() -> tuple[Example, ...]:
    noise = [noise_mixture(1500, seed).numpy() for seed in range(3)]
    return tuple(Example(sound, sound[0] + np.float32(0.1) * sound[1], 30.0 * seed) for seed, sound in enumerate(noise))


def on_both(base: PreparedBase, work: Callable[[PreparedBase], Found]) -> tuple[Found, Found]:
    """What work gives on the processor, and on the pretended GPU."""
    here = work(base)
    with pretended_cuda():
        return here, work(base.on(CUDA))


def test_the_pretended_device_refuses_what_a_gpu_refuses() -> None:
    with pretended_cuda():
        there = torch.ones(3).to(CUDA)
        assert there.device == (there + there).device == torch.zeros(2, device=CUDA).device == CUDA
        assert (there * 2 + torch.tensor(1.0)).tolist() == [3.0] * 3
        assert torch.equal(there.cpu(), torch.ones(3))
        assert torch.arange(6, device=CUDA).reshape(2, 3)[range(2), [2, 1]].tolist() == [2, 4]
        for wrong in (
            lambda: there + torch.ones(3),
            lambda: torch.ones(1, 3) @ there,
            lambda: torch.stack([there[0], torch.tensor(1.0)]),
            lambda: torch.ones(3).add_(there),
            there.numpy,
        ):
            with pytest.raises(RuntimeError, match=r"cuda:0 and on the processor|numpy"):
                wrong()


@pytest.mark.parametrize("name", BASES)
def test_a_candidate_is_scored_where_its_base_lies(name: str) -> None:
    def work(base: PreparedBase) -> list[float]:
        network = FastNetwork(base.graph, base.calibration, base.quantization, weights=base.weights)
        batches = mixture_batches(base.separator, mixtures())
        assert batches[0].features.normalised.device == base.device
        masks = [network.mask_function(cycled(base, *widths)) for widths in (((3, 8), (4, 8)), ((2, 32), (8, 32)))]
        return [score for mask in masks for score in improvements(base.separator, mask, batches).tolist()]

    here, there = on_both(BASES[name](), work)
    assert here == there
    assert np.isfinite(here).all()


@pytest.mark.parametrize("name", BASES)
def test_a_candidate_is_trained_where_its_base_lies(name: str) -> None:
    pool, config = pool_of(name), QatConfig(batch_size=2)

    def work(base: PreparedBase) -> tuple[TrainedState, list[float]]:
        first = train_quantized(base, cycled(base, (3, 8), (4, 8)), pool, config, 2, 0)
        state = train_quantized(base, cycled(base, (3, 4), (4, 32)), pool, config, 2, 1, start=first)
        batches = mixture_batches(base.separator, mixtures())
        return state, improvements(base.separator, trained_mask_function(base, state), batches).tolist()

    (here, heard), (there, heard_there) = on_both(BASES[name](), work)
    assert heard == heard_there
    assert here.parameters.keys() == there.parameters.keys()
    for site, tensor in there.parameters.items():
        assert type(tensor) is torch.Tensor, site  # back in the processor's memory, for whoever writes or sends it
        assert torch.equal(tensor, here.parameters[site]), site


@pytest.mark.parametrize(("relaxation", "train_weights"), [("softmax", True), ("gumbel", False)])
def test_the_differentiable_search_runs_where_its_base_lies(relaxation: str, train_weights: bool) -> None:
    problem = nas.problem_of(weight_sites(pools.RELU)[:3], activation_bits=8)
    config = NasConfig.model_validate({"steps": 3, "relaxation": relaxation, "train_weights": train_weights})
    here, there = on_both(
        nas.BASE, lambda base: nas_job(make_options(base, problem), nas.size(problem), config, nas.POOL, 3.0, 0)
    )
    assert here == there


def test_a_base_is_trained_where_it_lies(tmp_path: Path) -> None:
    """The second sitting starts from a checkpoint of the device."""
    here, progress = train(tmp_path / "here")
    with pretended_cuda():
        train(tmp_path / "there", CONFIG.model_copy(update={"patience": 1}), device=CUDA)
        there, after = train(tmp_path / "there", device=CUDA)
        state = {name: tensor.cpu() for name, tensor in there.state_dict().items()}
    assert after.history == progress.history
    for name, tensor in here.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_weights_are_rounded_on_the_processor() -> None:
    """The weights of a base on a GPU are rounded as they are here."""
    base = pools.small_base()
    with pretended_cuda():
        there = base.on(CUDA).weights
        there.round((4,))
        found = {name: tensor.cpu() for name, tensor in there.to_tensors().items()}
    fresh = PreparedBase(base.separator, base.graph, base.calibration, base.quantization, base.base_sha256).weights
    fresh.round((4,))
    assert all(torch.equal(found[name], tensor) for name, tensor in fresh.to_tensors().items())


@pytest.mark.parametrize("name", BASES)
def test_sensitivities_are_taken_where_the_base_lies(name: str) -> None:
    kinds = tuple(kind for kind in Kind if kind not in (Kind.TRACE, Kind.TRAINING))
    rule = ProbeRule(max_probes=4)

    def work(base: PreparedBase) -> list[object]:
        (one, *_) = mixtures()
        mixture = analyse_mixture(base, "m", torch.from_numpy(one.mixture), one.doa_deg, torch.from_numpy(one.target))
        sites = (*base.sites.weights[-2:], *base.sites.activations[-2:])
        choices = make_choices(base, candidates(sites, (4, 8)))
        found = [
            of_mixture(alike, choices, mixture)
            for alike in (tuple(sorted(ONE_SITE_KINDS)), *((kind,) for kind in kinds if kind not in ONE_SITE_KINDS))
        ]
        traces = [probe_traces(base, [mixture], sites, replace(rule, probe=probe)) for probe in ("rademacher", "gaussian")]
        numbers = [value.tolist() for each in found for by_name in each.values() for value in by_name.values()]
        return [*numbers, *(trace.samples.tolist() for each in traces for trace in each.values())]

    here, there = on_both(BASES[name](), work)
    assert len(here) == 11 + 8
    assert here == there
