"""Checkpoints of parameters in training, from which training goes on with the same bits."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from hwsearch.errors import UserError
from hwsearch.files.tensors import read_tensors, refused, write_tensors
from hwsearch.training.trainee import Trainee

_KEY = "hwsearch_trainee"
_FORMAT = 1
_WHAT = "a checkpoint of a quantization-aware training"
_MEND = "delete it to train from the start"


@dataclass(frozen=True, eq=False)
class Best:
    """The best parameters so far, with their score."""

    score: float
    parameters: Mapping[str, Tensor]


class TraineeCheckpoint:
    """The file of a training that was interrupted."""

    def __init__(self, path: Path, training: str) -> None:
        """Name the file.

        Args:
            path: the file.
            training: digest of all that the training depends on.
        """
        self._path = path
        self._training = training

    def save(self, trainee: Trainee, step: int, best: Best | None) -> None:
        """Write the state after a number of steps atomically."""
        tensors = {f"trainee.{name}": tensor for name, tensor in trainee.tensors().items()}
        if best is not None:
            tensors |= {f"best.{name}": tensor for name, tensor in best.parameters.items()}
        content = {
            "format": _FORMAT,
            "training": self._training,
            "step": step,
            "score": None if best is None else best.score,
        }
        write_tensors(self._path, tensors, _KEY, content)

    def take(self, trainee: Trainee) -> tuple[int, Best | None]:
        """Load the file, if it exists, into a trainee. Return the number of finished steps and the best parameters.

        Raises:
            UserError: the file is damaged, or belongs to another training.
        """
        if not self._path.exists():
            return 0, None
        content, mapped = read_tensors(self._path, _KEY, _WHAT, _MEND)
        if content.get("format") != _FORMAT:
            raise refused(self._path, _WHAT, f"its format is not {_FORMAT}", _MEND)
        if content["training"] != self._training:
            raise UserError(
                f"{self._path}: the checkpoint of another training ({content['training'][:12]}); wanted that of "
                f"{self._training[:12]}: {_MEND}"
            )
        tensors = {name: tensor.clone() for name, tensor in mapped.items()}
        try:
            trainee.take(_part(tensors, "trainee."))
        except ValueError as error:
            raise refused(self._path, _WHAT, error, _MEND) from None
        best = None if content["score"] is None else Best(content["score"], _part(tensors, "best."))
        return content["step"], best

    def remove(self) -> None:
        """Delete the file if it exists."""
        self._path.unlink(missing_ok=True)


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
