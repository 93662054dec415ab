"""Other tools get the network that hwsearch has, and what they answered is within its budget."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from hwsearch.errors import UserError
from hwsearch.experiment import SeparatorConfig, load_experiment
from hwsearch.search.costs import experiment_workload
from hwsearch.separator.untrained import untrained_sites
from tests.sensitivity.small import small_base, small_mixture
from tests.separator.small import CAUSAL, RELU

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
PEERS = EXPERIMENTS / "peers"


def load(path: Path, name: str):
    """Load a script that is no part of a package; it finds its neighbours while it loads."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(path.parent), *sys.path])
        spec.loader.exec_module(module)
    return module


peers = load(PEERS / "__main__.py", "peers")
separator = load(PEERS / "tools" / "separator.py", "peers_separator")
export, WeightCosts = (getattr(sys.modules["exported_case"], name) for name in ("export", "WeightCosts"))


def exported(folder: Path, config: SeparatorConfig):
    """A small base with two mixtures, written and read again."""
    base = small_base(config)
    mixtures = [small_mixture(base, seed, samples) for seed, samples in ((3, 1000), (4, 1500))]
    sizes = {
        site: {8: count} if site.endswith("depthwise.weight") else {2: -(-count // 5), 4: count / 2}
        for site in base.sites.weights
        for count in [base.graph.parameters[site].numel()]
    }
    case = export(base, mixtures, WeightCosts(sizes, {2.5: 1000.0}))
    case.write(folder)
    return base, case, separator.load_case(folder)


@pytest.mark.parametrize("planar", [False, True], ids=["1-D", "2-D"])
@pytest.mark.parametrize("beam", [False, True], ids=["plain", "beam"])
def test_a_peer_gets_the_network_and_its_loss(tmp_path: Path, *, planar: bool, beam: bool) -> None:
    _, case, read = exported(tmp_path, RELU.model_copy(update={"beam": beam}))
    network = separator.Network(read, planar=planar)
    found = []
    for mixture in read.mixtures():
        mask = network(mixture.features[:, :, None])[:, :, 0] if planar else network(mixture.features)
        found.append(float(read.loss(mask, mixture).detach()))
    assert found == pytest.approx(case.losses_db, abs=1e-4)
    assert len(set(found)) == 2


def test_layers_are_named_after_their_sites(tmp_path: Path) -> None:
    base, _, read = exported(tmp_path, RELU)
    assert tuple(read.sites.values()) == base.sites.weights
    network = separator.Network(read)
    for module, site in read.sites.items():
        assert torch.equal(network.get_submodule(module).weight, base.graph.parameters[site])


def test_a_peer_reads_the_bytes_of_widths_and_of_budgets(tmp_path: Path) -> None:
    base, _, read = exported(tmp_path, RELU)
    counts = {site: base.graph.parameters[site].numel() for site in base.sites.weights}
    assert read.bytes.keys() == counts.keys()
    for site, sizes in read.bytes.items():
        widths = [8] if "depthwise" in site else [2, 4]
        assert [*sizes] == widths
        assert read.effective_bits(sizes[widths[-1]], [site]) == widths[-1]
    assert read.budgets == {2.5: 1000}
    assert read.effective_bits(1000, counts) == pytest.approx(8000 / sum(counts.values()))


def test_what_peers_count_is_the_packed_file() -> None:
    experiment = load_experiment(EXPERIMENTS / "comparison.toml")
    counts = {layer.weight_site: layer.weight_count for layer in experiment_workload(experiment).weight_layers}
    judge = peers.Judge(experiment, untrained_sites(experiment))
    costs = judge.weight_costs(counts)
    for site, sizes in costs.sites.items():
        ternary = {2: -(-counts[site] // 5)}
        wide = {bits: -(-counts[site] * bits // 8) for bits in experiment.search.weight_bits if bits > 2}
        assert sizes == ({8: counts[site]} if "depthwise" in site else ternary | wide)
    two, three, four = (sum(sizes.get(bits, sizes[8]) for sizes in costs.sites.values()) for bits in (2, 3, 4))
    assert costs.budgets == {2.5: (two + three) / 2, 3.0: three, 4.0: four}


def test_padding_on_one_side_is_refused(tmp_path: Path) -> None:
    _, _, read = exported(tmp_path, CAUSAL)
    with pytest.raises(ValueError, match=r"layer 'blocks\.0\.depthwise' is padded by 2 and 0 frames; wanted as many"):
        separator.Network(read)


def test_a_network_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    _, case, _ = exported(tmp_path, RELU)
    peers.same_network(case, {"losses_db": case.losses_db}, "mct")
    with pytest.raises(UserError, match=r"mct: the network's loss is 0\.0100 dB off hwsearch's; wanted at most 0\.001"):
        peers.same_network(case, {"losses_db": [loss + 0.01 for loss in case.losses_db]}, "mct")


def test_the_committed_allocations_are_whole_and_within_their_budgets() -> None:
    results = json.loads((EXPERIMENTS / "results" / "peers.json").read_text("utf-8"))
    found = results["allocations"]
    methods = {allocation["method"] for allocation in found}
    assert methods == {"Sony MCT", "ModelOpt gradient", "ModelOpt KL"}
    assert len(found) == len({(each["method"], each["bits"]) for each in found}) == len(methods) * len(peers.BUDGETS)
    experiment = load_experiment(EXPERIMENTS / "comparison.toml")
    judge = peers.Judge(experiment, untrained_sites(experiment))
    for allocation in found:
        assert judge.checked(allocation, "results") == allocation
        if allocation["method"] != "ModelOpt KL":  # whose threshold makes large steps
            assert allocation["bytes"] > 0.99 * allocation["allowed_bytes"]

    largest = max(found, key=lambda each: each["bytes"])
    wider = {**largest["weights"], "input_proj.weight": 8, "mask_head.weight": 8}
    with pytest.raises(UserError, match=r"results: .* takes \d+ bytes; wanted at most \d+"):
        judge.checked({**largest, "weights": wider}, "results")
    with pytest.raises(UserError, match="wanted all weight sites"):
        judge.checked({**largest, "weights": {**largest["weights"], "blocks.0.depthwise.weight": 4}}, "results")
