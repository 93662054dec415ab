"""What an experiment file leaves open until the files outside are read: which data they hold, and how many."""

from hwsearch.data.recorded import list_digest, read_list
from hwsearch.errors import UserError
from hwsearch.experiment import DataConfig, Experiment, RecordedConfig, Split


def with_contents(experiment: Experiment) -> Experiment:
    """Fill in the counts and hashes of recorded data, by which the data set has its name.

    Workers and readers of a run then need no such file.

    Raises:
        UserError: a list is unusable, or a hash that the experiment file holds is not that of the content.
    """
    data = experiment.data
    recorded = tuple(_described(config, data) for config in data.recorded)
    return experiment.model_copy(update={"data": data.model_copy(update={"recorded": recorded})})


def _described(config: RecordedConfig, data: DataConfig) -> RecordedConfig:
    listed = read_list(config, data)
    found = list_digest(listed)
    check_pinned(f"{config.path}: the list and its files have", found, config.sha256)
    splits = [mixture.split for mixture in listed.mixtures]
    counts = {split: splits.count(split) for split in Split if split in splits}
    return config.model_copy(update={"count": counts, "sha256": found})


def check_pinned(what: str, found: str, wanted: str | None) -> None:
    """Raise `UserError` if the experiment file holds another hash than the one found."""
    if wanted not in (None, found):
        raise UserError(f"{what} sha256 '{found}'; the experiment file wants '{wanted}'")
