"""Clips as sound files and pictures inside a page."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import soundfile as sf
from matplotlib.image import imsave
from numpy.typing import NDArray

from hwsearch.view.report.page import data_uri
from hwsearch.workflow.listening import RANGE_DB, Clip, Listening

PEAK = 0.9
"""Largest sample of all clips, of full scale."""

COLOURS = "magma"


def sound_data(listening: Listening) -> dict[str, Any]:
    """Convert clips to the data of the players."""
    rate = listening.sample_rate
    seconds = len(listening.clips[0].samples) / rate
    cut = "" if listening.whole else f", its first {seconds:.1f} s"
    angle = "" if listening.angle_deg is None else f", with {listening.angle_deg:.0f}\u00b0 between the speakers"
    about = f"Mixture {listening.mixture}{cut}{angle}."
    if listening.transcript:
        about += f" The target says: \u201c{listening.transcript}\u201d."
    about += (
        " Of several mixtures it is in the middle by what full precision improves. All voices have the loudness of the target."
    )
    return {
        "seconds": seconds,
        "about": about,
        "clips": [
            {
                "name": clip_name(clip),
                "note": _note(clip),
                "sound": data_uri(flac(samples, rate), "audio/flac"),
                "image": data_uri(picture(clip.spectrogram), "image/png"),
                "alt": f"spectrogram of {clip_name(clip)}, 0 to {rate / 2000:g} kHz over {seconds:.1f} s",
            }
            for clip, samples in zip(listening.clips, levelled(listening.clips), strict=True)
        ],
    }


def clip_name(clip: Clip) -> str:
    """Return what a clip is called."""
    if clip.candidate is None:
        return clip.kind.replace("-", " ")
    return f"candidate {clip.candidate} ({clip.why})"


def levelled(clips: Sequence[Clip]) -> list[NDArray[np.float32]]:
    """Bring what systems made to the loudness of the target, and all clips below full scale by one factor."""
    (target,) = (clip for clip in clips if clip.kind == "target")
    level = _loudness(target.samples)
    found = []
    for clip in clips:
        own = _loudness(clip.samples)
        made = clip.kind in ("full-precision", "candidate") and own > 0 and level > 0
        found.append(clip.samples * (level / own if made else 1.0))
    peak = max(float(np.abs(samples).max(initial=0.0)) for samples in found)
    return [(samples * (PEAK / peak if peak > 0 else 1.0)).astype(np.float32) for samples in found]


def flac(samples: NDArray[np.float32], sample_rate: int) -> bytes:
    """Encode [samples] between -1 and 1 as FLAC of 16 bits."""
    stream = io.BytesIO()
    sf.write(stream, samples, sample_rate, format="FLAC", subtype="PCM_16")
    return stream.getvalue()


def picture(spectrogram: NDArray[np.float32]) -> bytes:
    """Draw levels [bins, frames] as a PNG picture with a pixel for each, high frequencies at the top."""
    stream = io.BytesIO()
    imsave(stream, spectrogram[::-1], vmin=-RANGE_DB, vmax=0.0, cmap=COLOURS, format="png")
    return stream.getvalue()


def _loudness(samples: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))) if len(samples) else 0.0


def _note(clip: Clip) -> str:
    if clip.kind == "target":
        return "what should be heard"
    return "" if clip.si_snr_db is None else f"SI-SNR {clip.si_snr_db:.1f} dB"
