"""The loss of quantized networks in training. The full-precision base is their teacher."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hwsearch.experiment import QatConfig
from hwsearch.network.operations import Add
from hwsearch.separator.allocation import uniform
from hwsearch.separator.prepare import PreparedBase
from hwsearch.training.loss import si_snr
from hwsearch.training.pool import TrainingPool
from hwsearch.training.trainable import TrainableNetwork

_FLOOR = 1e-8
"""Share of a tensor's energy that is added to its error. It bounds the gradient where student and teacher agree."""


class Teacher:
    """A base in full precision, with what its students compare.

    Attributes:
        base: the base.
        blocks: names of the sums of its graph, which are the outputs of residual blocks.
    """

    def __init__(self, base: PreparedBase) -> None:
        self.base = base
        self.blocks = frozenset(operation.name for operation in base.graph.operations if isinstance(operation, Add))
        self._network = TrainableNetwork(base.graph, base.sites, uniform(base.sites, 32))

    def block_error(self, x: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Compare the outputs of blocks with the teacher's for the same input.

        Args:
            x: the input of the network [channels, batch, frames].
            tensors: the student's outputs of the blocks by name. Those that have other channels than the teacher's do not count.

        Returns:
            The energy of the error over that of the teacher's tensor without its mean over batch and frames, in dB; the mean over
            the blocks, []. 0 if none counts.
        """
        with torch.no_grad():
            _, wanted = self._network.watched(self.base.graph.parameters, x, tensors.keys())
        errors = []
        for name, found in tensors.items():
            if found.shape != wanted[name].shape:
                continue
            energy = (wanted[name] - wanted[name].mean(dim=(1, 2), keepdim=True)).square().sum()
            error = (found - wanted[name]).square().sum()
            errors.append(10 * torch.log10(error / energy + _FLOOR))
        return torch.stack(errors).mean() if errors else x.new_zeros(())


def distilled_loss(
    teacher: Teacher,
    network: TrainableNetwork,
    parameters: Mapping[str, Tensor],
    pool: TrainingPool,
    examples: Sequence[int],
    config: QatConfig,
) -> Tensor:
    """Compute the loss of a student over examples of the pool, in dB: a scalar.

    It is the negative SI-SNR to the target and to the teacher's estimate, in shares, plus the error of the blocks' outputs times
    `config.block_distillation`.

    Args:
        teacher: the base, whose front end synthesises the student's estimate.
        network: the network of the base at an allocation, whole or narrowed.
        parameters: parameters as `network` takes them.
        pool: training mixtures.
        examples: numbers of examples in the pool.
        config: the shares.
    """
    base = teacher.base
    batch = pool.batch(examples, base.separator)
    x = batch.analysis.normalised.transpose(0, 1).contiguous()
    watched = teacher.blocks if config.block_distillation else frozenset[str]()
    output, tensors = network.watched(parameters, x, watched)
    estimate = base.separator.synthesise(batch.analysis, output.transpose(0, 1), batch.target.shape[-1])
    to_target, to_base = (-si_snr(estimate, wanted).mean() for wanted in (batch.target, batch.estimate))
    loss = (1 - config.distillation) * to_target + config.distillation * to_base
    return loss + config.block_distillation * teacher.block_error(x, tensors) if tensors else loss
