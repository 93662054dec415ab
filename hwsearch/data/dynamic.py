"""Training data mixed at every step: new pairs of utterances, positions, levels and rooms."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import soxr

from hwsearch.data.example import Example
from hwsearch.data.mixing import Audio, Voice, cut, draw_overlap, place, render, to_length
from hwsearch.data.noise import Noises, make_noise
from hwsearch.data.rooms import RoomBank
from hwsearch.data.seeding import generator
from hwsearch.errors import UserError
from hwsearch.experiment import MixtureConfig


@dataclass(frozen=True)
class DynamicMixtures:
    """An endless set of mixtures, each a pure function of `name`, its epoch and its index.

    Attributes:
        speech: dry utterances of each speaker.
        bank: rooms of the mixtures.
        config: overlap, levels and kind of target.
        sample_rate: in Hz.
        segment_samples: length of every mixture.
        name: seed of the random generators.
        noises: noise that is added to every mixture, or None.
    """

    speech: dict[str, list[Audio]]
    bank: RoomBank
    config: MixtureConfig
    sample_rate: int
    segment_samples: int
    name: tuple[str | int, ...]
    noises: Noises | None = None

    def example(self, epoch: int, index: int) -> Example:
        """Example `index` of `epoch`."""
        rng = generator(*self.name, epoch, index)
        speakers = sorted(self.speech)
        first, second = (speakers[i] for i in rng.choice(len(speakers), size=2, replace=False))
        room = self.bank.rooms[int(rng.integers(len(self.bank.rooms)))]
        source, other = room.draw_sources(rng)
        overlap = draw_overlap(rng, self.config)
        longest = round(self.segment_samples * (1 + overlap) / 2)
        target = cut(rng, self.speech[first][int(rng.integers(len(self.speech[first])))], longest)
        interferer = cut(rng, self.speech[second][int(rng.integers(len(self.speech[second])))], longest)
        placement = place(rng, len(target), len(interferer), overlap)
        responses = self.bank.impulse_responses(room.index)
        sir_db = float(rng.normal(self.config.sir_mean_db, self.config.sir_std_db))
        voices = Voice(target, responses[source]), Voice(interferer, responses[other])
        noise = None
        if self.noises is not None:
            drawn = generator(*self.name, "noise", epoch, index)
            shape = placement.samples, self.sample_rate
            noise = make_noise(drawn, self.noises.drawn(drawn), responses, (source, other), shape)
        mixture, wanted = render(rng, *voices, placement, sir_db, self.config, self.sample_rate, noise)
        length = self.segment_samples
        return Example(to_length(mixture, length), to_length(wanted, length), room.doa_deg[source])


def speech_by_speaker(
    utterances: Sequence[tuple[str, Audio]], sample_rate: int, speeds: Sequence[float]
) -> dict[str, list[Audio]]:
    """Group dry speech by speaker, with copies at other speeds, which change pitch and tempo together.

    Args:
        utterances: pairs of a speaker and [samples].
        sample_rate: in Hz.
        speeds: factors of speed.

    Raises:
        UserError: fewer than two speakers.
    """
    speech: dict[str, list[Audio]] = defaultdict(list)
    for speaker, samples in utterances:
        for speed in speeds:
            played = samples if speed == 1.0 else soxr.resample(samples, sample_rate * speed, sample_rate)
            speech[speaker].append(played.astype(np.float32))
    if len(speech) < 2:
        raise UserError(f"data.corpora: {len(speech)} speaker(s) to mix for training or its validation; wanted at least 2")
    return dict(speech)
