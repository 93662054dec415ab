"""What a peer gets: the network in plain numbers, mixtures to measure sensitivities on, bytes of widths, and budgets."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from hwsearch.errors import UserError
from hwsearch.network.structure import structure
from hwsearch.sensitivity.mixture import AnalysedMixture, separation_loss
from hwsearch.separator.prepare import PreparedBase

CASE, TENSORS = "case.json", "case.safetensors"


@dataclass(frozen=True)
class WeightCosts:
    """What weights take of the packed file.

    Attributes:
        sites: bytes by weight site and by each width that it may have.
        budgets: bytes that all weights together may take, by the name of the budget.
    """

    sites: Mapping[str, Mapping[int, float]]
    budgets: Mapping[float, float]


@dataclass(frozen=True, eq=False)
class Exported:
    """A case in memory.

    Attributes:
        text: JSON: operations, front end, bytes of widths, and budgets.
        tensors: the network's parameters by name; of mixture n, `n/features`, `n/spectrum`, `n/start` and `n/target`.
        losses_db: hwsearch's loss of the network in full precision on each mixture.
    """

    text: str
    tensors: dict[str, torch.Tensor]
    losses_db: list[float]

    def write(self, folder: Path) -> None:
        """Write both files of the case."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.tensors, folder / TENSORS)
        (folder / CASE).write_text(self.text, encoding="utf-8")


def export(base: PreparedBase, mixtures: Iterable[AnalysedMixture], costs: WeightCosts) -> Exported:
    """Export a base.

    Args:
        base: prepared, with a spectral front end.
        mixtures: what sensitivities are measured on.
        costs: the widths that weights may have, their bytes, and the budgets. A site with one width is not searched.

    Raises:
        UserError: another front end.
    """
    spectral = base.separator.front_end.spectral
    if spectral is None:
        raise UserError("the separator takes waveforms; peers want one with a spectral front end")
    tensors = {name: tensor.clone() for name, tensor in base.graph.parameters.items()}
    losses = []
    for index, mixture in enumerate(mixtures):
        losses.append(float(separation_loss(base.separator, mixture.output, mixture)))
        tensors |= {f"{index}/{name}": tensor for name, tensor in _tensors(mixture).items()}
    content = {
        "operations": structure(base.graph)["operations"],
        "input": base.graph.inputs[0],
        "n_fft": spectral.n_fft,
        "hop_length": spectral.hop_length,
        "mixtures": len(losses),
        "bytes": {site: dict(sizes) for site, sizes in costs.sites.items()},
        "budgets": dict(costs.budgets),
    }
    return Exported(json.dumps(content, indent=1), tensors, losses)


def _tensors(mixture: AnalysedMixture) -> dict[str, torch.Tensor]:
    spectrum, start = mixture.analysis.context
    return {
        "features": mixture.analysis.normalised.contiguous(),
        "spectrum": torch.view_as_real(spectrum).contiguous(),
        "start": start.contiguous(),
        "target": mixture.target.contiguous(),
    }
