"""What leaving something out costs, and the seeds that follow from it."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from hwsearch.errors import UserError
from hwsearch.executor import LocalExecutor
from hwsearch.experiment import Fidelity, with_search
from hwsearch.search.costs import CostBook
from hwsearch.search.elastic_seeds import STRUCTURE, elastic_fronts, elastic_losses, limited_seeds
from hwsearch.search.experiment_space import experiment_space
from hwsearch.search.objectives import PACKED_SIZE, QUALITY
from hwsearch.search.scoring import ScoringJob
from hwsearch.search.space import SearchSpace
from hwsearch.search.structure_losses import StructureLosses, ensure_structure_losses, kept_structure_losses
from hwsearch.search.structure_seeds import FEWER_BLOCKS, UNIFORM_CHANNELS, structure_seeds
from tests.search import structured

FULL_DB = 9.0


def lost_db(job: ScoringJob) -> float:
    """Three decibels for every block, a tenth for every channel that is missing."""
    kept = job.configuration.kept
    blocks = sum(count == 0 for name, count in kept.items() if name.endswith(".kept"))
    return 3.0 * blocks + 0.1 * sum(16 - count for name, count in kept.items() if name.endswith(".channels"))


class Scorer:
    """Scores by `lost_db`, and counts."""

    def __init__(self, fails: str = "") -> None:
        self.jobs: list[ScoringJob] = []
        self._fails = fails

    def executor(self) -> LocalExecutor[ScoringJob, Mapping[str, float]]:
        def score(job: ScoringJob) -> Mapping[str, float]:
            self.jobs.append(job)
            if self._fails and self._fails in job.configuration.kept:
                raise ValueError("diverged")
            return {QUALITY: FULL_DB - lost_db(job)}

        return LocalExecutor(lambda: score)


def measured(space: SearchSpace, path: Path, scorer: Scorer, key: str = "key") -> StructureLosses:
    return ensure_structure_losses(space, Fidelity.SHARED, path, key, scorer.executor)


def test_a_loss_is_the_relative_noise_of_one_option_alone(tmp_path: Path) -> None:
    space, scorer = structured.space_of("tcn"), Scorer()
    losses = measured(space, tmp_path / "losses.json", scorer)
    assert {name: (*found, values[-1]) for (name, values), found in zip(space.options, losses.values(), strict=True)} == dict(
        space.options
    )
    for name, found in losses.items():
        for kept, loss in found.items():
            db = 3.0 if kept == 0 else 0.1 * (16 - kept)
            assert loss == pytest.approx(10 ** (db / 10) - 1)
            assert name in dict(space.options)
    assert all(job.fidelity is Fidelity.SHARED for job in scorer.jobs)
    assert len(scorer.jobs) == 1 + sum(len(values) - 1 for _, values in space.options)
    widest = dict(space.widths)
    assert all(bits == widest[site][-1] for job in scorer.jobs for site, bits in job.configuration.allocation.widths)


def test_losses_are_measured_once_for_a_key(tmp_path: Path) -> None:
    space, path = structured.space_of("tcn"), tmp_path / "losses.json"
    first = measured(space, path, Scorer())
    again = Scorer()
    assert measured(space, path, again) == first == kept_structure_losses(space, path, "key")
    assert not again.jobs
    assert kept_structure_losses(space, path, "other") is None
    other = Scorer()
    measured(space, path, other, "other")
    assert other.jobs
    assert kept_structure_losses(structured.space_of("channels"), path, "other") is None


def test_what_cannot_be_scored_is_named(tmp_path: Path) -> None:
    space = structured.space_of("tcn")
    name, values = space.options[0]
    with pytest.raises(UserError, match=f"search.structure: '{name}' kept at {values[0]} cannot be scored .*diverged"):
        measured(space, tmp_path / "losses.json", Scorer(fails=name))
    assert not (tmp_path / "losses.json").exists()


def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path) -> None:
    space, path = structured.space_of("tcn"), tmp_path / "losses.json"
    measured(space, path, Scorer())
    path.write_bytes(path.read_bytes().replace(b"0.", b"1.", 1))
    with pytest.raises(UserError) as refused:
        kept_structure_losses(space, path, "key")
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_seeds_by_simple_rules_are_uniform_channels_and_the_least_important_blocks(tmp_path: Path) -> None:
    experiment = structured.experiment_of("tcn")
    longer = experiment.model_copy(update={"separator": experiment.separator.model_copy(update={"X": 3})})
    space = experiment_space(longer)
    losses = {name: dict.fromkeys(values[:-1], 1.0) for name, values in space.options}
    losses["blocks.1.kept"] = {0: 0.1}
    seeds = structure_seeds(space, losses)
    assert len({seed.point for seed in seeds}) == len(seeds)
    found = {
        strategy: [space.decode(seed.point) for seed in seeds if seed.strategy == strategy]
        for strategy in (
            UNIFORM_CHANNELS,
            FEWER_BLOCKS,
        )
    }
    widths = len(longer.search.weight_bits)
    assert len(found[UNIFORM_CHANNELS]) == 2 * widths  # a quarter and a half
    assert all(len(set(each.kept.values())) == 1 and len(each.kept) == 3 for each in found[UNIFORM_CHANNELS])
    assert [each.kept for each in found[FEWER_BLOCKS][:2]] == [{"blocks.1.kept": 0}, {"blocks.0.kept": 0, "blocks.1.kept": 0}]
    for each in (*found[UNIFORM_CHANNELS], *found[FEWER_BLOCKS]):
        assert len({bits for site, bits in each.allocation.widths if site.endswith(".weight")}) == 1


@pytest.mark.parametrize("kind", ["tcn", "conv-tasnet", "channels"])
def test_seeds_within_limits_are_within_them_and_lose_no_more_than_the_fronts(kind: str) -> None:
    column = "latency_ms[cortex-m7-cmsis-nn]"
    experiment = structured.experiment_of(kind, "cortex-m7-cmsis-nn")
    space = experiment_space(experiment)
    book = CostBook(experiment, space)
    widest = tuple(count - 1 for count in space.shape)
    least = (*widest[: len(space.free)], *[0] * len(space.options))
    ends = book.charge([space.decode(widest), space.decode(least)])
    limits = {name: (ends[0][name] + ends[1][name]) / 2 for name in (PACKED_SIZE, column)}
    search = with_search(experiment, {"limits": limits, "objectives": [QUALITY, PACKED_SIZE, column]}).search
    random = np.random.default_rng(0)
    sites = {site: {bits: float(random.uniform(0, 8 - bits / 4)) for bits in widths} for site, widths in space.free_sites}
    options = {name: {kept: float(random.uniform(0, 3)) for kept in values[:-1]} for name, values in space.options}
    losses = elastic_losses(space, {"prior": sites}, options)
    (seed,) = limited_seeds(space, losses, book, search)
    assert seed.strategy == "prior"
    assert space.canonical(seed.point) == seed.point
    (costs,) = book.charge([space.decode(seed.point)])
    assert all(costs[name] <= limit * (1 + 1e-9) for name, limit in limits.items())

    def loss(point: tuple[int, ...]) -> float:
        configuration = space.decode(point)
        widths = configuration.allocation.by_site
        own = sum(sites[site][widths[site]] for site in sites if site in widths)
        return own + sum(options[name][kept] for name, kept in configuration.kept.items())

    for front in elastic_fronts(space, losses, book, search):
        for other in front(20):
            (charged,) = book.charge([space.decode(other.point)])
            if all(charged[name] <= limit for name, limit in limits.items()):
                assert loss(seed.point) <= loss(other.point) + 1e-6


def test_structure_alone_has_seeds_without_any_prior() -> None:
    experiment = with_search(structured.experiment_of("tcn"), {"weight_bits": [8]})
    space = experiment_space(experiment)
    assert not space.free
    losses = {name: dict.fromkeys(values[:-1], 1.0) for name, values in space.options}
    book, elastic = CostBook(experiment, space), elastic_losses(space, {}, losses)
    (front,) = elastic_fronts(space, elastic, book, experiment.search)
    seeds = front(8)
    assert {seed.strategy for seed in seeds} == {STRUCTURE}
    assert len({seed.point for seed in seeds}) == len(seeds) > 1
