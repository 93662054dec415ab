"""The cost of a network on a chip, layer by layer, and the calibration of a chip's model."""

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hw_models.calibration import Fit, calibrate, target_toml
from hw_models.compile import CostTable, compile_target
from hw_models.confidence import Confidence, confidence, evidence_of
from hw_models.cost import Costs, evaluate, placement_of
from hw_models.errors import TargetError
from hw_models.measurements import load_measurements
from hw_models.placement import Placement
from hw_models.report import Row, cost_rows
from hw_models.target import Target, load_target
from hw_models.workload import IntArray, Workload, bits_matrix
from hwsearch.errors import UserError
from hwsearch.experiment import Experiment, load_experiment, parse_experiment, with_search
from hwsearch.files.writing import atomic_write_bytes
from hwsearch.network.options import Options
from hwsearch.search.costs import experiment_workload, inference_frames
from hwsearch.separator.allocation import ACTIVATION_WIDTHS, WEIGHT_WIDTHS, BitAllocation, uniform
from hwsearch.separator.base import EMBEDDED_BASE, load_base
from hwsearch.separator.untrained import untrained_network
from hwsearch.workflow.runs import read_run


@dataclass(frozen=True)
class Charged:
    """The network to charge: that of an experiment or the embedded base, with a candidate's widths or uniform ones.

    Attributes:
        keep: what is kept of options, `PATTERN=NUMBER`, not of a candidate; the last that matches an option counts.
    """

    experiment: Path | None = None
    run: Path | None = None
    candidate: int | None = None
    weight_bits: int = 8
    activation_bits: int = 8
    keep: tuple[str, ...] = ()

    def resolve(self, target: str) -> tuple[Experiment, BitAllocation, dict[str, int] | None]:
        """Return the experiment, the allocation and what is kept of the network, to charge on a target; None: the whole.

        Raises:
            UserError: options exclude each other, a width is not possible, or the experiment or run cannot be read.
        """
        if (self.run is None) != (self.candidate is None):
            raise UserError("--run and --candidate go together; wanted both or neither")
        if self.run is not None and self.experiment is not None:
            raise UserError("--run and --experiment exclude each other; wanted one of them")
        if self.run is not None and self.keep:
            raise UserError("--keep and --run exclude each other: a candidate says what it keeps; wanted one of them")
        for name, bits, allowed in (
            ("--weight-bits", self.weight_bits, WEIGHT_WIDTHS),
            ("--activation-bits", self.activation_bits, ACTIVATION_WIDTHS),
        ):
            if bits not in allowed:
                raise UserError(f"{name} is {bits}; wanted one of {list(allowed)}")
        if self.run is not None and self.candidate is not None:
            opened = read_run(self.run)
            experiment, configuration = opened.workspace.experiment, opened.configuration(self.candidate)
            return experiment, configuration.allocation, configuration.kept or None
        named = _embedded_experiment() if self.experiment is None else load_experiment(self.experiment)
        changes = {"targets": [target], "trunk_bits": None, "activation_bits": [self.activation_bits]}
        experiment = with_search(named, changes)
        network = untrained_network(experiment, elastic=bool(self.keep))
        kept = parse_structure(self.keep, network.options(inference_frames(experiment))) if self.keep else None
        widths = uniform(network.sites, self.weight_bits, self.activation_bits, experiment.search.widest_trunk)
        return experiment, widths, kept


@dataclass(frozen=True, eq=False)
class Charge:
    """The cost of a network on a target.

    Attributes:
        table: the workload, compiled for the target.
        bits: [sites] bit-widths.
        rows: one for each layer, then the total; `checked` is `yes` for layers whose latency was compared with a reference.
        costs: the costs of this one allocation.
        confidence: how sure the latency is.
    """

    target: Target
    table: CostTable
    bits: IntArray
    rows: Sequence[Row]
    costs: Costs
    placement: Placement
    confidence: Confidence


