"""The scales that tied activations share (`network.sites.Tie`).

The first grid of a tie, in the order of execution, holds the scale. The others follow.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from hwsearch.errors import UserError
from hwsearch.experiment import NARROW_BITS, WIDE_BITS
from hwsearch.network.sites import Tie
from hwsearch.separator.quantizers import is_float

SUM_ZERO_POINT = 2 ** (WIDE_BITS - 1)
"""Zero point of a sum of 16 bits: more than 100 integers of 8 bits are added without clipping."""

GridKey = tuple[str, int]
"""An activation site and a width of it."""


def followers(ties: Iterable[Tie], widths: Iterable[GridKey]) -> dict[GridKey, GridKey]:
    """Return the grid that holds the scale of each grid without one of its own.

    Args:
        ties: of the network.
        widths: sites with their widths; a site may occur with several.
    """
    place = {site: (number, site in tie.sums) for number, tie in enumerate(ties) for site in (*tie.sites, *tie.sums)}
    first: dict[tuple[int, int], GridKey] = {}
    found: dict[GridKey, GridKey] = {}
    for site, bits in widths:
        if site not in place or is_float(bits):
            continue
        number, is_sum = place[site]
        if bits == WIDE_BITS if is_sum else bits <= NARROW_BITS:
            holder = first.setdefault((number, NARROW_BITS if is_sum else bits), (site, bits))
            if holder != (site, bits):
                found[site, bits] = holder
    return found


def follower_names(ties: Iterable[Tie], widths: Mapping[str, int]) -> dict[str, str]:
    """Return the name of the scale that each following scale of an allocation repeats."""
    pairs = followers(ties, widths.items())
    return {f"{site}.scale": f"{holder}.scale" for (site, _), (holder, _) in pairs.items()}


def check_tied(path: Path, parameters: Mapping[str, Tensor], names: Mapping[str, str], mend: str) -> None:
    """Refuse a file whose tied scales differ.

    Args:
        path: the file.
        parameters: its tensors.
        names: the scale that each following scale repeats.
        mend: what to do about it.

    Raises:
        UserError: two scales differ. Names `path`.
    """
    for name, holder in names.items():
        if not torch.equal(parameters[name], parameters[holder]):
            raise UserError(f"{path}: '{name}' is not '{holder}', to which quantization.tied_adds ties it; {mend}")
