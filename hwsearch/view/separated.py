"""What a separation wrote."""

from collections.abc import Sequence

from hwsearch.view.terminal import tell
from hwsearch.workflow.separate import Separated


def print_separated(files: Sequence[Separated]) -> None:
    """Name the files, on standard error. Behind each direction that was found comes its strength, 1 for the strongest."""
    for each in files:
        found = each.direction
        said = "" if found is None else f"{found.doa_deg:3.0f} degrees, strength {found.strength:.2f}: "
        tell(f"target: {said}{each.path}")
