"""The mixtures that candidates are trained on: a fixed set, made once, with all that does not change from candidate to candidate.

Beside each mixture stand its normalised features and the full-precision base's estimate, the teacher's: computing the two
takes half as long as a training step. Sound and features are kept as 16-bit floating point: its rounding
lies some 70 dB below the sound, and no training set's sound is that clean. The file is read by mapping it into memory,
which all workers of a machine share.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hwsearch.data.corpus import load_corpora
from hwsearch.data.dynamic import Example
from hwsearch.errors import UserError
from hwsearch.experiment import Split
from hwsearch.files import check_writable, digest
from hwsearch.separator.base import base_digest
from hwsearch.separator.prepare import load_checked_base
from hwsearch.separator.separator import Separator
from hwsearch.separator.stft import stft
from hwsearch.tensor_files import read_tensors, write_tensors
from hwsearch.training.base import dynamic_mixtures
from hwsearch.workspace import Workspace

Progress = Callable[[int, int], None]
"""Called with (done, total)."""

_KEY = "hwsearch_pool_1"
_FORMAT = 1
_TENSORS = ("mixtures", "doa_deg", "target", "normalised", "start", "estimate")


@dataclass(frozen=True, eq=False)
class Batch:
    """Examples ready for a training step, in float32.

    Attributes:
        normalised: the network's input [features, batch, frames].
        reference: complex spectrum of microphone 0 [batch, bins, frames].
        start: what the mask is added to [batch, bins, frames] ([batch, 1, 1] without a beam).
        target: [batch, samples].
        estimate: [batch, samples].
    """

    normalised: Tensor
    reference: Tensor
    start: Tensor
    target: Tensor
    estimate: Tensor


@dataclass(frozen=True, eq=False)
class TrainingPool:
    """N training mixtures of one length.

    Attributes:
        mixtures: [N, mics, samples].
        doa_deg: direction of the target [N].
        target: [N, samples].
        normalised: the network's input [N, features, frames].
        start: what the mask is added to [N, bins, frames] ([N, 1, 1] without a beam).
        estimate: the full-precision base's [N, samples].
        n_fft: window of the front end in samples.
        hop_length: its hop.
        base_sha256: the base that features and estimates are of.
    """

    mixtures: Tensor
    doa_deg: Tensor
    target: Tensor
    normalised: Tensor
    start: Tensor
    estimate: Tensor
    n_fft: int
    hop_length: int
    base_sha256: str

    def __len__(self) -> int:
        return len(self.doa_deg)

    def batch(self, examples: Sequence[int]) -> Batch:
        """Examples by number."""
        chosen = list(examples)
        reference = stft(self.mixtures[chosen, 0].float(), self.n_fft, self.hop_length)
        normalised = torch.stack([self.normalised[number] for number in chosen], dim=1).float()
        return Batch(
            normalised, reference, self.start[chosen].float(), self.target[chosen].float(), self.estimate[chosen].float()
        )


def build_pool(workspace: Workspace, processes: int, progress: Progress) -> Path:
    """Make the experiment's pool, or find it made; its name is a hash of all it depends on.

    Args:
        workspace: of the experiment, whose base must be there.
        processes: that build missing rooms.
        progress: told of rooms, then of examples.

    Returns:
        The file, for `load_pool`.

    Raises:
        UserError: no rooms or speech to train with, or an unusable base.
    """
    experiment = workspace.experiment
    if Split.TRAIN not in experiment.data.rooms.count:
        raise UserError("data.rooms.count: no 'train'; quantization-aware training wants rooms to train in")
    separator = load_checked_base(experiment, workspace.base_path)
    base_sha256 = base_digest(workspace.base_path)
    count, seconds = experiment.qat.examples, experiment.qat.segment_seconds
    path = pool_path(workspace)
    if path.is_file():
        load_pool(path, check=True)
        return path
    check_writable(path)
    speech = load_corpora(experiment.data, experiment.seed, workspace.corpora_folder)[Split.TRAIN]
    if not speech:
        raise UserError(
            "data.corpora: no corpus gives splits.train a share; quantization-aware training wants speech to train on"
        )
    mixtures = dynamic_mixtures(workspace, Split.TRAIN, speech, seconds, "pool", processes, progress)
    pool = analysed_pool(separator, base_sha256, (mixtures.example(0, index) for index in range(count)), count, progress)
    content = {"format": _FORMAT, "base_sha256": base_sha256, "n_fft": pool.n_fft, "hop_length": pool.hop_length}
    write_tensors(path, {name: getattr(pool, name) for name in _TENSORS}, _KEY, content)
    return path


def pool_path(workspace: Workspace) -> Path:
    """Where the pool of an experiment lies, whose base must be there."""
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
    """Open a pool; its tensors are mapped into memory and read where they are used.

    Args:
        path: of the file.
        check: whether it is as it was written, for which it is read whole; `build_pool` has done that.

    Raises:
        UserError: no such file, or no pool.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; wanted training mixtures made by 'hwsearch'")
    try:
        content, tensors = read_tensors(path, _KEY, check=check)
        pool = TrainingPool(
            **{name: tensors[name] for name in _TENSORS},
            n_fft=int(content["n_fft"]),
            hop_length=int(content["hop_length"]),
            base_sha256=str(content["base_sha256"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path}: not a file of training mixtures ({reason}); delete it and it is made again") from None
    if len({len(getattr(pool, name)) for name in _TENSORS}) != 1 or len(pool) == 0:
        raise UserError(f"{path}: its tensors hold different numbers of mixtures; delete it and it is made again")
    return pool


def analysed_pool(
    separator: Separator, base_sha256: str, examples: Iterable[Example], count: int, progress: Progress | None = None
) -> TrainingPool:
    """A pool in memory.

    Args:
        separator: the full-precision base.
        base_sha256: of its file.
        examples: of one length.
        count: how many they are, at least one.
        progress: told of every example.
    """
    tensors: dict[str, Tensor] = {}
    for index, example in enumerate(examples):
        mixture, doa_deg = torch.from_numpy(example.mixture)[None], torch.tensor([example.doa_deg])
        with torch.no_grad():
            analysis = separator.analyse(mixture, doa_deg)
            estimate = separator.synthesise(analysis, separator.network(analysis.normalised), mixture.shape[-1])
        start = analysis.start if analysis.start.ndim else analysis.start.expand(1, 1, 1)
        target = torch.from_numpy(example.target)[None]
        rows = (mixture, doa_deg, target, analysis.normalised, start, estimate)
        for name, row in zip(_TENSORS, rows, strict=True):
            if index == 0:
                tensors[name] = torch.empty(count, *row.shape[1:], dtype=torch.float32 if name == "doa_deg" else torch.float16)
            tensors[name][index] = row[0]
        if progress is not None:
            progress(index + 1, count)
    config = separator.config
    return TrainingPool(**tensors, n_fft=config.n_fft, hop_length=config.hop_length, base_sha256=base_sha256)
