"""Bit-widths of the comparison's base by other tools' searches, each tool in an environment of its own.

    python experiments/peers                # all of them: five minutes of a core, and 3 GB of environments
    python experiments/peers modelopt       # some of them; what the others found stays in the results

`mct` is Sony's Model Compression Toolkit, whose metric is the SI-SNR lost. `modelopt` is NVIDIA's Model Optimizer
(`auto_quantize`), by gradients and by KL divergence. They get the comparison's base as hwsearch prepares it, the mixtures that
hwsearch's sensitivities are measured on, and its weight widths. Depthwise weights have 8 bits.

The budget at n bits is the bytes of the packed file with all other weights at n bits; between two widths it is interpolated.
`experiments/method_comparison` allows the same. Both tools count the bytes that a layer takes in the packed file at each width
(2 bits take 1.6): ModelOpt has a setting for it, and `tools/search_mct.py` replaces MCT's count of the memory of weights. An
allocation above its budget is refused.

Needs the experiment's data (`hwsearch data build`). A tool that has answered the same question is not asked again.

Writes experiments/results/peers.json, .md and .png. `experiments/method_comparison` trains and judges the allocations.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from exported_case import Exported, WeightCosts, export

import hwsearch
from hwsearch.data.dataset import manifest_hash, open_dataset
from hwsearch.errors import UserError
from hwsearch.experiment import Experiment, Split, load_experiment
from hwsearch.files.reading import digest, read_json
from hwsearch.files.tensors import tensors_digest
from hwsearch.files.writing import atomic_write_bytes, atomic_write_json
from hwsearch.network.sites import Sites
from hwsearch.search.costs import CostBook
from hwsearch.search.objectives import PACKED_SIZE
from hwsearch.search.space import build_space
from hwsearch.sensitivity.mixture import read_mixture
from hwsearch.separator.allocation import BitAllocation, uniform
from hwsearch.separator.configuration import Configuration
from hwsearch.separator.prepare import PreparedBase
from hwsearch.workflow.training import prepare
from hwsearch.workspace import Workspace

sys.path.append(str(Path(__file__).resolve().parents[1]))

from scoring_speed import processor
from tool_environment import tool_python

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results"
BUDGETS = (2.5, 3.0, 4.0)
DEPTHWISE_BITS = BYTE_BITS = 8
KINDS = ("expand", "project")
"""The layers of a block that are drawn."""

SAME_LOSS_DB = 1e-3
"""By how much the loss of the exported network in a peer's environment may differ from hwsearch's."""

Answer = dict[str, Any]


@dataclass(frozen=True)
class Peer:
    """A tool: the script that asks it, and what pip installs for it."""

    script: str
    requirements: tuple[str, ...]


COMMON = ("torch~=2.13.0", "safetensors==0.8.0")
PEERS = {
    # Both import packages that they do not require.
    "mct": Peer("search_mct.py", ("model-compression-toolkit==2.6.1", "torchvision==0.28.0", *COMMON)),
    "modelopt": Peer("search_modelopt.py", ("nvidia-modelopt==0.47.0", "requests==2.34.2", "huggingface_hub==2.4.0", *COMMON)),
}


class Judge:
    """Checks what peers answer, and counts bytes.

    Attributes:
        fixed: the weight sites that are not searched, with their width.
    """

    def __init__(self, experiment: Experiment, sites: Sites) -> None:
        self._sites = sites
        self._widths = experiment.search.weight_bits
        self._space = build_space(experiment.search, sites)
        self._size = CostBook(experiment, self._space).known(PACKED_SIZE)
        self._rest = uniform(sites, DEPTHWISE_BITS, *_activation_bits(experiment)).by_site
        self.fixed = {site: DEPTHWISE_BITS for site in sites.weights if site.endswith("depthwise.weight")}

    def allowed_bytes(self, budget: float) -> float:
        """Size of the packed file at a budget."""
        below, above = int(np.floor(budget)), int(np.ceil(budget))
        sizes = [self._bytes(dict.fromkeys(self._sites.weights, bits) | self.fixed, "a budget") for bits in (below, above)]
        return sizes[0] + (budget - below) * (sizes[1] - sizes[0])

    def weight_costs(self, counts: Mapping[str, int]) -> WeightCosts:
        """What the weights take of the packed file, and what they may take.

        Args:
            counts: number of weights of each weight site.
        """
        wide = dict.fromkeys(self._sites.weights, BYTE_BITS)
        whole = self._bytes(wide, "8 bits")
        costs = {
            site: {
                bits: counts[site] + self._bytes(wide | {site: bits}, site) - whole
                for bits in ([self.fixed[site]] if site in self.fixed else self._widths)
            }
            for site in self._sites.weights
        }
        rest = whole - sum(counts[site] for site in self._sites.weights)
        return WeightCosts(costs, {budget: self.allowed_bytes(budget) - rest for budget in BUDGETS})

    def checked(self, allocation: Answer, source: str) -> Answer:
        """Return an allocation with its bytes.

        Raises:
            UserError: it is no allocation of the network's weights, or larger than its budget allows.
        """
        weights, budget = allocation["weights"], allocation["bits"]
        if any(weights.get(site) != bits for site, bits in self.fixed.items()) or weights.keys() != {*self._sites.weights}:
            raise UserError(f"{source}: a site is missing, unknown or not at its fixed width; wanted all weight sites")
        taken, allowed = self._bytes(weights, source), self.allowed_bytes(budget)
        if taken > allowed:
            raise UserError(f"{source}: {allocation['method']} takes {taken:.0f} bytes; wanted at most {allowed:.0f}")
        return allocation | {"bytes": taken, "allowed_bytes": allowed}

    def _bytes(self, weights: Mapping[str, int], source: str) -> float:
        allocation = BitAllocation.from_json({**self._rest, **weights}, self._sites, source)
        return float(self._size.charge(np.array([self._space.encode(Configuration(allocation))]))[0])


def _activation_bits(experiment: Experiment) -> tuple[int, int | None]:
    """The widest activations of an experiment, and its widest trunk."""
    trunk = experiment.search.trunk_bits
    return max(experiment.search.activation_bits), max(trunk) if trunk else None


def exported(workspace: Workspace, base: PreparedBase, judge: Judge) -> Exported:
    """The base with the mixtures that the experiment's sensitivities are measured on."""
    experiment, data = workspace.experiment, workspace.data_folder
    mixtures = open_dataset(data, Split.VALIDATION)[: experiment.sensitivity.mixtures]
    costs = judge.weight_costs({site: base.graph.parameters[site].numel() for site in base.sites.weights})
    return export(base, (read_mixture(base, data, each) for each in mixtures), costs)


