"""Checkpoints of parameters in training, from which training goes on with the same bits."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from hwsearch.errors import UserError
from hwsearch.files.tensors import read_tensors, refused, write_tensors
from hwsearch.training.trainee import Trainee

_KEY = "hwsearch_trainee"
_FORMAT = 2
_MEND = "delete it to train from the start"


@dataclass(frozen=True, eq=False)
class Progress:
    """What a training knows besides the state of its trainee."""

    step: int
    """Number of finished steps."""
    found: Mapping[str, Any] = field(default_factory=dict)
    """What it has found out so far, as JSON."""
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors that it keeps, such as the best parameters."""


class TraineeCheckpoint:
    """The file of a training that was interrupted."""

    def __init__(self, path: Path, training: str, trained: str) -> None:
        """Name the file.

        Args:
            path: the file.
            training: digest of all that the training depends on.
            trained: what is trained, in the words of messages, such as 'a candidate'.
        """
        self._path = path
        self._training = training
        self._trained = trained
        self._what = f"a checkpoint of the training of {trained}"

    def save(self, trainee: Trainee, progress: Progress) -> None:
        """Write the state after a number of steps atomically."""
        tensors = {f"trainee.{name}": tensor for name, tensor in trainee.tensors().items()}
        tensors |= {f"kept.{name}": tensor for name, tensor in progress.tensors.items()}
        content = {"format": _FORMAT, "training": self._training, "step": progress.step, "found": progress.found}
        write_tensors(self._path, tensors, _KEY, content)

    def take(self, trainee: Trainee) -> Progress:
        """Load the file, if it exists, into a trainee; return how far the training is.

        Raises:
            UserError: the file is damaged, or belongs to another training.
        """
        if not self._path.exists():
            return Progress(0)
        content, mapped = read_tensors(self._path, _KEY, self._what, _MEND)
        if content.get("format") != _FORMAT:
            raise refused(self._path, self._what, f"its format is not {_FORMAT}", _MEND)
        if content["training"] != self._training:
            raise UserError(
                f"{self._path}: a checkpoint of another training of {self._trained}; wanted the experiment, base and data "
                f"that it was made with, another name, or another --runs-dir; {_MEND}"
            )
        tensors = {name: tensor.clone() for name, tensor in mapped.items()}
        try:
            trainee.take(_part(tensors, "trainee."))
        except ValueError as error:
            raise refused(self._path, self._what, error, _MEND) from None
        return Progress(content["step"], content["found"], _part(tensors, "kept."))

    def remove(self) -> None:
        """Delete the file if it exists."""
        self._path.unlink(missing_ok=True)


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
