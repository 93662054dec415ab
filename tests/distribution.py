"""How the suite is spread over two processes, which takes half the time: many tests wait for Ray, servers and signals."""

import pytest
from xdist.scheduler import LoadScopeScheduling

WORKERS = 2
"""As many as the fewest cores that the suite is made for; with more, tests that watch the time come into each other's way."""

TOGETHER = {
    "clusters and workers that are killed": (
        "tests/test_interrupts.py",
        "tests/test_executor_ray.py",
        "tests/test_executor_cluster.py",
        "tests/test_ray_session.py",
    ),
    "drivers and servers that are killed": ("tests/search/studies/",),
}
"""Files of tests that run one behind the other, by why. They take longest, and begin first, so that none is left at the end.

Of the others, those of a file do, for what they share is made once.
"""


def workers(config: pytest.Config) -> int:
    """None beside the main process for some tests alone: they begin sooner there, and show what they print."""
    return WORKERS if config.args_source is pytest.Config.ArgsSource.TESTPATHS else 0


def group(test: str) -> str:
    """What a test runs together with."""
    file = test.split("::", 1)[0]
    return next((why for why, starts in TOGETHER.items() if file.startswith(starts)), file)


def order(items: list[pytest.Item]) -> None:
    """Put those that run together in front; the others stay in their order."""
    places = {why: place for place, why in enumerate(TOGETHER)}
    items.sort(key=lambda item: places.get(group(item.nodeid), len(places)))


class Scheduling(LoadScopeScheduling):
    """Gives out tests by what they run together with."""

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid)