def charge(target: str, charged: Charged, *, streaming: bool = False) -> Charge:
    """Charge a network to a target.

    Args:
        target: a built-in name or a file.
        charged: the network and its widths.
        streaming: whether to charge frame by frame even if the experiment does not.

    Raises:
        UserError: the target is unknown, its file is wrong, it does not run the widths, something is kept that does not exist,
            or `Charged.resolve` refuses.
    """
    try:
        chip = load_target(target)
    except TargetError as error:
        raise UserError(str(error)) from None
    experiment, allocation, structure = charged.resolve(target)
    workload = experiment_workload(experiment, structure)
    if streaming:
        workload = workload.streamed()
    try:
        return charge_workload(chip, workload, allocation)
    except TargetError as error:
        raise UserError(str(error)) from None


def charge_workload(chip: Target, workload: Workload, allocation: BitAllocation) -> Charge:
    """Charge a workload to a target, with the widths that an allocation has for the sites of the workload.

    Raises:
        TargetError: the target does not run a layer, or its widths.
    """
    widths = allocation.by_site
    bits = bits_matrix(workload, [{site: widths[site] for site in workload.sites}])[0]
    table = compile_target(chip, workload)
    rows, sure = cost_rows(table, bits), confidence(table, bits)
    marks = [*("yes" if checked else "" for checked in sure.checked), ""]
    rows = [{**row, "checked": mark} for row, mark in zip(rows, marks, strict=True)]
    return Charge(chip, table, bits, rows, evaluate(table, bits[None]), placement_of(table, bits), sure)


def parse_structure(keep: Sequence[str], options: Options) -> dict[str, int]:
    """Read what is kept of a network from `PATTERN=NUMBER` (shell wildcards); the last that matches an option counts.

    Raises:
        UserError: no number, a pattern that matches no option, or a number that an option cannot have.
    """
    found: dict[str, int] = {}
    for each in keep:
        pattern, equals, number = each.rpartition("=")
        if not equals or not re.fullmatch("[0-9]{1,9}", number):
            raise UserError(f"--keep {each}: wanted NAME=NUMBER, such as blocks.0.kept=0")
        matched = fnmatch.filter(options.by_name, pattern)
        if not matched:
            some = ", ".join(dict.fromkeys((*list(options.by_name)[:1], *list(options.by_name)[-1:])))
            raise UserError(f"--keep {each}: matches nothing that can be left out; options are like {some or 'none'}")
        found |= dict.fromkeys(matched, int(number))
    try:
        return options.relevant(found)
    except ValueError as error:
        raise UserError(f"--keep: {error}") from None


def fit_target(target: str, measurements: Path, output: Path) -> Fit:
    """Fit a target to a file of measurements, and write the new target.

    Raises:
        UserError: the target is unknown, a file is wrong, the measurements do not fit, or the output cannot be written.
    """
    try:
        measured = load_measurements(measurements)
        fit = calibrate(load_target(target), measured, file=measurements.name, name=_name(output))
        evidence = evidence_of(fit.target, measured.measurements, fit.held_out)
    except TargetError as error:
        raise UserError(str(error)) from None
    calibration = fit.target.calibration.model_copy(update={"evidence": evidence})
    fit = replace(fit, target=fit.target.model_copy(update={"calibration": calibration}))
    atomic_write_bytes(output, target_toml(fit.target).encode())
    return fit


def _name(output: Path) -> str:
    """Derive a target's name from that of its file: lower-case letters and digits, and hyphens for all else."""
    plain = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in output.stem.lower()).strip("-")
    if not plain:
        raise UserError(f"--output is {output}; wanted a file name with a letter or digit")
    return plain


def _embedded_experiment() -> Experiment:
    """Make an experiment that has the workload of the embedded base."""
    _, description = load_base(EMBEDDED_BASE)
    return parse_experiment(
        {
            "name": "embedded-base",
            "separator": description.separator.model_dump(mode="json"),
            "data": {
                "sample_rate": description.sample_rate,
                "array": description.model_dump(mode="json")["array"],
                "corpora": [{"kind": "espeak", "splits": {"test": 1.0}}],
                "rooms": {"count": {}},
                "mixtures": {"count": {}},
            },
        },
        source=str(EMBEDDED_BASE),
    )
