"""A real experiment on a small untrained base, whose sensitivities take seconds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hwsearch.data.build import build_data
from hwsearch.experiment import Experiment, parse_experiment
from hwsearch.sensitivity.choices import Candidates
from hwsearch.separator.base import BaseDescription, save_base
from hwsearch.workspace import Workspace
from tests.separator.small import RELU, small_separator
from tests.tiny import tiny_content

BASE = "small.safetensors"
SITES: Candidates = (("blocks.0.depthwise.weight", (2, 8)), ("mask_head.weight", (2, 8)), ("features", (4, 8)))
SEARCH = {"allowed": {"*": (8,), **dict(SITES)}, "validation_mixtures": 3}


def make_experiment(**sections: Any) -> Experiment:
    """Sensitivities over two mixtures of a second, with eight probes and two training steps; sections as given instead."""
    content = tiny_content()
    content["data"] = {
        "array": "linear4",
        "corpora": [{**content["data"]["corpora"][0], "splits": {"train": 0.4, "validation": 0.6}}],
        "rooms": {**content["data"]["rooms"], "count": {"train": 1, "validation": 1}},
        "mixtures": {"count": {"validation": 3}, "seconds": 1.0},
    }
    content["separator"] = RELU.model_dump(mode="json")
    content["sensitivity"] = {"mixtures": 2, "max_probes": 8, "recoverability_steps": 2}
    content["qat"] = {"examples": 4, "batch_size": 2, "segment_seconds": 0.5}
    content["search"] = SEARCH
    return parse_experiment({**content, **sections}, source="here")


def build(runs: Path) -> Path:
    """Make the data and the base of `make_experiment` in a folder of all runs."""
    workspace = Workspace(runs, make_experiment())
    build_data(workspace.experiment, workspace.data_folder, workspace.corpora_folder, 1, lambda done, total: None)
    description = BaseDescription(sample_rate=8000, array="linear4", separator=RELU, made_by={})
    save_base(runs / BASE, small_separator(), description)
    return runs


def workspace_maker(data_runs: Path, runs: Path) -> Callable[..., Workspace]:
    """Workspaces in `runs`, of `make_experiment` with sections changed, on data that were built elsewhere."""
    for shared in ("data", "corpora"):
        (runs / shared).symlink_to(data_runs / shared)
    return lambda **sections: Workspace(runs, make_experiment(**{"base": str(data_runs / BASE), **sections}))
