"""What configurations cost on an experiment's targets: as columns of the record, as exact sums, and as tables for proposals."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from hw_models.compile import CostTable, KnownTables, compile_target
from hw_models.cost import evaluate_runnable
from hw_models.errors import TargetError
from hw_models.packed import average_weight_bits, packed_size_bytes
from hw_models.target import Target, load_target
from hw_models.workload import WIDTHS, Workload, bits_matrix
from hwsearch.data.arrays import microphone_array
from hwsearch.errors import UserError
from hwsearch.experiment import Experiment
from hwsearch.export.onnx_size import onnx_size
from hwsearch.files.reading import digest
from hwsearch.network.graph import Graph
from hwsearch.network.options import Structure
from hwsearch.search.elastic_costs import ElasticCosts, ElasticNetwork, target_columns
from hwsearch.search.exact.costs import NotSeparableError, peak_activation_cost, separable_cost, site_changes
from hwsearch.search.exact.layout import Layout, PartTable
from hwsearch.search.exact.milp import optimum
from hwsearch.search.exact.problem import AllocationProblem, Cost, FloatArray, IntArray, Widths
from hwsearch.search.objectives import PACKED_SIZE, SIZE
from hwsearch.search.part_tables import part_table
from hwsearch.search.posterior.engine import KnownCost, table_cost
from hwsearch.search.posterior.model import OptionArray
from hwsearch.search.space import SearchSpace
from hwsearch.separator.allocation import ACTIVATION_WIDTHS, WEIGHT_WIDTHS, is_weight
from hwsearch.separator.configuration import Configuration
from hwsearch.separator.front_end import FrontEnd
from hwsearch.separator.separator import build_front_end
from hwsearch.separator.untrained import UntrainedNetwork, untrained_network

_KEPT = 16
"""Number of workloads that a process keeps in its cache."""

_STARTS = 256
"""Number of random allocations that the search for the least cost starts from, in addition to the uniform ones."""

Charge = Callable[[IntArray], FloatArray]
"""Computes the cost [allocations] of widths [allocations, sites of the workload]."""

ConfigurationCharge = Callable[[IntArray, IntArray], FloatArray]
"""Computes the cost [configurations] of widths, and of positions of what is kept of the options [configurations, options]."""


class CostBook:
    """Every cost that an experiment's candidates have, by column name.

    These are `size_bytes`, `packed_bytes`, `average_bits`, `tcn_average_bits` and, for each target, `latency_ms[target]` and the
    other `CostTable.metrics`.
    """

    def __init__(self, experiment: Experiment, space: SearchSpace) -> None:
        """Compile the targets.

        Raises:
            UserError: an unknown target or a wrong target file.
        """
        self._space = space
        self._workload = workload = experiment_workload(experiment)
        self._elastic = _elastic_costs(experiment, space) if space.options else None
        self._targets = self._elastic.whole if self._elastic else compile_targets(experiment, workload)
        inner = inner_weight_sites(workload)
        self._own: dict[str, Charge] = {
            SIZE: file_size(experiment, workload),
            PACKED_SIZE: lambda bits: packed_size_bytes(workload, bits).astype(np.float64),
            "average_bits": lambda bits: average_weight_bits(workload, bits),
            "tcn_average_bits": lambda bits: average_weight_bits(workload, bits, inner),
        }
        self._widths = np.zeros((len(workload.sites), max(len(widths) for _, widths in space.widths)), np.int64)
        """Width [sites of the workload, options] at each option."""
        for site, widths in space.widths:
            self._widths[workload.column[site], : len(widths)] = widths
        self._choices = np.full(len(workload.sites), -1)
        """Choice [sites of the workload] that decides a site's width; -1 if it has only one."""
        for choice, (name, _) in enumerate(space.free):
            self._choices[[workload.column[site] for site in space.members[name]]] = choice

    def charge(self, configurations: Sequence[Configuration]) -> list[dict[str, float]]:
        """Compute all costs of configurations, and `fits[target]` for each target.

        `fits` is 1 if weights and activations fit into the memory that the target states for them, else 0. The costs of a target
        that cannot run a configuration at all (floating point on an integer machine) are infinite.
        """
        gone = {site: widths[-1] for site, widths in self._space.widths} if self._elastic else {}
        bits = bits_matrix(self._workload, [gone | configuration.allocation.by_site for configuration in configurations])
        if self._elastic is None:
            columns = {name: charge(bits) for name, charge in self._own.items()}
            for table in self._targets.values():
                columns |= target_columns(table.target.name, ("fits", *table.metrics), *evaluate_runnable(table, bits))
        else:
            structures = self._elastic.elastic.structures([configuration.kept for configuration in configurations])
            columns = self._elastic.own(bits, structures)
            for name, table in self._targets.items():
                columns |= self._elastic.of_target(name, ("fits", *table.metrics), bits, structures)
        return [{name: float(values[row]) for name, values in columns.items()} for row in range(len(bits))]

    def exact(self, name: str) -> Cost:
        """Return a cost as sums over the sites.

        Raises:
            UserError: an unknown cost, a width that the target cannot run, or (`NotSeparableError`) a cost that is no sum.
        """
        charge = self._charge(name)
        metric, _, target = name.removesuffix("]").partition("[")
        if metric == "peak_activation_bytes":
            return peak_activation_cost(self._targets[target], self._space.widths)
        return separable_cost(name, charge, self._workload, self._space.widths)

    def known(self, name: str) -> KnownCost:
        """Return a cost for the posterior engine. A cost that is no sum is approximated by its changes from the narrowest
        allocation.

        Raises:
            UserError: an unknown cost, or one of a target that does not run the narrowest allocation.
        """
        if self._elastic is not None:
            elastic = self.part_table(name)
            return KnownCost(np.zeros((0, 0)), self._quick_charge(name, elastic), elastic)
        charge = self._charge(name)
        by_site, least = site_changes(charge, self._workload, self._space.widths)
        if not math.isfinite(least):
            raise _not_run(name)
        row = {site: index for index, (site, _) in enumerate(self._space.widths)}
        table = np.zeros((len(self._space.free), max(self._space.shape, default=0)))
        for index, (choice, widths) in enumerate(self._space.free):
            table[index, : len(widths)] = sum(by_site[row[site], : len(widths)] for site in self._space.members[choice])
        if name in (SIZE, PACKED_SIZE):  # a sum of whole bytes: its changes add up to the last bit
            return table_cost(table, least)
        return KnownCost(table, lambda options: charge(self._bits(options)))

    def check_limits(self, limits: Mapping[str, float]) -> None:
        """Refuse limits that no allocation meets, or, where parts may be left out, that no configuration meets by itself.

        Raises:
            UserError: no allocation meets a limit (names it, and the least that can be met), or a cost is unknown.
        """
        sums: list[Cost] = []
        for name, limit in limits.items():
            if (cost := self._sum(name)) is not None:
                sums.append(cost)
            elif (least := self._least_found(name)) > limit:
                more = " or leave more out" if self._elastic else ""
                raise UserError(
                    f"search.limits: limit {name} <= {limit:.10g} cannot be met; the least of all that was tried is "
                    f"{least:.10g}: raise it, or allow other widths{more}"
                )
        if sums:
            loss = np.zeros((len(self._space.widths), max(len(widths) for _, widths in self._space.widths)))
            problem = AllocationProblem(self._space.widths, loss, tuple(sums), self._space.groups)
            try:
                optimum(problem, {cost.name: limits[cost.name] for cost in sums})
            except UserError as error:
                raise UserError(f"search.limits: {error}; raise it, or allow narrower widths") from None

    def _sum(self, name: str) -> Cost | None:
        """Return a cost as sums over the sites; None if it is none."""
        if self._elastic is not None:
            return None
        try:
            return self.exact(name)
        except NotSeparableError:
            return None

    def _least_found(self, name: str) -> float:
        """Look for the least value of a cost that is no sum, by descents from uniform and random allocations.

        In a descent, each choice in turn takes the width that costs least, until none changes.
        """
        charge = self.point_charge(name)
        shape = np.array(self._space.shape, np.int64)
        random = np.random.default_rng(0).integers(shape, size=(_STARTS, len(shape)))
        uniform = np.minimum(np.arange(shape.max(initial=1))[:, None], shape - 1)
        starts = np.concatenate([uniform, random])
        point = starts[int(charge(starts).argmin())]
        while True:
            before = point.copy()
            for choice, widths in enumerate(shape):
                tried = np.repeat(point[None], widths, axis=0)
                tried[:, choice] = np.arange(widths)
                point = tried[int(charge(tried).argmin())]
            if (point == before).all():
                # The size of a file is a little off where parts may be left out; `charge` is exact.
                return self.charge([self._space.decode(tuple(point.tolist()))])[0][name]

    def point_charge(self, name: str) -> Callable[[OptionArray], FloatArray]:
        """Return the function that computes a cost [N] of points [N, variables]. Points need not be canonical.

        Where parts may be left out, the sizes of files may be about a hundred bytes off if there are several points
        (`ElasticCosts.own`).

        Raises:
            UserError: an unknown cost.
        """
        charge = self._charge(name)
        if self._elastic is None:
            return lambda points: charge(self._bits(points))
        elastic, choices = self._elastic, len(self._space.free)
        if name in self._own:
            return lambda points: elastic.own(self._bits(points[:, :choices]), points[:, choices:], exact=len(points) == 1)[name]
        metric, _, target = name.removesuffix("]").partition("[")
        return lambda points: elastic.of_target(target, (metric,), self._bits(points[:, :choices]), points[:, choices:])[name]

    def _quick_charge(self, name: str, table: PartTable) -> Callable[[OptionArray], FloatArray]:
        """Return `point_charge`, or for an FPGA the table's sum: its foldings take tens of milliseconds for each structure."""
        charge, layout = self.point_charge(name), Layout.of(self._space)
        target = name.removesuffix("]").partition("[")[2]
        if target not in self._targets or self._targets[target].dataflow is None:
            return charge
        return lambda points: charge(points) if len(points) == 1 else layout.total(table, layout.canonical(points))

    def part_table(self, name: str) -> PartTable:
        """Return a cost as a table over the parts of the network (`part_tables.part_table`).

        Raises:
            UserError: an unknown cost, or one of a target that does not run the narrowest allocation.
        """
        found = part_table(self._space, self.point_charge(name))
        if found is None:
            raise _not_run(name)
        return found

    def _bits(self, options: OptionArray) -> IntArray:
        """Return the widths [allocations, sites of the workload] of options [allocations, choices]."""
        with_constant = np.pad(np.asarray(options, np.int64), ((0, 0), (0, 1)))
        return self._widths[np.arange(len(self._choices)), with_constant[:, self._choices]]

    def _charge(self, name: str) -> Charge:
        """Return the function that computes a cost."""
        if name in self._own:
            return self._own[name]
        for target, table in self._targets.items():
            for metric in table.metrics:
                if name == f"{metric}[{target}]":
                    return lambda bits: target_columns(target, (metric,), *evaluate_runnable(table, bits))[name]
        wanted = ", ".join(self._own)
        if self._targets:
            metrics = dict.fromkeys(f"{metric}[T]" for table in self._targets.values() for metric in table.metrics)
            wanted += f", or {', '.join(metrics)} with T one of {', '.join(self._targets)}"
        raise UserError(f"search.objectives, search.limits: no cost '{name}'; wanted {wanted}")


