"""Checkpoints of a training run, from which it continues as if it had never stopped."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hwsearch.errors import UserError
from hwsearch.files.tensors import read_tensors, refused, write_tensors

_KEY = "hwsearch_training"
_WHAT = "a checkpoint of a training"
_MEND = "delete it to train from the start"


@dataclass(frozen=True)
class TrainingProgress:
    """The progress of a training run.

    Attributes:
        experiment: digest of the experiment that the run belongs to.
        epoch: number of finished epochs.
        best_epoch: the epoch with the best validation score; 0 before the first.
        best_score_db: mean SI-SNR improvement after that epoch.
        history: (training loss, validation score) of each epoch, dB.
    """

    experiment: str
    epoch: int = 0
    best_epoch: int = 0
    best_score_db: float = -1e9
    history: tuple[tuple[float, float], ...] = ()


def save_checkpoint(
    path: Path,
    model: nn.Module,
    best: Mapping[str, Tensor],
    optimizer: torch.optim.Adam,
    progress: TrainingProgress,
) -> None:
    """Write model, best weights so far, Adam's moments and progress atomically."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{name}": value for name, value in state.items()}
    write_tensors(path, {name: tensor.detach().clone() for name, tensor in tensors.items()}, _KEY, asdict(progress))


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Adam, experiment: str
) -> tuple[TrainingProgress, dict[str, Tensor]]:
    """Load a checkpoint into model and optimizer; return the progress and the best weights.

    Raises:
        UserError: the file is damaged, or belongs to another experiment.
    """
    content, tensors = read_tensors(path, _KEY, _WHAT, _MEND)
    try:
        history = tuple((float(loss), float(score)) for loss, score in content.pop("history"))
        progress = TrainingProgress(**content, history=history)
    except (KeyError, TypeError, ValueError) as error:
        raise refused(path, _WHAT, error, _MEND) from None
    if progress.experiment != experiment:
        raise UserError(
            f"{path}: checkpoint of another experiment, or of other recordings ({progress.experiment[:12]}, this one is "
            f"{experiment[:12]}); wanted those it was made with, or another run folder"
        )
    try:
        model.load_state_dict(_part(tensors, "model."))
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _part(tensors, "adam.").items():
            index, field = name.split(".", 1)
            moments.setdefault(int(index), {})[field] = tensor
        groups: list[dict[str, Any]] = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": moments, "param_groups": groups})
    except (RuntimeError, ValueError) as error:
        raise refused(path, "a checkpoint of this network", error, _MEND) from None
    return progress, _part(tensors, "best.")


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