def ask(name: str, case: Exported, folder: Path) -> Answer:
    """What a peer answers; a kept answer to the same question if there is one.

    Args:
        name: the peer.
        case: the question.
        folder: where environments and answers are kept.

    Raises:
        UserError: the peer fails.
    """
    peer = PEERS[name]
    scripts = [(HERE / "tools" / script).read_text("utf-8") for script in (peer.script, "separator.py")]
    question = digest([list(peer.requirements), scripts, case.text, tensors_digest(case.tensors)])
    kept, answered, log = (folder / name / file for file in ("kept.json", "answer.json", "log.txt"))
    if kept.is_file() and (content := read_json(kept, "a kept answer"))["question"] == question:
        answer: Answer = content["answer"]
        return answer
    case.write(folder / name)
    answered.unlink(missing_ok=True)
    python = tool_python(name, peer.requirements, folder / "environments")
    print(f"{name}: searching, {log}", flush=True)
    command = [str(python), "-E", str(HERE / "tools" / peer.script), str(folder / name)]
    with log.open("wb") as stream:
        done = subprocess.run(  # noqa: S603 (nothing from outside)
            command, check=False, stdout=stream, stderr=stream, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
    if done.returncode:
        raise UserError(f"{log}: {peer.script} ended with code {done.returncode}; its last lines say why")
    answer = read_json(answered, "a peer's answer")
    atomic_write_json(kept, {"question": question, "answer": answer})
    return answer


def same_network(case: Exported, answer: Answer, source: str) -> None:
    """Raise `UserError` if the peer's network computes something else in full precision."""
    worst = max(abs(ours - theirs) for ours, theirs in zip(case.losses_db, answer["losses_db"], strict=True))
    if worst > SAME_LOSS_DB:
        raise UserError(f"{source}: the network's loss is {worst:.4f} dB off hwsearch's; wanted at most {SAME_LOSS_DB}")


def made_by(workspace: Workspace, base: PreparedBase, case: Exported) -> dict[str, Any]:
    """What the allocations depend on."""
    experiment = workspace.experiment
    return {
        "command": "python experiments/peers",
        "hwsearch": hwsearch.__version__,
        "processor": processor(),
        "threads": 1,
        "seed": experiment.seed,
        "mixtures": len(case.losses_db),
        "base_sha256": base.base_sha256,
        "data_manifest": manifest_hash(workspace.data_folder, Split.VALIDATION),
        "weight_bits": list(experiment.search.weight_bits),
        "depthwise_bits": DEPTHWISE_BITS,
        "date": datetime.now(UTC).date().isoformat(),
    }


def markdown(allocations: Sequence[Answer]) -> str:
    """The allocations as a table."""
    lines = [
        "| peer | budget, bits | bytes | of those allowed, % | first and last layer | other layers | processor s |",
        "|---" * 7 + "|",
    ]
    for found in allocations:
        searched = [bits for site, bits in found["weights"].items() if not site.endswith("depthwise.weight")]
        share = 100 * found["bytes"] / found["allowed_bytes"]
        inner = " ".join(map(str, searched[1:-1]))
        cells = f"{found['bytes']:.0f} | {share:.1f} | {searched[0]}, {searched[-1]} | {inner} | {found['seconds']:.0f}"
        lines.append(f"| {found['method']} | {found['bits']:g} | {cells} |")
    return "\n".join(lines)


def plot(allocations: Sequence[Answer], path: Path) -> None:
    """Draw the widths of the blocks, a row for each kind of layer and a column for each budget."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    panels = figure.subplots(len(KINDS), len(BUDGETS), sharex=True, sharey=True)
    for (row, kind), (column, budget) in product(enumerate(KINDS), enumerate(BUDGETS)):
        axes = panels[row, column]
        for found in allocations:
            if found["bits"] == budget:
                widths = [bits for site, bits in found["weights"].items() if site.endswith(f".{kind}.weight")]
                axes.plot(widths, marker="o", markersize=3, linewidth=1, alpha=0.7, label=found["method"])
        axes.set_title(f"{kind}, bytes of uniform {budget:g} bits", fontsize=9)
        axes.grid(alpha=0.3)
    for axes in panels[-1]:
        axes.set_xlabel("block")
    for axes in panels[:, 0]:
        axes.set_ylabel("weight bits")
    panels[0, 0].legend(fontsize=7)
    figure.savefig(path, dpi=110)


def report(found: Mapping[str, Answer], made: Mapping[str, Any], results: Path) -> None:
    """Write the answers of these peers, and keep those of others that are in the results."""
    path = results / "peers.json"
    before = read_json(path, "results of peers") if path.is_file() else {"peers": {}, "allocations": []}
    new = [allocation for answer in found.values() for allocation in answer["allocations"]]
    methods = {allocation["method"] for allocation in new}
    kept = [allocation for allocation in before["allocations"] if allocation["method"] not in methods]
    allocations = sorted(kept + new, key=lambda each: (each["method"], each["bits"]))
    versions = before["peers"] | {name: answer["versions"] for name, answer in found.items()}
    atomic_write_json(path, {"made_by": dict(made), "peers": versions, "allocations": allocations})
    atomic_write_bytes(path.with_suffix(".md"), (markdown(allocations) + "\n").encode())
    plot(allocations, path.with_suffix(".png"))
    print(markdown(allocations), flush=True)


def main() -> None:
    """Ask the peers that are named."""
    parser = argparse.ArgumentParser(prog="peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", nargs="*", metavar="PEER", help=f"{', '.join(PEERS)}; all when none is named")
    parser.add_argument("--experiment", type=Path, default=HERE.parent / "comparison.toml")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if unknown := [name for name in options.peers if name not in PEERS]:
        parser.error(f"no peer '{unknown[0]}'; wanted one of {', '.join(PEERS)}")
    try:
        workspace = Workspace(options.runs_dir.resolve(), load_experiment(options.experiment))
        base = prepare(workspace)
        judge = Judge(workspace.experiment, base.sites)
        case = exported(workspace, base, judge)
    except UserError as error:
        print(f"peers: {error}", file=sys.stderr)
        sys.exit(2)
    failed = False
    for name in options.peers or PEERS:
        try:
            answer = ask(name, case, workspace.runs / "peers")
            same_network(case, answer, name)
            answer["allocations"] = [judge.checked(allocation, name) for allocation in answer["allocations"]]
        except (UserError, subprocess.CalledProcessError) as error:
            print(f"{name}: left out, {error}", file=sys.stderr)
            failed = True
            continue
        report({name: answer}, made_by(workspace, base, case), options.results)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
