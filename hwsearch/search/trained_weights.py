"""The weights of trained candidates: where they lie, and which of them a training starts from."""

from collections.abc import Callable
from pathlib import Path

from hwsearch.experiment import Fidelity
from hwsearch.search.record import Scored
from hwsearch.search.scoring import ScoringJob, TrainedFile, trained_name
from hwsearch.separator.allocation import is_weight
from hwsearch.separator.configuration import Configuration

TRAINED_FOLDER = "trained"
"""Folder of a run with the weights of candidates that were trained."""


class TrainedWeights:
    """The candidates that a search has trained."""

    def __init__(
        self,
        folder: Path,
        experiment: str,
        configuration_of: Callable[[int], Configuration],
        *,
        warm_start: bool,
        shared: bool = False,
    ) -> None:
        """Start from nothing trained, in a run folder.

        Args:
            folder: the run folder.
            experiment: hash of the experiment.
            configuration_of: gives the configuration of a candidate by number.
            warm_start: whether a training may start from a candidate. Otherwise it starts from the base.
            shared: whether it starts from the shared network. Of candidates, it then starts from its own only.
        """
        self._folder = folder
        self._experiment = experiment
        self._configuration_of = configuration_of
        self._warm_start = warm_start
        self._shared = shared
        self._files: dict[tuple[Fidelity, int], str] = {}

    def note(self, event: Scored) -> None:
        """Remember the file of a candidate's weights, if it was trained."""
        if event.weights is not None:
            self._files[event.fidelity, event.candidate] = event.weights

    def job(
        self, number: int, configuration: Configuration, fidelity: Fidelity, steps: int | None = None
    ) -> tuple[ScoringJob, int | None]:
        """Return the job that trains and scores a candidate, and the candidate whose weights it starts from; None: the base.

        `steps` replaces the number of training steps of the experiment.
        """
        start = self._own(number) if fidelity is Fidelity.FINETUNED else self._nearest(number, configuration, fidelity)
        source = None if start is None else TrainedFile(self._path(self._files[start]), self._configuration_of(start[1]))
        name = trained_name(self._experiment, configuration, fidelity, None if source is None else source.path.name, steps)
        return ScoringJob(configuration, fidelity, self._path(name), source, steps), None if start is None else start[1]

    def _path(self, name: str) -> Path:
        return (self._folder / TRAINED_FOLDER / name).resolve()

    def _own(self, number: int) -> tuple[Fidelity, int] | None:
        """Find the weights of a candidate that the search has trained for longest; None: it was not trained."""
        trained = [fidelity for fidelity in Fidelity if (fidelity, number) in self._files and fidelity is not Fidelity.FINETUNED]
        return (trained[-1], number) if trained else None

    def _nearest(self, number: int, configuration: Configuration, fidelity: Fidelity) -> tuple[Fidelity, int] | None:
        """Find the weights that a training starts from; None: the base.

        These are the candidate's own, if a rung has trained it already. Otherwise they are those of the candidate of the same
        structure whose weight widths differ least in sum.
        """
        if not self._warm_start:
            return None
        order = list(Fidelity)
        trained = [key for key in self._files if order.index(key[0]) <= order.index(fidelity)]
        own = next((key for key in trained if key[1] == number), None)
        same = [key for key in trained if self._configuration_of(key[1]).structure == configuration.structure]
        if own is not None or not same or self._shared:
            return own

        def distance(key: tuple[Fidelity, int]) -> int:
            theirs = self._configuration_of(key[1]).allocation.by_site
            return sum(abs(bits - theirs[site]) for site, bits in configuration.allocation.widths if is_weight(site))

        return min(same, key=distance)
