"""The systems of the table, and the file that lists them: `report` reads it, so it computes nothing anew."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from hwsearch.errors import UserError
from hwsearch.files.reading import read_json
from hwsearch.files.writing import atomic_write_json
from hwsearch.separator.allocation import BitAllocation


class Kind(StrEnum):
    """Whose choices a system follows."""

    FULL = "full precision"
    REFERENCE = "reference"
    """Those of the reference system: weights only, one scale per layer, ends in full precision, no training."""
    OURS = "hwsearch"
    """Ours: every tensor quantized, and training."""


@dataclass(frozen=True)
class System:
    """A row of the table.

    Attributes:
        kind: whose choices it follows.
        name: such as `mixed, KL, 4 bits`.
        allocation: width of every site.
        file_bytes: size of its file.
        average_bits: mean width of the weights, over the layers that `kind` quantizes.
        published: what the reference's paper reports for it: SI-SNR lost in dB, and how many times smaller the file is.
        steps: number of training steps of its own.
    """

    kind: Kind
    name: str
    allocation: BitAllocation
    file_bytes: int
    average_bits: float
    published: tuple[float, float] | None = None
    steps: int = 0

    def to_json(self) -> dict[str, Any]:
        """Convert to a JSON object."""
        return {
            "kind": self.kind.value,
            "name": self.name,
            "allocation": self.allocation.to_json(),
            "file_bytes": self.file_bytes,
            "average_bits": self.average_bits,
            "published": self.published,
            "steps": self.steps,
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """Read the result of `to_json`."""
        published = content["published"]
        return cls(
            Kind(content["kind"]),
            content["name"],
            BitAllocation.of(content["allocation"]),
            content["file_bytes"],
            content["average_bits"],
            None if published is None else tuple(published),
            content["steps"],
        )


def write_systems(path: Path, systems: Sequence[System]) -> None:
    """Write the list of systems."""
    atomic_write_json(path, {"systems": [system.to_json() for system in systems]})


def read_systems(path: Path) -> list[System]:
    """Read the list of systems.

    Raises:
        UserError: there is none.
    """
    if not path.is_file():
        raise UserError(f"{path}: no list of systems there; wanted that of an earlier `python experiments/paper_table run`")
    return [System.from_json(content) for content in read_json(path, "the systems of the table")["systems"]]