def _not_run(name: str) -> UserError:
    return UserError(f"{name}: the target does not run the narrowest allocation; wanted widths that it runs")


def _elastic_costs(experiment: Experiment, space: SearchSpace) -> ElasticCosts:
    """Compile the targets for all that a space may leave out.

    Raises:
        UserError: an unknown target, or a wrong target file.
    """
    network, frames = untrained_network(experiment), inference_frames(experiment)
    if space.network is None:
        raise ValueError("a space with options wants the network that they are options of")
    per_channel, front_end = experiment.quantization.weight_scale == "per_channel", _front_end(experiment)
    frame_seconds = front_end.frame_samples / experiment.data.sample_rate

    def workload_of(graph: Graph) -> Workload:
        found = replace(network, graph=graph).workload(frames, frame_seconds, per_channel=per_channel)
        return found.streamed() if experiment.search.streaming else found

    elastic = ElasticNetwork(
        network.graph,
        space.network.options,
        dict(space.options),
        workload_of,
        lambda graph: onnx_size(graph, front_end, per_channel=per_channel),
    )
    try:
        return ElasticCosts(elastic, _targets(experiment))
    except TargetError as error:
        raise UserError(str(error)) from None


def size_cost(experiment: Experiment, widths: Widths) -> Cost:
    """Return the cost `size_bytes` as a sum over sites with these widths."""
    workload = experiment_workload(experiment)
    return separable_cost(SIZE, file_size(experiment, workload), workload, widths)


