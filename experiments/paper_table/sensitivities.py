"""Sensitivity tables, computed in this process and kept in files."""

from collections.abc import Sequence
from pathlib import Path

from hwsearch.data.dataset import open_dataset
from hwsearch.experiment import Split
from hwsearch.files.reading import digest, file_digest
from hwsearch.files.seals import write_sealed_json
from hwsearch.sensitivity.choices import Candidates
from hwsearch.sensitivity.estimate import make_table, read_table
from hwsearch.sensitivity.jobs import Results, missing_jobs
from hwsearch.sensitivity.table import SensitivityTable
from hwsearch.sensitivity.work import WorkFactory
from hwsearch.separator.base import base_digest


def sensitivities(factory: WorkFactory, methods: Sequence[str], candidates: Candidates, folder: Path) -> list[SensitivityTable]:
    """Return the tables of some methods, after computing them if they are missing.

    Args:
        factory: makes the function that runs jobs.
        methods: names of methods without training.
        candidates: sites and widths.
        folder: the tables lie there, named after what they depend on.
    """
    experiment = factory.experiment
    key = digest(
        {
            "base": base_digest(factory.base),
            "shared": None if factory.shared is None else file_digest(factory.shared),
            "experiment": experiment.model_dump(mode="json", include={"seed", "quantization", "sensitivity"}),
            "data": experiment.data_digest(),
            "candidates": candidates,
        }
    )
    paths = [folder / f"{method}-{key[:12]}.json" for method in methods]
    if not all(path.is_file() for path in paths):
        validation = open_dataset(factory.data_folder, Split.VALIDATION)[: experiment.sensitivity.mixtures]
        mixtures, work, results = [mixture.id for mixture in validation], factory(), Results()
        for job in missing_jobs(methods, candidates, mixtures, results):
            for result in work(job):
                results.add(result)
        for method, path in zip(methods, paths, strict=True):
            write_sealed_json(path, make_table(method, candidates, mixtures, results).to_json())
    return [read_table(path) for path in paths]
