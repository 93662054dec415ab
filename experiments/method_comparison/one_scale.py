"""The reference system's way of scaling weights (arXiv 2111.14479): one table for the weights of all layers."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from hwsearch.separator.allocation import is_weight, weight_limit
from hwsearch.separator.prepare import PreparedBase
from hwsearch.separator.quantizers import mse_scale, stored_scale
from hwsearch.separator.trained import TrainedState

_NOTHING = 1e-12


def with_one_scale(base: PreparedBase, state: TrainedState) -> TrainedState:
    """Give the weights of all layers, as they are before the norms are folded in, one scale of least squared error.

    Training then adapts the scale of each channel.

    Args:
        base: a base whose weights are rounded to the nearest integers.
        state: all weights at one width, with a scale for each output channel.
    """
    (bits,) = {bits for site, bits in state.allocation.widths if is_weight(site)}
    limit, gains = weight_limit(bits), _gains(base)
    unfolded = {site: state.parameters[site].double() / gain for site, gain in gains.items()}
    rows = torch.cat([weight.flatten() for weight in unfolded.values()])[None]
    scale = float(mse_scale(rows, rows.abs().amax(dim=1) / limit, limit))
    changed = {f"{site}.scale": stored_scale((scale * gain.abs()).float()) for site, gain in gains.items()}
    return replace(state, parameters={**state.parameters, **changed})


def _gains(base: PreparedBase) -> Mapping[str, Tensor]:
    """Return what folding has multiplied the weights of each output channel by, [out, 1, 1], by weight site."""
    found = {}
    for site in base.sites.weights:
        before = base.separator.network.get_parameter(site).detach().double()
        power = before.square().sum(dim=(1, 2), keepdim=True)
        gain = (before * base.graph.parameters[site].double()).sum(dim=(1, 2), keepdim=True) / power.clamp_min(1e-30)
        found[site] = torch.where(gain.abs() > _NOTHING, gain, torch.ones_like(gain))
    return found
