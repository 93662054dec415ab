"""Mixtures in batches of one length. What no candidate changes, such as the features, is computed once for all candidates."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hwsearch.data.example import Example
from hwsearch.metrics.si_snr import si_snr
from hwsearch.process.interrupts import checkpoint
from hwsearch.separator.fast import KeptInput
from hwsearch.separator.front_end import Analysis
from hwsearch.separator.separator import Separator

BATCH = 8
"""Mixtures per pass: enough to fill a kernel, few enough that an activation in bytes fits a core's cache."""

SILENT_DB = -30.0
"""SI-SNR of an estimate that is silent: finite, and worse than any mixture's."""


@dataclass(frozen=True, eq=False)
class MixtureBatch:
    """Mixtures of one length.

    Attributes:
        numbers: their positions among all examples.
        analysis: output of the front end.
        features: input of the network.
        targets: [samples] each, or [speakers, samples].
        unprocessed_db: [mixtures] SI-SNR of the reference microphone, mean over speakers.
    """

    numbers: tuple[int, ...]
    analysis: Analysis
    features: KeptInput
    targets: Sequence[NDArray[np.float32]]
    unprocessed_db: NDArray[np.float64]


def mixture_batches(separator: Separator, examples: Sequence[Example]) -> list[MixtureBatch]:
    """Run the front end over all examples, `BATCH` of one length at a time, on the separator's device."""
    by_length: dict[int, list[int]] = {}
    for number, example in enumerate(examples):
        by_length.setdefault(len(example.target), []).append(number)
    return [
        _batch(separator, examples, tuple(same[start : start + BATCH]))
        for same in by_length.values()
        for start in range(0, len(same), BATCH)
    ]


def improvements(
    separator: Separator,
    mask: Callable[[KeptInput], Tensor],
    batches: Sequence[MixtureBatch],
    listen: Callable[[int, NDArray[np.float32]], None] | None = None,
) -> NDArray[np.float64]:
    """Compute the SI-SNR improvement of every mixture in dB, in the order of the examples.

    Args:
        separator: for its synthesis.
        mask: a candidate's network.
        batches: from `mixture_batches`.
        listen: called with the position of each example and its estimate, [samples] or [speakers, samples].
    """
    found = np.empty(sum(len(batch.numbers) for batch in batches))
    for batch in batches:
        checkpoint()
        with torch.no_grad():
            estimates = separator.synthesise(batch.analysis, mask(batch.features), batch.targets[0].shape[-1]).cpu().numpy()
        scores = [_score(estimate, target) for estimate, target in zip(estimates, batch.targets, strict=True)]
        found[list(batch.numbers)] = scores - batch.unprocessed_db
        if listen is not None:
            for number, estimate in zip(batch.numbers, estimates, strict=True):
                listen(number, estimate)
    return found


def _batch(separator: Separator, examples: Sequence[Example], numbers: tuple[int, ...]) -> MixtureBatch:
    checkpoint()
    chosen = [examples[number] for number in numbers]
    with torch.no_grad():
        # One by one: the phases of many microphones and pairs at once would be the largest tensors of all.
        parts = [
            separator.analyse(
                torch.from_numpy(one.mixture)[None].to(separator.device), torch.tensor([one.doa_deg], device=separator.device)
            )
            for one in chosen
        ]
    normalised = torch.cat([part.normalised for part in parts])
    context = (torch.cat(same) if same[0].ndim else same[0] for same in zip(*(part.context for part in parts), strict=True))
    targets = [_references(separator, one) for one in chosen]
    unprocessed = np.array([_unprocessed(one.mixture[0], target) for one, target in zip(chosen, targets, strict=True)])
    return MixtureBatch(numbers, Analysis(normalised, tuple(context)), KeptInput(normalised), targets, unprocessed)


def _references(separator: Separator, one: Example) -> NDArray[np.float32]:
    mixture, target = torch.from_numpy(one.mixture)[None], torch.from_numpy(one.target)[None]
    return separator.front_end.references(mixture, target)[0].numpy()


def _unprocessed(reference: NDArray[np.float32], target: NDArray[np.float32]) -> float:
    return float(np.mean(si_snr(np.broadcast_to(reference, target.shape), target)))


def _score(estimate: NDArray[np.float32], target: NDArray[np.float32]) -> float:
    """Compute SI-SNR in dB; for several speakers, the mean in their best order."""
    if target.ndim == 1:
        return _si_snr(estimate, target)
    orders = permutations(range(len(target)))
    return max(float(np.mean([_si_snr(estimate[i], target[j]) for i, j in enumerate(order)])) for order in orders)


def _si_snr(estimate: NDArray[np.float32], target: NDArray[np.float32]) -> float:
    """Compute SI-SNR in dB, or `SILENT_DB` for a silent estimate: with two bits the mask may remove everything."""
    return float(si_snr(estimate, target)) if np.any(estimate) else SILENT_DB