def file_size(experiment: Experiment, workload: Workload) -> Charge:
    """Return the function that computes the bytes of exported ONNX files."""
    per_channel = experiment.quantization.weight_scale == "per_channel"
    size = onnx_size(untrained_network(experiment).graph, _front_end(experiment), per_channel=per_channel)
    table = np.full((len(workload.sites), max(WIDTHS) + 1), math.nan)
    for site in workload.sites:
        widths = WEIGHT_WIDTHS if is_weight(site) else ACTIVATION_WIDTHS
        table[workload.column[site], list(widths)] = [size.of_site(site, bits) for bits in widths]
    sites = np.arange(len(table))
    return lambda bits: size.constant + table[sites, bits].sum(axis=1)


def _front_end(experiment: Experiment) -> FrontEnd:
    return build_front_end(experiment.separator.spectral, microphone_array(experiment.data.array), experiment.data.sample_rate)


def experiment_workload(experiment: Experiment, structure: Structure | None = None) -> Workload:
    """Return the layer shapes of one inference: over `search.utterance_seconds`, or over one frame with `search.streaming`.

    Args:
        experiment: names the network.
        structure: what is kept of it; all of it by default.
    """
    rate, frames = experiment.data.sample_rate, inference_frames(experiment)
    network = untrained_network(experiment, elastic=structure is not None)
    network = network.narrowed(structure, frames) if structure else network
    per_channel = experiment.quantization.weight_scale == "per_channel"
    workload = _workload(network, frames, _front_end(experiment).frame_samples / rate, per_channel=per_channel)
    return workload.streamed() if experiment.search.streaming else workload


