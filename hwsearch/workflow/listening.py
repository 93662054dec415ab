"""One mixture as several systems separate it, to listen to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.signal import ShortTimeFFT
from scipy.signal.windows import hann

from hwsearch.data.dataset import Mixture, load_mixture
from hwsearch.errors import UserError
from hwsearch.metrics.errors import MetricUnavailable
from hwsearch.metrics.evaluation import Audio, System, of_target
from hwsearch.metrics.si_snr import si_snr
from hwsearch.workflow.checks import check_provenance
from hwsearch.workflow.evaluate import candidate_system, float_system
from hwsearch.workflow.export import evaluation_mixtures
from hwsearch.workflow.runs import Run, open_candidate
from hwsearch.workflow.training import load_float_base, prepare
from hwsearch.workspace import Workspace

MOST_SECONDS = 6.0
"""Longer mixtures are cut, so that a page of seven clips stays small."""

MIXTURES_TRIED = 9
"""Number of mixtures of which a typical one is taken."""

WINDOW_SECONDS, HOP_SECONDS = 0.032, 0.012
RANGE_DB = 70.0
"""Levels of a spectrogram further below the loudest one are cut off."""

Kind = Literal["mixture", "target", "full-precision", "candidate"]


@dataclass(frozen=True, eq=False)
class Clip:
    """What is heard of one mixture.

    Attributes:
        candidate: number of the candidate that separated it; None for the other kinds.
        why: why this candidate was taken.
        samples: [samples], as the system gives them.
        spectrogram: [bins, frames] levels in dB below the loudest one, from `-RANGE_DB` to 0.
        si_snr_db: of these samples against the target's; None for the target itself, and where it has no value.
    """

    kind: Kind
    samples: Audio
    spectrogram: NDArray[np.float32]
    si_snr_db: float | None
    candidate: int | None = None
    why: str = ""


@dataclass(frozen=True, eq=False)
class Listening:
    """Clips of one mixture, all of the same length.

    Attributes:
        mixture: its id.
        whole: whether nothing of it was cut off.
        transcript: the words of the target; None where they are unknown.
        angle_deg: angle between the two speakers; None if it is unknown.
    """

    mixture: str
    sample_rate: int
    whole: bool
    transcript: str | None
    angle_deg: float | None
    clips: Sequence[Clip]


def listen(run: Run, candidates: Sequence[tuple[int, str]]) -> Listening:
    """Separate a typical test mixture in full precision and by candidates, with the weights that these have in the run.

    Of the first `MIXTURES_TRIED` mixtures it is the one in the middle by what full precision improves. An experiment without test
    mixtures gives a validation mixture.

    Args:
        run: the run folder.
        candidates: their numbers, each with why it was taken.

    Raises:
        UserError: the base or the data are not those of the search, or the weights of a candidate are missing.
    """
    workspace = run.workspace
    check_provenance(workspace)
    full_precision = float_system(load_float_base(workspace))
    mixture = _typical(workspace, full_precision)
    sound, target = load_mixture(workspace.data_folder, mixture)
    doa_deg, rate = mixture.doa_deg, mixture.sample_rate
    samples = min(len(target), round(MOST_SECONDS * rate))

    def clip(kind: Kind, signal: Audio, candidate: int | None = None, why: str = "") -> Clip:
        level = None if kind == "target" else _si_snr(signal[:samples], target[:samples])
        return Clip(kind, signal[:samples], spectrogram(signal[:samples], rate), level, candidate, why)

    def heard(system: System) -> Audio:
        return of_target(system(sound, doa_deg), target)

    prepared = prepare(workspace)
    clips = [clip("mixture", sound[0]), clip("target", target)]
    clips.append(clip("full-precision", heard(full_precision)))
    for number, why in candidates:
        opened = open_candidate(run, prepared, number)
        system = candidate_system(opened.base, opened.configuration.allocation, opened.state)
        clips.append(clip("candidate", heard(system), number, why))
    whole = samples == len(target)
    return Listening(mixture.id, rate, whole, mixture.target.transcript, mixture.angle_deg, clips)


def _typical(workspace: Workspace, system: System) -> Mixture:
    """Return the mixture in the middle of the first ones, by what a system improves."""
    improvements: list[tuple[float, Mixture]] = []
    for mixture in evaluation_mixtures(workspace)[:MIXTURES_TRIED]:
        sound, target = load_mixture(workspace.data_folder, mixture)
        after = _si_snr(of_target(system(sound, mixture.doa_deg), target), target)
        before = _si_snr(sound[0], target)
        if after is not None and before is not None:
            improvements.append((after - before, mixture))
    if not improvements:
        raise UserError(
            f"{workspace.data_folder}: none of the first {MIXTURES_TRIED} mixtures has an SI-SNR; wanted speech in one"
        )
    improvements.sort(key=lambda found: found[0])
    return improvements[len(improvements) // 2][1]


def spectrogram(signal: Audio, sample_rate: int) -> NDArray[np.float32]:
    """Compute levels [bins, frames] in dB below the loudest one, the lowest frequency first; silence is `-RANGE_DB`."""
    length = round(WINDOW_SECONDS * sample_rate)
    if len(signal) < length:
        signal = np.pad(signal, (0, length - len(signal)))
    transform = ShortTimeFFT(hann(length, sym=False), hop=round(HOP_SECONDS * sample_rate), fs=sample_rate)
    power = transform.spectrogram(signal.astype(np.float64))
    loudest = power.max()
    if loudest == 0.0:
        return np.full(power.shape, -RANGE_DB, np.float32)
    floor = 10.0 ** (-RANGE_DB / 10.0)
    levels: NDArray[np.float32] = (10.0 * np.log10(np.maximum(power / loudest, floor))).astype(np.float32)
    return levels


def _si_snr(signal: Audio, target: Audio) -> float | None:
    try:
        return float(si_snr(signal, target))
    except MetricUnavailable:
        return None
