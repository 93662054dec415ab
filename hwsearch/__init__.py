"""Mixed-precision search for speech separators: `hwsearch.api` is the workflow, and its names are this package's, too."""

from typing import TYPE_CHECKING, Any

from hwsearch.errors import UserError
from hwsearch.process.telemetry import switch_off_telemetry
from hwsearch.version import VERSION

if TYPE_CHECKING:
    from hwsearch.api import Listener, Resources, Run, export_candidate, open_run, query_front, run_search

__version__ = VERSION

__all__ = ["Listener", "Resources", "Run", "UserError", "export_candidate", "open_run", "query_front", "run_search"]

switch_off_telemetry()


def __getattr__(name: str) -> Any:
    """The names of `hwsearch.api`, loaded when they are used: it needs torch, which takes seconds."""
    if name in __all__:
        from hwsearch import api

        return getattr(api, name)
    raise AttributeError(f"module 'hwsearch' has no attribute '{name}'")
