"""What sensitivities were found: the sites that lose most, and where the tables and plots are."""

from collections.abc import Sequence

import numpy as np
from rich.table import Table

from hw_models.figures import significant
from hwsearch.sensitivity.estimate import sensitivity_folder, table_path
from hwsearch.sensitivity.table import SensitivityTable
from hwsearch.view.sensitivity_plot import plot_bits, plot_tables
from hwsearch.view.terminal import say, wide
from hwsearch.workflow.sensitivity import Sensitivities
from hwsearch.workspace import Workspace

FRAGILE_SITES = 5
"""Sites listed for each method."""


def show_sensitivities(workspace: Workspace, found: Sensitivities) -> None:
    """Draw the tables and the exact allocations into the run folder, and print the most fragile sites and where all is."""
    name, folder = workspace.experiment.name, sensitivity_folder(workspace)
    heat_map, bars = folder / "sensitivities.png", folder / "bits.png"
    plot_tables(found.kept, heat_map, f"sensitivities of {name}")
    plot_bits(found.exact, found.tables[found.method].sites, bars, f"{name}: exact for {found.method}")
    wide().print(_most_fragile(list(found.tables.values())))
    for method in found.tables:
        say(f"table:  {table_path(workspace, method)}")
    say(f"plot:   {heat_map}")
    say(f"plot:   {bars}")


def _most_fragile(tables: Sequence[SensitivityTable]) -> Table:
    """The sites that lose most by each method, at their narrowest width."""
    shown = Table("method", "site", "bits", "sensitivity", "unit", title=f"most fragile sites, {tables[0].mixtures} mixtures")
    for table in tables:
        narrowest = np.isfinite(table.value).argmax(axis=1)
        rows = np.arange(len(table.sites))
        order = np.argsort(-table.value[rows, narrowest], kind="stable")[:FRAGILE_SITES].tolist()
        for row in order:
            column = narrowest[row]
            error = table.standard_error[row, column]
            value = significant(table.value[row, column], 3) + ("" if np.isnan(error) else f" ± {significant(error, 2)}")
            first = row == order[0]
            shown.add_row(
                table.method if first else "",
                table.sites[row],
                str(table.widths[column]),
                value,
                table.method.unit if first else "",
                end_section=row == order[-1],
            )
    return shown
