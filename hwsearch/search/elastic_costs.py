"""What configurations cost where parts of the network may be left out: as exact columns, and as tables for proposals."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hw_models.cost import Costs
from hw_models.elastic import ElasticWorkload
from hw_models.elastic_cost import compile_elastic, evaluate_elastic
from hw_models.elastic_shapes import BoolArray, Kept, elastic_shapes
from hw_models.target import Target
from hw_models.workload import WIDTHS, Workload
from hwsearch.export.onnx_size import OnnxSize
from hwsearch.network.graph import Graph
from hwsearch.network.options import Options
from hwsearch.network.sites import find_sites
from hwsearch.search.exact.problem import FloatArray, IntArray
from hwsearch.search.objectives import PACKED_SIZE, SIZE
from hwsearch.separator.allocation import ACTIVATION_WIDTHS, WEIGHT_WIDTHS, is_weight
from hwsearch.separator.elastic_workload import build_elastic_workload

Values = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class ElasticNetwork:
    """A network, what can be left out of it, and how it is costed.

    Attributes:
        graph: the whole network; the values of its parameters do not matter.
        options: what can be left out.
        values: what may be kept of each option that is searched, in rising order; the last value is the whole.
        workload_of: makes the workload of a network.
        size_of: measures the exported files of a network.
    """

    graph: Graph
    options: Options
    values: Values
    workload_of: Callable[[Graph], Workload]
    size_of: Callable[[Graph], OnnxSize]


class ElasticCosts:
    """Every cost of the configurations of a network.

    `bits` are widths [configurations, sites of the whole workload]; those of what is left out do not matter. `structures` are
    positions of values [configurations, options].
    """

    def __init__(self, network: ElasticNetwork, targets: Mapping[str, Target]) -> None:
        """Compile the targets.

        Raises:
            TargetError: a target that cannot run a layer at any width.
        """
        self.elastic = build_elastic_workload(network.graph, network.options, network.values, network.workload_of)
        self.shapes = elastic_shapes(self.elastic)
        self.tables = {name: compile_elastic(target, self.shapes) for name, target in targets.items()}
        self.whole = {name: table.table for name, table in self.tables.items()}
        """The targets' tables, which tell their names and metrics."""
        self._size = _ElasticSize(network, self.elastic)

    def own(self, bits: IntArray, structures: IntArray, *, exact: bool = True) -> dict[str, FloatArray]:
        """Compute the costs that need no target, [configurations] each.

        Without `exact`, the size of a file may be about a hundred bytes too large, because its description is compressed; it
        takes a hundredth of the time where there are many structures.
        """
        kept = Kept(self.shapes, bits, structures)
        packed, _, _ = kept.counts()
        return {
            SIZE: self._size.of(kept.sites_there(), bits, structures, exact=exact),
            PACKED_SIZE: packed.astype(np.float64),
            "average_bits": kept.average_weight_bits(),
            "tcn_average_bits": kept.average_weight_bits(inner=True),
        }

    def of_target(self, name: str, metrics: tuple[str, ...], bits: IntArray, structures: IntArray) -> dict[str, FloatArray]:
        """Compute metrics of a target by column name, [configurations] each; infinite where the target does not run them."""
        return target_columns(name, metrics, *evaluate_elastic(self.tables[name], bits, structures))


def target_columns(target: str, metrics: Sequence[str], can: BoolArray, costs: Costs) -> dict[str, FloatArray]:
    """Return metrics of a target by column name, infinite where it cannot run what is charged.

    Args:
        target: name of the target.
        metrics: of `CostTable.metrics`, or `fits`.
        can: what it can run, [charged].
        costs: the costs of these alone, in the same order.
    """
    columns = {}
    for metric in metrics:
        values = np.full(len(can), math.inf)
        values[can] = costs.column(metric)
        columns[f"{metric}[{target}]"] = values
    return columns


class _ElasticSize:
    """The bytes of the exported files of configurations."""

    def __init__(self, network: ElasticNetwork, elastic: ElasticWorkload) -> None:
        self._network, self._elastic = network, elastic
        whole = network.size_of(network.graph)
        sites, most = elastic.workload.sites, max((len(option.values) for option in elastic.options), default=1)
        self._option = np.full(len(sites), len(elastic.options), np.int64)
        """Option [sites] that shapes a site; one behind the last if none does."""
        self._table = np.repeat(_site_bytes(whole, sites)[:, None], most, axis=1)
        """Bytes [sites, positions of values, widths]."""
        self._constants: dict[tuple[int, ...], float] = {}
        self._single = np.zeros((len(elastic.options), most))
        """Change [options, positions of values] of the constant part by one option alone."""
        for column, option in enumerate(elastic.options):
            for position, value in enumerate(option.values[:-1]):
                narrow = network.options.narrowed(network.graph, {option.name: value})
                size = network.size_of(narrow)
                self._single[column, position] = size.constant - whole.constant
                if not network.options.is_block(option.name):
                    self._narrow(column, position, option.name, narrow, size)
        self._whole = float(whole.constant)

    def of(self, there: BoolArray, bits: IntArray, structures: IntArray, *, exact: bool) -> FloatArray:
        """Compute the sizes [configurations], given which sites [sites, configurations] are there."""
        positions = np.concatenate([structures, np.zeros((len(bits), 1), np.int64)], axis=1)[:, self._option]
        held = self._table[np.arange(len(self._table)), positions, bits]
        constants = (
            self._exact_constants(structures)
            if exact
            else self._whole + self._single[np.arange(len(self._single)), structures].sum(axis=1)
        )
        total: FloatArray = constants + np.where(there.T, held, 0.0).sum(axis=1)
        return total

    def _narrow(self, column: int, position: int, option: str, narrow: Graph, size: OnnxSize) -> None:
        """Enter the sites of the layers that an option narrows."""
        group = next(group for group in self._network.options.groups if group.name == option)
        sites = [site for site in find_sites(narrow).weights if site.rpartition(".")[0] in group.layers]
        rows = [self._elastic.workload.column[site] for site in sites]
        self._option[rows] = column
        self._table[rows, position] = _site_bytes(size, sites)

    def _exact_constants(self, structures: IntArray) -> FloatArray:
        """Measure what the files of structures hold beside their sites, [configurations]."""
        return np.array([self._constant(tuple(row)) for row in structures.tolist()], np.float64)

    def _constant(self, positions: tuple[int, ...]) -> float:
        if positions not in self._constants:
            chosen = zip(self._elastic.options, positions, strict=True)
            structure = {option.name: option.values[position] for option, position in chosen}
            narrow = self._network.options.narrowed(self._network.graph, structure)
            self._constants[positions] = float(self._network.size_of(narrow).constant)
        return self._constants[positions]


def _site_bytes(size: OnnxSize, sites: "tuple[str, ...] | list[str]") -> FloatArray:
    """Return the bytes [sites, widths] of sites at every width that they can have; NaN at others."""
    table = np.full((len(sites), max(WIDTHS) + 1), math.nan)
    for row, site in enumerate(sites):
        widths = list(WEIGHT_WIDTHS if is_weight(site) else ACTIVATION_WIDTHS)
        table[row, widths] = [size.of_site(site, bits) for bits in widths]
    return table
