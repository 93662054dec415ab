"""What each layer of a network costs on a chip, and a chip's model fitted to measurements."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hw_models.calibration import Fit, calibrate, target_toml
from hw_models.compile import CostTable, compile_target
from hw_models.cost import Costs, evaluate, placement_of
from hw_models.errors import TargetError
from hw_models.measurements import load_measurements
from hw_models.placement import Placement
from hw_models.report import Row, cost_rows
from hw_models.target import Target, load_target
from hw_models.workload import IntArray, bits_matrix
from hwsearch.errors import UserError
from hwsearch.experiment import Experiment, load_experiment, parse_experiment, with_search
from hwsearch.files.writing import atomic_write_bytes
from hwsearch.search.costs import experiment_workload
from hwsearch.separator.allocation import ACTIVATION_WIDTHS, WEIGHT_WIDTHS, BitAllocation, uniform
from hwsearch.separator.base import EMBEDDED_BASE, load_base
from hwsearch.separator.untrained import untrained_sites
from hwsearch.workflow.runs import read_run


@dataclass(frozen=True)
class Charged:
    """What is charged: the network of an experiment, or of the embedded base, under a candidate or uniform widths."""

    experiment: Path | None = None
    run: Path | None = None
    candidate: int | None = None
    weight_bits: int = 8
    activation_bits: int = 8

    def resolve(self, target: str) -> tuple[Experiment, BitAllocation]:
        """The experiment and the allocation to charge on a target.

        Raises:
            UserError: options that do not go together, a width that is none, or an unreadable experiment or run.
        """
        if (self.run is None) != (self.candidate is None):
            raise UserError("--run and --candidate go together; wanted both or neither")
        if self.run is not None and self.experiment is not None:
            raise UserError("--run and --experiment exclude each other; wanted one of them")
        for name, bits, allowed in (
            ("--weight-bits", self.weight_bits, WEIGHT_WIDTHS),
            ("--activation-bits", self.activation_bits, ACTIVATION_WIDTHS),
        ):
            if bits not in allowed:
                raise UserError(f"{name} is {bits}; wanted one of {list(allowed)}")
        if self.run is not None and self.candidate is not None:
            opened = read_run(self.run)
            return opened.workspace.experiment, opened.allocation(self.candidate)
        named = _embedded_experiment() if self.experiment is None else load_experiment(self.experiment)
        # The trunk is as wide as this target has it.
        changes = {"targets": [target], "trunk_bits": None, "activation_bits": [self.activation_bits]}
        experiment = with_search(named, changes)
        sites = untrained_sites(experiment)
        return experiment, uniform(sites, self.weight_bits, self.activation_bits, experiment.search.widest_trunk)


@dataclass(frozen=True, eq=False)
class Charge:
    """What a network costs on a target.

    Attributes:
        target: the chip.
        table: the workload compiled for it.
        bits: [sites] widths.
        rows: of the layers, then the total.
        costs: of the one allocation.
        placement: which memories weights and activations lie in.
    """

    target: Target
    table: CostTable
    bits: IntArray
    rows: Sequence[Row]
    costs: Costs
    placement: Placement


def charge(target: str, charged: Charged, *, streaming: bool = False) -> Charge:
    """Charge a network to a target.

    Args:
        target: a built-in name or a file.
        charged: network and allocation.
        streaming: frame by frame, whatever the experiment says.

    Raises:
        UserError: an unknown target, a wrong file, or widths that it does not run; see also `Charged.resolve`.
    """
    try:
        chip = load_target(target)
    except TargetError as error:
        raise UserError(str(error)) from None
    experiment, allocation = charged.resolve(target)
    workload = experiment_workload(experiment)
    if streaming:
        workload = workload.streamed()
    try:
        bits = bits_matrix(workload, [allocation.by_site])[0]
        table = compile_target(chip, workload)
        return Charge(chip, table, bits, cost_rows(table, bits), evaluate(table, bits[None]), placement_of(table, bits))
    except TargetError as error:
        raise UserError(str(error)) from None


def fit_target(target: str, measurements: Path, output: Path) -> Fit:
    """Fit a target to a file of measurements, and write the new target.

    Raises:
        UserError: an unknown target, a wrong file, measurements that do not fit, or an output that cannot be written.
    """
    try:
        fit = calibrate(load_target(target), load_measurements(measurements), file=measurements.name, name=_name(output))
    except TargetError as error:
        raise UserError(str(error)) from None
    atomic_write_bytes(output, target_toml(fit.target).encode())
    return fit


def _name(output: Path) -> str:
    """A target's name from its file's: lower case, everything else a hyphen."""
    plain = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in output.stem.lower()).strip("-")
    if not plain:
        raise UserError(f"--output is {output}; wanted a file name with a letter or digit")
    return plain


def _embedded_experiment() -> Experiment:
    """An experiment around the embedded base: enough for its workload."""
    _, description = load_base(EMBEDDED_BASE)
    return parse_experiment(
        {
            "name": "embedded-base",
            "separator": description.separator.model_dump(mode="json"),
            "data": {
                "sample_rate": description.sample_rate,
                "array": description.array,
                "corpora": [{"kind": "espeak", "splits": {"test": 1.0}}],
                "rooms": {"count": {}},
                "mixtures": {"count": {}},
            },
        },
        source=str(EMBEDDED_BASE),
    )
