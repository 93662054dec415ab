"""What an experiment file leaves open until the files outside are read: which data they hold, and how many."""

from collections.abc import Sequence

from hwsearch.data.noise import list_noise, noise_digest
from hwsearch.data.recorded import list_digest, read_list
from hwsearch.data.recorded_rooms import read_recorded_rooms, rooms_digest
from hwsearch.errors import UserError
from hwsearch.experiment import DataConfig, Experiment, RecordedConfig, Split


def with_contents(experiment: Experiment) -> Experiment:
    """Fill in the counts and hashes of recorded data, by which the data set has its name.

    Workers and readers of a run then need no such file.

    Raises:
        UserError: a list is unusable, or a hash that the experiment file holds is not that of the content.
    """
    data = experiment.data
    changes: dict[str, object] = {"recorded": tuple(_described(config, data) for config in data.recorded)}
    if data.rooms.recorded is not None:
        rooms = read_recorded_rooms(data)
        found = rooms_digest(rooms)
        check_pinned(f"{data.rooms.recorded}: the list and its files have", found, data.rooms.sha256)
        counts = _counts([room.split for room in rooms])
        changes["rooms"] = data.rooms.model_copy(update={"count": counts, "sha256": found})
    if data.noise is not None:
        found = noise_digest(list_noise(data.noise.folder))
        check_pinned(f"{data.noise.folder}: its files have", found, data.noise.sha256)
        changes["noise"] = data.noise.model_copy(update={"sha256": found})
    return experiment.model_copy(update={"data": data.model_copy(update=changes)})


def _described(config: RecordedConfig, data: DataConfig) -> RecordedConfig:
    listed = read_list(config, data)
    found = list_digest(listed)
    check_pinned(f"{config.path}: the list and its files have", found, config.sha256)
    return config.model_copy(update={"count": _counts([mixture.split for mixture in listed.mixtures]), "sha256": found})


def _counts(splits: Sequence[Split]) -> dict[Split, int]:
    return {split: splits.count(split) for split in Split if split in splits}


def check_pinned(what: str, found: str, wanted: str | None) -> None:
    """Raise `UserError` if the experiment file holds another hash than the one found."""
    if wanted not in (None, found):
        raise UserError(f"{what} sha256 '{found}'; the experiment file wants '{wanted}'")
