"""Parameters in training, with their optimizer."""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

_SCALE = re.compile(r"\.scale(@\d+)?$")


class Trainee:
    """Parameters in training, with their optimizer: Adam (arXiv 1412.6980).

    The logarithm of a scale is trained: the scale stays positive, and a step changes it by a share of its size.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        device: torch.device,
        rate_factors: Mapping[str, float] | None = None,
        same: Mapping[str, str] | None = None,
    ) -> None:
        """Copy the parameters to the device.

        Args:
            parameters: tensors by name. A scale is named `X.scale` or `X.scale@BITS`. What is not floating point, such as a zero
                point, is fixed and stays on the CPU.
            device: the device that trains.
            rate_factors: factors of the learning rate by parameter name; 1 for others.
            same: parameters that are others of them under further names.
        """
        self._same = dict(same or {})
        self._fixed = {name: tensor.cpu().clone() for name, tensor in parameters.items() if not tensor.is_floating_point()}
        self._trained: dict[str, Tensor] = {}
        """Parameters by name; for a scale, its logarithm."""
        # The norm of the gradient depends on the order in its last bits, and files have another order than graphs.
        for name, tensor in sorted(parameters.items()):
            if name not in self._fixed and name not in self._same:
                value = tensor.detach().log() if _is_scale(name) else tensor.detach().clone()
                self._trained[name] = value.to(device).contiguous().requires_grad_()
        groups: dict[tuple[bool, float], list[Tensor]] = {}
        for name, tensor in self._trained.items():
            groups.setdefault((_is_scale(name), (rate_factors or {}).get(name, 1.0)), []).append(tensor)
        self._kinds = tuple(groups)
        self._optimizer = torch.optim.Adam([{"params": group} for group in groups.values()], fused=True)

    def parameters(self, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Return all parameters, or some, differentiable if they are trained."""
        wanted = (*self._fixed, *self._trained, *self._same) if names is None else names
        return {name: self._fixed[name] if name in self._fixed else self._value(name) for name in wanted}

    def step(self, loss: Tensor, rate: float, scale_rate: float, gradient_clip: float) -> None:
        """Take a step down the gradient of a loss. Parameters that the loss does not depend on stay, and so do their moments.

        Args:
            loss: a scalar.
            rate: learning rate of all but scales.
            scale_rate: learning rate of the logarithms of scales.
            gradient_clip: largest norm of the gradient; a larger one is scaled down to it.
        """
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_([tensor for tensor in self._trained.values() if tensor.grad is not None], gradient_clip)
        for group, (scales, factor) in zip(self._optimizer.param_groups, self._kinds, strict=True):
            group["lr"] = factor * (scale_rate if scales else rate)
        self._optimizer.step()

    def values(self) -> dict[str, Tensor]:
        """Return copies of all parameters, on the CPU."""
        with torch.no_grad():
            return {name: tensor.cpu().clone() for name, tensor in self.parameters().items()}

    def tensors(self) -> dict[str, Tensor]:
        """Return copies of all that changes in training, on the CPU: what `take` needs to go on with the same bits."""
        found = {f"trained.{name}": tensor for name, tensor in self._trained.items()}
        for name, tensor in self._trained.items():
            found |= {f"adam.{part}.{name}": value for part, value in self._optimizer.state.get(tensor, {}).items()}
        return {name: tensor.detach().cpu().clone() for name, tensor in found.items()}

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` gave for the same parameters.

        Raises:
            ValueError: the tensors are those of other parameters. Nothing has changed.
        """
        moments: dict[str, dict[str, Tensor]] = {name: {} for name in self._trained}
        values: dict[str, Tensor] = {}
        for key, tensor in tensors.items():
            kind, _, name = key.partition(".")
            part, _, of = name.partition(".")
            if kind == "trained" and name in self._trained:
                values[name] = self._like(name, tensor)
            elif kind == "adam" and part in ("step", "exp_avg", "exp_avg_sq") and of in self._trained:
                moments[of][part] = tensor.to(self._trained[of].device, copy=True) if part == "step" else self._like(of, tensor)
            else:
                raise ValueError(f"unknown tensor '{key}'")
        if values.keys() != self._trained.keys() or any(len(parts) not in (0, 3) for parts in moments.values()):
            raise ValueError("tensors are missing")
        self._optimizer.state.clear()
        with torch.no_grad():
            for name, trained in self._trained.items():
                trained.copy_(values[name])
                if moments[name]:
                    self._optimizer.state[trained] = moments[name]

    def _value(self, name: str) -> Tensor:
        name = self._same.get(name, name)
        return self._trained[name].exp() if _is_scale(name) else self._trained[name]

    def _like(self, name: str, tensor: Tensor) -> Tensor:
        """Return a copy of a tensor that fits a parameter, on the parameter's device."""
        own = self._trained[name]
        if (tensor.dtype, tensor.shape) != (own.dtype, own.shape):
            raise ValueError(f"'{name}' is {tensor.dtype} {list(tensor.shape)}; wanted {own.dtype} {list(own.shape)}")
        return tensor.to(own.device, copy=True)


def _is_scale(name: str) -> bool:
    return _SCALE.search(name) is not None
