"""What every compute rule of a target file offers."""

from abc import abstractmethod
from typing import ClassVar

from hw_models.sections import Precisions, Section, Source
from hw_models.shape import Shape
from hw_models.work import Work


class ComputeRule(Section):
    """The section `[compute]` of a target file; `rule` names the subclass."""

    general: ClassVar[bool] = False
    """Whether it charges groups of channels and kernels with two axes, and not only frames of channels."""

    rule: str
    source: Source

    @abstractmethod
    def work(self, shape: Shape, activation_bits: int, weight_bits: int) -> Work:
        """Cycles of a layer at executed widths (`weight_bits` is not looked at for an `add`).

        Raises:
            TargetError: the layer cannot run at all.
        """

    @abstractmethod
    def peak_macs_per_cycle(self, activation_bits: int, weight_bits: int) -> float:
        """Most multiply-accumulates per cycle at executed widths: the roof that utilisation is a share of."""

    def check(self, precisions: Precisions) -> None:
        """Refuse precisions that the rule has no numbers for.

        Raises:
            ValueError: names the field and what is wanted.
        """
