"""The base class of the compute rules of target files."""

from abc import abstractmethod
from typing import ClassVar

from hw_models.sections import Precisions, Section, Source
from hw_models.shape import Shape
from hw_models.work import Work


class ComputeRule(Section):
    """The section `[compute]` of a target file; `rule` names the subclass."""

    general: ClassVar[bool] = False
    """Whether the rule also charges groups of channels and two-dimensional kernels."""

    rule: str
    source: Source

    @abstractmethod
    def work(self, shape: Shape, activation_bits: int, weight_bits: int) -> Work:
        """Cycles of a layer at executed widths; an `add` ignores `weight_bits`.

        Raises:
            TargetError: the layer cannot run.
        """

    @abstractmethod
    def peak_macs_per_cycle(self, activation_bits: int, weight_bits: int) -> float:
        """Peak multiply-accumulates per cycle at executed widths, of which utilisation is a share."""

    def check(self, precisions: Precisions) -> None:
        """Raise `ValueError` for precisions without numbers in the rule."""
