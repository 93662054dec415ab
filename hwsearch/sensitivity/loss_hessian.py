"""The second derivative of the training loss with respect to the estimate, in closed form.

Let the target t and the estimate e be zero-mean, E = |t|^2, p = <e, t>, a = E / (E + A)^2, and A and f the floors of the loss.
The loss is -k (ln S - ln N) with k = 10 / ln 10, the signal S = a p^2 + f, and the noise N = |P e|^2 + f. The symmetric matrix
P = C - t t' / (E + A) takes the mean (C) and the target out of a signal. So the Hessian is

    H = k (2 P P / N - 4 n n' / N^2 + (4 a^2 p^2 / S^2 - 2 a / S) t t'),    n = P P e.

Except for a part of rank two it is a multiple of P P: not negative, and with a known factor.
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
        directions: pairs of a weight and a direction, for n and t, [samples].
        target: zero-mean, [samples].
    """

    spread: float
    directions: tuple[tuple[float, Tensor], ...]
    target: Tensor

    def project(self, signals: Tensor) -> Tensor:
        """P times signals [..., samples]."""
        return _project(signals, self.target)


def loss_hessian(estimate: Tensor, target: Tensor) -> LossHessian:
    """The Hessian of the negative SI-SNR in dB (`training.loss.si_snr`) at an estimate, both [samples]."""
    target = target - target.mean()
    energy = float(target.square().sum())
    floor = RELATIVE_FLOOR * energy + ABSOLUTE_FLOOR
    gain = energy / (energy + ABSOLUTE_FLOOR) ** 2
    product = float((estimate * target).sum())
    residual = _project(estimate, target)
    signal, noise = gain * product**2 + floor, float(residual.square().sum()) + floor
    along_target = 4 * (gain * product / signal) ** 2 - 2 * gain / signal
    along_noise = (-4 * _DECIBELS / noise**2, _project(residual, target))
    return LossHessian(2 * _DECIBELS / noise, (along_noise, (_DECIBELS * along_target, target)), target)


def _project(signals: Tensor, target: Tensor) -> Tensor:
    centred = signals - signals.mean(dim=-1, keepdim=True)
    return centred - (centred * target).sum(dim=-1, keepdim=True) / (target.square().sum() + ABSOLUTE_FLOOR) * target
