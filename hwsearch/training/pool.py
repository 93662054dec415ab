"""The training pool: a fixed set of mixtures for all candidates, with the estimates of the full-precision base, the teacher.

A mixture of 2 s takes a quarter of a megabyte for six microphones, a fifth of what its features would take, and analysing it
again takes a fifth of a training step. Sound is 16-bit floating point; its rounding error lies some 70 dB below it. The file is
mapped into memory, which all workers of a machine share.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hwsearch.data.corpus import load_corpora
from hwsearch.data.example import Example
from hwsearch.experiment import Split
from hwsearch.files.reading import digest
from hwsearch.files.tensors import read_tensors, refused, write_tensors
from hwsearch.files.writing import check_writable
from hwsearch.separator.base import base_digest
from hwsearch.separator.front_end import Analysis
from hwsearch.separator.prepare import load_checked_base
from hwsearch.separator.separator import Separator
from hwsearch.training.full_precision import training_examples
from hwsearch.training.loss import ordered
from hwsearch.workspace import Workspace

Progress = Callable[[int, int], None]
"""Called with (done, total)."""

_KEY = "hwsearch_pool_3"
_WHAT = "a file of training mixtures"
_MEND = "delete it and it is made again"
_FORMAT = 3
_TENSORS = ("mixtures", "doa_deg", "target", "estimate")


@dataclass(frozen=True, eq=False)
class Batch:
    """Examples for a training step, in float32.

    Attributes:
        analysis: the analysis by the front end.
        target: [batch, samples], or [batch, speakers, samples] in the order of the base's outputs.
        estimate: the estimate of the full-precision base, the same shape.
    """

    analysis: Analysis
    target: Tensor
    estimate: Tensor


@dataclass(frozen=True, eq=False)
class TrainingPool:
    """N training mixtures of one length.

    Attributes:
        mixtures: [N, mics, samples].
        doa_deg: directions of the targets in degrees [N].
        target: [N, samples], or [N, speakers, samples].
        estimate: estimates of the full-precision base, the shape of `target`.
        base_sha256: SHA-256 of the base that made the estimates.
    """

    mixtures: Tensor
    doa_deg: Tensor
    target: Tensor
    estimate: Tensor
    base_sha256: str

    def __len__(self) -> int:
        return len(self.doa_deg)

    def batch(self, examples: Sequence[int], separator: Separator) -> Batch:
        """Return the examples of the given numbers on the device of the separator, whose front end analyses them."""
        chosen = list(examples)
        mixtures, doa_deg, target, estimate = (getattr(self, name)[chosen].to(separator.device).float() for name in _TENSORS)
        with torch.no_grad():
            return Batch(separator.analyse(mixtures, doa_deg), target, estimate)


def build_pool(workspace: Workspace, processes: int, progress: Progress) -> Path:
    """Make the pool of an experiment, or check the pool that is already there.

    Args:
        workspace: workspace of the experiment, with its base. `sensitivity.recoverability.check_trainable` has accepted it.
        processes: number of processes that build missing rooms.
        progress: called after each room, then after each example.

    Returns:
        The file, for `load_pool`.

    Raises:
        UserError: an unusable base, unusable speech, or a damaged pool.
    """
    experiment = workspace.experiment
    separator = load_checked_base(experiment, workspace.base_path)
    base_sha256 = base_digest(workspace.base_path)
    count, seconds = experiment.qat.examples, experiment.qat.segment_seconds
    path = pool_path(workspace)
    if path.is_file():
        load_pool(path, check=True)
        return path
    check_writable(path)
    speech = load_corpora(experiment.data, experiment.seed, workspace.corpora_folder)[Split.TRAIN]
    mixtures = training_examples(workspace, Split.TRAIN, speech, seconds, "pool", processes, progress)
    pool = analysed_pool(separator, base_sha256, (mixtures.example(0, index) for index in range(count)), count, progress)
    content = {"format": _FORMAT, "base_sha256": base_sha256}
    write_tensors(path, {name: getattr(pool, name) for name in _TENSORS}, _KEY, content)
    return path


def pool_path(workspace: Workspace) -> Path:
    """The file of an experiment's pool, named by a hash of all that the pool depends on; the base must exist."""
    experiment = workspace.experiment
    key = digest(
        {
            "format": _FORMAT,
            "data": experiment.data_digest(),
            "speeds": experiment.training.speeds,
            "base": base_digest(workspace.base_path),
            "examples": experiment.qat.examples,
            "seconds": experiment.qat.segment_seconds,
        }
    )
    return workspace.data_folder / "pools" / f"{key[:16]}.safetensors"


def load_pool(path: Path, *, check: bool = False) -> TrainingPool:
    """Map a pool into memory.

    Args:
        path: the file.
        check: whether to check that the file is unchanged, which reads all of it. `build_pool` has done so.

    Raises:
        UserError: no such file, or no pool.
    """
    content, tensors = read_tensors(path, _KEY, _WHAT, _MEND, check=check)
    try:
        pool = TrainingPool(**{name: tensors[name] for name in _TENSORS}, base_sha256=str(content["base_sha256"]))
    except KeyError as error:
        raise refused(path, _WHAT, f"no {error} in it", _MEND) from None
    if len({len(getattr(pool, name)) for name in _TENSORS}) != 1 or len(pool) == 0:
        raise refused(path, _WHAT, "its tensors hold different numbers of mixtures", _MEND)
    return pool


def analysed_pool(
    separator: Separator, base_sha256: str, examples: Iterable[Example], count: int, progress: Progress | None = None
) -> TrainingPool:
    """Make a pool in memory.

    Args:
        separator: the full-precision base.
        base_sha256: SHA-256 of the base's file.
        examples: examples of one length.
        count: number of examples, at least one.
        progress: called after each example.
    """
    tensors: dict[str, Tensor] = {}
    for index, example in enumerate(examples):
        # The teacher hears what its students will hear.
        mixture, doa_deg = torch.from_numpy(example.mixture)[None].half().float(), torch.tensor([example.doa_deg])
        with torch.no_grad():
            estimate = separator(mixture, doa_deg)
        references = separator.front_end.references(mixture, torch.from_numpy(example.target)[None])
        rows = (mixture, doa_deg, ordered(references, estimate), estimate)
        for name, row in zip(_TENSORS, rows, strict=True):
            if index == 0:
                tensors[name] = torch.empty(count, *row.shape[1:], dtype=torch.float32 if name == "doa_deg" else torch.float16)
            tensors[name][index] = row[0]
        if progress is not None:
            progress(index + 1, count)
    return TrainingPool(**tensors, base_sha256=base_sha256)
