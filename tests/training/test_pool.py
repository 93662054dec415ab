"""Training mixtures are made once, for one base, and survive the disk."""

import pytest
import torch
from safetensors.torch import save_file

from hwsearch.data.dynamic import DynamicMixtures
from hwsearch.errors import UserError
from hwsearch.experiment import parse_experiment
from hwsearch.metrics.si_snr import si_snr
from hwsearch.separator.base import EMBEDDED_BASE, base_digest, load_base
from hwsearch.training.pool import analysed_pool, build_pool, load_pool, pool_path
from hwsearch.workspace import Workspace
from tests.separator.small import RELU, small_network
from tests.tiny import tiny_content
from tests.training.pools import BASE_SHA256, example, small_base, small_pool

EXAMPLES = 3


def workspace(folder, **changes):
    """The tiny experiment with speech and rooms to train with."""
    content = tiny_content()
    content["data"]["corpora"][0] |= {"splits": {"train": 0.4, "validation": 0.3, "test": 0.3}}
    content["data"]["rooms"]["count"] = {"train": 2, "validation": 1, "test": 1}
    content["qat"] = {"examples": EXAMPLES, "segment_seconds": 0.5}
    content["training"] = {"speeds": [1.0]}
    for section, values in changes.items():
        content[section] |= values
    return Workspace(folder / "runs", parse_experiment(content, "test"))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A workspace with its pool, and what its making said."""
    here = workspace(tmp_path_factory.mktemp("pool"))
    said = []
    return here, build_pool(here, 1, lambda *step: said.append(step)), said


def test_a_pool_holds_what_the_front_end_and_the_base_make_of_each_mixture(built):
    _, path, said = built
    pool = load_pool(path)
    samples = 4000
    assert len(pool) == EXAMPLES
    assert pool.mixtures.shape == (EXAMPLES, 6, samples)
    assert pool.target.shape == pool.estimate.shape == (EXAMPLES, samples)
    assert pool.base_sha256 == base_digest(EMBEDDED_BASE)
    assert said[-1] == (EXAMPLES, EXAMPLES)
    assert (2, 2) in said  # the rooms
    separator = load_base(EMBEDDED_BASE)[0]
    batch = pool.batch((2, 0), separator)
    with torch.no_grad():
        output = separator.network(batch.analysis.normalised)
        estimate = separator.synthesise(batch.analysis, output, samples)
    torch.testing.assert_close(estimate, pool.estimate[[2, 0]].float(), rtol=2e-3, atol=1e-5)  # the 16 bits it is kept in
    assert torch.equal(batch.target, pool.target[[2, 0]].float())


def test_mixtures_are_those_of_the_training_split(built):
    """The target is in the mixture, and the embedded base finds it."""
    _, path, _ = built
    pool = load_pool(path)
    for mixture, target, estimate in zip(pool.mixtures.float(), pool.target.float(), pool.estimate.float(), strict=True):
        assert float(si_snr(estimate.numpy(), target.numpy())) > float(si_snr(mixture[0].numpy(), target.numpy()))


def test_a_pool_is_made_once(built, monkeypatch):
    here, path, _ = built
    before = path.stat()

    def fail(*_):
        raise AssertionError("an example was made again")

    monkeypatch.setattr(DynamicMixtures, "example", fail)
    assert build_pool(here, 1, fail) == path
    assert path.stat() == before


@pytest.mark.parametrize(
    "change", [{"qat": {"examples": 4}}, {"qat": {"segment_seconds": 0.75}}, {"training": {"speeds": [0.9]}}]
)
def test_a_pool_of_other_settings_is_another_file(built, tmp_path, change):
    _, path, _ = built
    assert pool_path(workspace(tmp_path, **change)).name != path.name


def test_the_same_experiment_makes_the_same_pool(built, tmp_path):
    _, path, _ = built
    again = build_pool(workspace(tmp_path), 1, lambda *_: None)
    assert (again.name, again.read_bytes()) == (path.name, path.read_bytes())


def test_sixteen_bits_lie_far_below_the_sound():
    """Over 65 dB below it, in every signal kept; what separates best stays under 30 dB."""
    pool, base = small_pool(), small_base()
    for seed in range(len(pool)):
        wanted = example(seed)
        for kept, exact in ((pool.target[seed], wanted.target), *zip(pool.mixtures[seed], wanted.mixture, strict=True)):
            assert float(si_snr(kept.float().numpy(), exact)) > 65.0
        with torch.no_grad():
            exact = base.separator(pool.mixtures[seed, None].float(), torch.tensor([wanted.doa_deg]))[0].numpy()
        assert float(si_snr(pool.estimate[seed].float().numpy(), exact)) > 65.0


def test_a_network_without_a_beam_has_a_pool_too():
    config = RELU.model_copy(update={"beam": False})
    separator, _, _ = small_network(config)
    pool = analysed_pool(separator, BASE_SHA256, [example(1)], 1)
    estimate = separator.separate(pool.mixtures.float(), pool.doa_deg, separator.network)[0].detach()
    assert float(si_snr(pool.estimate[0].float().numpy(), estimate.numpy())) > 40.0


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path, pool: None, "no such file"),
        (lambda path, _: path.write_bytes(b"x" * 100), "not a file of training mixtures"),
        (lambda path, _: save_file({"mixtures": torch.zeros(1)}, path), "not a file of training mixtures"),
        (lambda path, pool: path.write_bytes(pool[: len(pool) // 2]), "not a file of training mixtures"),
    ],
)
def test_a_file_that_is_no_pool_is_refused_in_one_line(built, tmp_path, write, message):
    path = tmp_path / "pool.safetensors"
    write(path, built[1].read_bytes())
    with pytest.raises(UserError, match=message) as refused:
        load_pool(path)
    assert "\n" not in str(refused.value)


def test_a_pool_that_changed_is_refused_by_the_search_that_finds_it(built):
    workspace, path, _ = built
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-1000] ^= 1
    path.write_bytes(flipped)
    try:
        with pytest.raises(UserError, match=r"it changed since it was written: its SHA-256 differs\); delete it and it is made"):
            build_pool(workspace, 1, lambda done, total: None)
    finally:
        path.write_bytes(whole)
    assert build_pool(workspace, 1, lambda done, total: None) == path