def inference_frames(experiment: Experiment) -> int:
    """Return the frames of `search.utterance_seconds`."""
    return _front_end(experiment).frames(round(experiment.search.utterance_seconds * experiment.data.sample_rate))


@lru_cache(maxsize=_KEPT)
def _workload(network: UntrainedNetwork, frames: int, frame_seconds: float, *, per_channel: bool) -> Workload:
    return network.workload(frames, frame_seconds, per_channel=per_channel)


def inner_weight_sites(workload: Workload) -> tuple[str, ...]:
    """Return the weight sites between the first and the last layer. Papers leave these two out of the average width of a TCN.

    A network that has only these two layers gives all its weight sites.
    """
    return workload.weight_sites[1:-1] or workload.weight_sites


def compile_targets(experiment: Experiment, workload: Workload) -> dict[str, CostTable]:
    """Compile the cost table of each target, by the target's name.

    Raises:
        UserError: an unknown target or a wrong target file.
    """
    return next(compile_alike(experiment, [workload]))


def compile_alike(experiment: Experiment, workloads: Iterable[Workload]) -> Iterator[dict[str, CostTable]]:
    """Compile the cost tables of workloads that share most layers: such layers are compiled once.

    Raises:
        UserError: an unknown target or a wrong target file.
    """
    targets = _targets(experiment)
    known: dict[str, KnownTables] = {name: {} for name in targets}
    for workload in workloads:
        try:
            yield {name: compile_target(target, workload, known[name]) for name, target in targets.items()}
        except TargetError as error:
            raise UserError(str(error)) from None


def target_digests(experiment: Experiment) -> dict[str, str]:
    """Hash the content of each target file, by the target's name, without the evidence for its latency, which is no cost.

    A key at its default counts as missing.

    Raises:
        UserError: an unknown target or a wrong target file.
    """
    left_out = {"calibration": {"evidence"}}
    return {
        name: digest(target.model_dump(mode="json", exclude_defaults=True, exclude=left_out))
        for name, target in _targets(experiment).items()
    }


def _targets(experiment: Experiment) -> dict[str, Target]:
    found: dict[str, Target] = {}
    for place in experiment.search.targets:
        try:
            target = load_target(place)
        except TargetError as error:
            raise UserError(str(error)) from None
        if target.name in found:
            raise UserError(f"search.targets: two targets are called '{target.name}'; wanted a name of its own in each file")
        found[target.name] = target
    return found
