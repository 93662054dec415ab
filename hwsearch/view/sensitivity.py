"""The sites that lose most, and the files of the tables and plots."""

import numpy as np

from hw_models.figures import significant
from hwsearch.sensitivity.estimate import sensitivity_folder, table_path
from hwsearch.sensitivity.table import SensitivityTable
from hwsearch.view.sensitivity_plot import draw_bits, draw_tables, save_figure
from hwsearch.view.tables import Column, print_table
from hwsearch.view.terminal import say
from hwsearch.workflow.sensitivity import Sensitivities
from hwsearch.workspace import Workspace

FRAGILE_SITES = 5
"""Sites listed for each method."""


def show_sensitivities(workspace: Workspace, found: Sensitivities) -> None:
    """Draw the tables and the exact allocations into the run folder. Print the most fragile sites and the files."""
    name, folder = workspace.experiment.name, sensitivity_folder(workspace)
    heat_map, bars = folder / "sensitivities.png", folder / "bits.png"
    save_figure(draw_tables(found.kept, f"sensitivities of {name}"), heat_map)
    save_figure(draw_bits(found.exact, found.tables[found.method].sites, f"{name}: exact for {found.method}"), bars)
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
    value, error = (of_all[np.arange(len(table.sites)), narrowest] for of_all in (table.value, table.standard_error))
    order = np.argsort(-value, kind="stable")[:FRAGILE_SITES].tolist()
    columns = [
        Column("site", [table.sites[row] for row in order], words=True),
        Column("bits", [str(table.widths[narrowest[row]]) for row in order]),
        Column("sensitivity", [_with_error(value[row], error[row]) for row in order]),
    ]
    print_table(columns, f"{table.method}, {table.unit}")
    say("")


def _with_error(value: float, error: float) -> str:
    return significant(value, 3) + ("" if np.isnan(error) else f" ± {significant(error, 2)}")
