"""What sensitivities were found: the sites that lose most, and where the tables and plots are."""

import numpy as np

from hw_models.figures import significant
from hwsearch.sensitivity.estimate import sensitivity_folder, table_path
from hwsearch.sensitivity.table import SensitivityTable
from hwsearch.view.sensitivity_plot import plot_bits, plot_tables
from hwsearch.view.tables import Column, print_table
from hwsearch.view.terminal import say
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
    tables = list(found.tables.values())
    say(f"most fragile sites, {tables[0].mixtures} mixtures")
    for table in tables:
        print_most_fragile(table)
    for method in found.tables:
        say(f"table:  {table_path(workspace, method)}")
    say(f"plot:   {heat_map}")
    say(f"plot:   {bars}")


def print_most_fragile(table: SensitivityTable) -> None:
    """Print the sites that lose most, at their narrowest width."""
    narrowest = np.isfinite(table.value).argmax(axis=1)
    rows = np.arange(len(table.sites))
    order = np.argsort(-table.value[rows, narrowest], kind="stable")[:FRAGILE_SITES].tolist()
    columns = [
        Column("site", [table.sites[row] for row in order], words=True),
        Column("bits", [str(table.widths[narrowest[row]]) for row in order]),
        Column("sensitivity", [_value(table, row, narrowest[row]) for row in order]),
    ]
    print_table(columns, f"{table.method}, {table.unit}")
    say("")


def _value(table: SensitivityTable, row: int, column: int) -> str:
    error = table.standard_error[row, column]
    return significant(table.value[row, column], 3) + ("" if np.isnan(error) else f" ± {significant(error, 2)}")
