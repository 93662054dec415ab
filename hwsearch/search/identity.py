"""The identity of the search in a run folder: everything that its candidates and the order of its proposals depend on."""

from collections.abc import Mapping
from uuid import uuid4

from hwsearch.experiment import DATA_PLACES, Experiment, without_places
from hwsearch.files.reading import digest
from hwsearch.search.objectives import objectives_of
from hwsearch.search.record import Header, now, versions_here
from hwsearch.search.space import SearchSpace


def search_digest(experiment: Experiment) -> str:
    """Hash the settings that candidates and the order of proposals depend on, but not the budgets or the places of files.

    The provenance covers targets, by the content of their files.
    """
    content = experiment.model_dump(
        mode="json",
        exclude={
            "base": True,
            "data": DATA_PLACES,
            "search": {"trials", "hours", "stall_candidates", "stall_growth", "promotions", "max_attempts", "targets"},
            "qat": {"finetune_steps"},
            "workers": True,
            "export": True,
            "evaluation": True,
        },
    )
    if not experiment.search.uses_shared:
        del content["shared"]
    if not experiment.search.structure:
        del content["search"]["structure"]  # searches that began before there was such a key go on
    return digest(without_places(content))


def search_header(experiment: Experiment, space: SearchSpace, provenance: Mapping[str, str]) -> Header:
    """Make the first line of the record of a search that begins now."""
    return Header(
        name=experiment.name,
        experiment=search_digest(experiment),
        provenance=dict(provenance),
        seed=experiment.seed,
        objectives=objectives_of(experiment.search.objectives),
        widths=dict(space.widths),
        fixed=tuple(sorted(space.fixed)),
        groups=space.groups,
        options=dict(space.options),
        inside=space.inside,
        versions=versions_here(),
        run=uuid4().hex,
        time=now(),
    )
