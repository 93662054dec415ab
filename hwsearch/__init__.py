"""Mixed-precision search for speech separators: `hwsearch.api` is the workflow, and its names are this package's, too."""

import os
from typing import TYPE_CHECKING, Any

from hwsearch.errors import UserError
from hwsearch.version import VERSION

if TYPE_CHECKING:
    from hwsearch.api import (
        Listener,
        Resources,
        Run,
        Workspace,
        export_candidate,
        open_experiment,
        open_run,
        query_front,
        run_search,
    )

__version__ = VERSION

__all__ = [
    "Listener",
    "Resources",
    "Run",
    "UserError",
    "Workspace",
    "export_candidate",
    "open_experiment",
    "open_run",
    "query_front",
    "run_search",
]

# Libraries send nothing home. They read these variables as they are loaded, and processes started later inherit them. ONNX
# Runtime would write a device id below the home folder and look its collector up; Ray would report its usage.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


def __getattr__(name: str) -> Any:
    """Load `hwsearch.api` when it is used. It needs torch, which takes seconds."""
    if name in __all__:
        from hwsearch import api

        return getattr(api, name)
    raise AttributeError(f"module 'hwsearch' has no attribute '{name}'")
