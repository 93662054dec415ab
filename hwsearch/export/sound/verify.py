"""Proof that a file from sound to sound separates as the network does.

The three parts are judged one by one, each on what the file itself made before: the features against those of the front end, the
mask against that of the verified file of the network, and the sound against that which the front end makes of the same mask.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor

from hwsearch.data.example import Example
from hwsearch.export.description import INPUT, OUTPUT
from hwsearch.export.network import ExportedNetwork
from hwsearch.export.runtime import OnnxSeparator, open_session
from hwsearch.export.sound.stream import Numbers
from hwsearch.export.verify import FLOAT_TOLERANCE, VerificationError
from hwsearch.metrics.errors import MetricUnavailable
from hwsearch.metrics.si_snr import si_snr
from hwsearch.process.interrupts import checkpoint

LEAST_FEATURES_DB = 30.0
"""Least ratio of the features to their error. In bins with hardly any sound, phases are rounding errors, which differ: synthetic
speech has many of them and reaches 45 dB. A wrong feature gives less than 20 dB."""

_WHOLE = 2**40
"""More frames than any recording has."""


@dataclass(frozen=True)
class SoundReport:
    """How a file from sound to sound compares with the network behind its front end.

    Attributes:
        features_db: least ratio of the features to their error, over examples; 150 without an error.
        mask_difference: largest difference from the mask of the network's file, as a share of the peak.
        sound_difference: largest difference from the front end's sound, as a share of the peak.
        si_snr_db: least SI-SNR over examples of the file's sound against that of the Brevitas network; none for a silent one.
        target_si_snr_db: mean SI-SNR of the file's sound against the target; none if the network gives several speakers.
        network_si_snr_db: mean SI-SNR of the Brevitas network's sound against the target.
        real_time_factor: seconds that the file took for a second of sound, on one thread of this machine.
        streams: whether the file can separate a recording while it goes on.
    """

    features_db: float
    mask_difference: float
    sound_difference: float
    si_snr_db: float | None
    target_si_snr_db: float | None
    network_si_snr_db: float | None
    real_time_factor: float
    streams: bool


class _Tapped(OnnxSeparator):
    """A separator that keeps the features and the masks of its calls."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, threads=1)
        model = onnx.load(path)
        model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in (INPUT, OUTPUT))
        self._session = open_session(model.SerializeToString())
        self._taps: list[tuple[Numbers, Numbers]] = []

    def separated(self, example: Example) -> tuple[Tensor, Tensor, Tensor]:
        """Return features and mask [1, channels, frames], and sound."""
        self._taps.clear()
        sound = self.separate(example.mixture, example.doa_deg, _WHOLE)
        features, mask = (torch.from_numpy(np.concatenate(parts, axis=-1)) for parts in zip(*self._taps, strict=True))
        return features, mask, torch.from_numpy(sound)

    def _call(self, inputs: Mapping[str, Numbers]) -> tuple[Numbers, list[Numbers]]:
        target, *states, features, mask = self._session.run(None, inputs)
        self._taps.append((features, mask))
        return target, states


def verify_sound(path: Path, network_path: Path, network: ExportedNetwork, examples: Sequence[Example]) -> SoundReport:
    """Compare a file of `export_sound` with its network.

    Args:
        path: the file.
        network_path: the file of the network alone, which was verified.
        network: the network.
        examples: at least one mixture.

    Raises:
        VerificationError: a part of the file computes something else.
    """
    tapped, plain = _Tapped(path), OnnxSeparator(path, threads=1)
    session = open_session(network_path.read_bytes())
    front_end = network.front_end
    features_db, masks, sounds = [], [], []
    agreements: list[float] = []
    quality: list[tuple[float, float]] = []
    taken = given = 0.0
    for example in examples:
        checkpoint()
        mixture = torch.from_numpy(example.mixture)[None]
        features, mask, sound = tapped.separated(example)
        begun = time.perf_counter()
        again = plain.separate(example.mixture, example.doa_deg, _WHOLE)
        taken, given = taken + time.perf_counter() - begun, given + mixture.shape[-1] / front_end.sample_rate
        if not np.array_equal(sound, again):
            raise VerificationError(f"{path}: its output changes when inner tensors are read; it cannot be verified")
        features_db.append(_ratio_db(features, network.raw(example)))
        masks.append(_difference(mask, torch.from_numpy(session.run([OUTPUT], {INPUT: features.numpy()})[0])))
        with torch.no_grad():
            analysis = front_end.analyse(mixture, torch.tensor([example.doa_deg]))
            samples = mixture.shape[-1]
            sounds.append(_difference(sound, front_end.synthesise(analysis, mask, samples)[0]))
            wanted = front_end.synthesise(analysis, network.network(analysis.normalised), samples)[0]
        try:
            agreements.append(float(np.min(si_snr(sound.numpy(), wanted.numpy()))))
            if front_end.directed:
                quality.append((float(si_snr(sound.numpy(), example.target)), float(si_snr(wanted.numpy(), example.target))))
        except MetricUnavailable:
            continue  # a silent sound has no SI-SNR
    means = [float(mean) for mean in np.mean(quality, axis=0)] if quality else [None, None]
    least = min(agreements, default=None)
    differences = min(features_db), max(masks), max(sounds)
    report = SoundReport(*differences, least, means[0], means[1], taken / given, tapped.streams)
    _check(path, report)
    return report


def _check(path: Path, report: SoundReport) -> None:
    if not report.features_db >= LEAST_FEATURES_DB:
        raise VerificationError(
            f"{path}: its features are {report.features_db:.1f} dB above their error; wanted {LEAST_FEATURES_DB}"
        )
    for what, share in (("mask", report.mask_difference), ("sound", report.sound_difference)):
        if not share <= FLOAT_TOLERANCE:
            raise VerificationError(f"{path}: the {what} is off by {share:.3g} of its peak; wanted at most {FLOAT_TOLERANCE:.3g}")


def _difference(found: Tensor, wanted: Tensor) -> float:
    """The largest difference as a share of the peak."""
    return float((found - wanted).abs().max() / wanted.abs().max().clamp_min(torch.finfo(torch.float32).tiny))


def _ratio_db(found: Tensor, wanted: Tensor) -> float:
    error = float((found - wanted).double().square().sum())
    return 150.0 if error == 0 else min(150.0, 10 * float(torch.log10(wanted.double().square().sum() / error)))
