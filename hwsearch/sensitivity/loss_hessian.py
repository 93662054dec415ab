"""The second derivative of the training loss in the estimate, in closed form.

With the target t and the estimate e made zero-mean, E = |t|^2 and the loss's floors A and f, the loss is
-k (ln S - ln N), k = 10 / ln 10, of the signal S = a p^2 + f, p = <e, t>, a = E / (E + A)^2, and the noise N = |P e|^2 + f.
P = C - t t' / (E + A) takes mean and target out of a signal (C is the first), and is symmetric. So the Hessian is

    H = k (2 P P / N - 4 n n' / N^2 + (4 a^2 p^2 / S^2 - 2 a / S) t t'),    n = P P e.

All but a part of rank two is the square of P: it is not negative, and one factor of it is known.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from hwsearch.training.loss import ABSOLUTE_FLOOR, RELATIVE_FLOOR

_DECIBELS = 10 / math.log(10)


@dataclass(frozen=True, eq=False)
class LossHessian:
    """H = `spread` P P + sum of weight * direction direction'.

    Attributes:
        spread: 2 k / N.
        directions: weights, and the directions n and t that go with them, [samples].
        target: zero-mean, [samples].
    """

    spread: float
    directions: tuple[tuple[float, Tensor], ...]
    target: Tensor

    def project(self, signals: Tensor) -> Tensor:
        """P of signals [..., samples]."""
        return _project(signals, self.target)


def loss_hessian(estimate: Tensor, target: Tensor) -> LossHessian:
    """The Hessian of the negative SI-SNR in dB (`training.loss.si_snr`) with respect to the estimate.

    Args:
        estimate: [samples].
        target: [samples].
    """
    target = target - target.mean()
    energy = float(target.square().sum())
    floor = RELATIVE_FLOOR * energy + ABSOLUTE_FLOOR
    gain = energy / (energy + ABSOLUTE_FLOOR) ** 2
    product = float((estimate * target).sum())
    residual = _project(estimate, target)
    signal, noise = gain * product**2 + floor, float(residual.square().sum()) + floor
    along_target = 4 * (gain * product / signal) ** 2 - 2 * gain / signal
    return LossHessian(
        spread=2 * _DECIBELS / noise,
        directions=(
            (-4 * _DECIBELS / noise**2, _project(residual, target)),
            (_DECIBELS * along_target, target),
        ),
        target=target,
    )


def _project(signals: Tensor, target: Tensor) -> Tensor:
    """P of signals, for a zero-mean target."""
    centred = signals - signals.mean(dim=-1, keepdim=True)
    return centred - (centred * target).sum(dim=-1, keepdim=True) / (target.square().sum() + ABSOLUTE_FLOOR) * target
