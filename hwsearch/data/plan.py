"""Fixed mixtures: each is drawn as a plan, then mixed and written."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hwsearch.data.arrays import microphone_array
from hwsearch.data.audio import write_audio
from hwsearch.data.dataset import Mixture, Talker
from hwsearch.data.direction import angle_between
from hwsearch.data.mixing import Audio, Voice, cut, draw_overlap, place, render
from hwsearch.data.noise import Noise, Noises, make_noise, noise_ids
from hwsearch.data.recorded import content_digest
from hwsearch.data.rooms import Room, RoomBank, measure_t60
from hwsearch.data.seeding import generator
from hwsearch.data.utterance import Utterance, load_speech
from hwsearch.experiment import DataConfig, Split
from hwsearch.files.reading import digest, file_digest

_CANDIDATES = 16
"""Number of interferers drawn for a target. The first that is long enough for the overlap is used."""


@dataclass(frozen=True)
class Plan:
    """Choices for a mixture that are made before any sound is loaded.

    Attributes:
        name: the data digest.
        index: number of the mixture in its split.
        target_source: the target's position among the room's sources.
        interferer_source: the interferer's position among the room's sources.
        candidates: possible interferers, all by other speakers than the target.
        noises: noise that is tried in turn, or None for a mixture without.
    """

    name: str
    data: DataConfig
    split: Split
    index: int
    bank_folder: Path
    room: Room
    target_source: int
    interferer_source: int
    target: Utterance
    candidates: tuple[Utterance, ...]
    noises: Noises | None = None

    @property
    def id(self) -> str:
        """Split and number."""
        return f"{self.split.value}-{self.index:05d}"

    @property
    def speech(self) -> tuple[Utterance, ...]:
        """The utterances that the mixture may be made from, with the target first."""
        return (self.target, *self.candidates)

    @property
    def made_from(self) -> str:
        """Hash of the recordings; everything else follows from the data digest."""
        return digest([*map(identify, self.speech), *noise_ids(self.noises)])

    def has_made(self, mixture: Mixture) -> bool:
        """Whether a mixture was made by this plan; its words may have been corrected since."""
        return (
            mixture.made_from == self.made_from
            and mixture.target.utterance == self.target.id
            and mixture.interferer is not None
            and mixture.interferer.utterance in {utterance.id for utterance in self.candidates}
            and mixture.room == self.room.index
            and mixture.target.doa_deg == self.room.doa_deg[self.target_source]
            and mixture.interferer.doa_deg == self.room.doa_deg[self.interferer_source]
        )

    def with_words(self, mixture: Mixture) -> Mixture:
        """A mixture of this plan, with the present words of the corpus."""
        words = {utterance.id: utterance.transcript for utterance in self.speech}

        def heard(talker: Talker) -> Talker:
            return replace(talker, transcript=words[talker.utterance] if talker.whole else None)

        other = None if mixture.interferer is None else heard(mixture.interferer)
        return replace(mixture, target=heard(mixture.target), interferer=other)

    def path(self, part: str) -> str:
        """Path of a file of the mixture, relative to the data set's folder."""
        return f"{self.split.value}/{self.index:05d}-{part}.wav"


def identify(utterance: Utterance) -> list[object]:
    """Return what identifies an utterance: its names, and where these are not enough, the content and the part of its files.

    Raises:
        UserError: a file is missing.
    """
    if not utterance.by_content:
        return [utterance.id, utterance.paths]
    contents = [content_digest(utterance.root / path) for path in utterance.paths]
    return [utterance.id, utterance.paths, utterance.channel, utterance.span, contents]


def draw_plans(
    data: DataConfig, name: str, split: Split, speech: Sequence[Utterance], bank: RoomBank, noises: Noises | None = None
) -> tuple[Plan, ...]:
    """Draw a split's mixtures, with noise if the split has some.

    The numbers of times that utterances are targets differ by at most one. Room, sources and interfering speaker are uniformly
    distributed.
    """
    by_speaker: dict[str, list[Utterance]] = {}
    for utterance in speech:
        by_speaker.setdefault(utterance.speaker, []).append(utterance)
    speakers = sorted(by_speaker)
    plans = []
    for index, target in enumerate(_targets(name, split, speech, data.mixtures.count[split])):
        rng = generator(name, "mixture", split, index)
        room = bank.rooms[int(rng.integers(len(bank.rooms)))]
        target_source, interferer_source = room.draw_sources(rng)
        others = [by_speaker[speaker] for speaker in speakers if speaker != target.speaker]
        drawn = (others[int(i)] for i in rng.integers(len(others), size=_CANDIDATES))
        candidates = tuple(utterances[int(rng.integers(len(utterances)))] for utterances in drawn)
        noise = None if noises is None else noises.drawn(generator(name, "noise", split, index))
        plans.append(
            Plan(name, data, split, index, bank.folder, room, target_source, interferer_source, target, candidates, noise)
        )
    return tuple(plans)


def _targets(name: str, split: Split, speech: Sequence[Utterance], count: int) -> Iterator[Utterance]:
    for turn in range(-(-count // len(speech))):
        order = generator(name, "targets", split, turn).permutation(len(speech))
        yield from (speech[int(number)] for number in order[: count - turn * len(speech)])


def write_mixture(plan: Plan, folder: Path) -> Mixture:
    """Load, mix and write one mixture.

    Raises:
        UserError: an utterance or a room's file is unusable.
    """
    data, array = plan.data, microphone_array(plan.data.array)
    rng = generator(plan.name, "sound", plan.split, plan.index)
    overlap = draw_overlap(rng, data.mixtures)
    longest = round(data.mixtures.seconds * data.sample_rate)
    spoken = load_speech(plan.target, data.sample_rate)
    # The mixture's length is (target + interferer) / (1 + overlap). At least half of it is left to the interferer.
    target = cut(rng, spoken, min(longest, int((0.5 + overlap) * longest)))
    utterance, uncut_samples, interferer = _choose_interferer(rng, plan, len(target), overlap, longest)
    placement = place(rng, len(target), len(interferer), overlap)
    responses = RoomBank(plan.bank_folder, (plan.room,)).impulse_responses(plan.room.index)
    sir_db = float(rng.normal(data.mixtures.sir_mean_db, data.mixtures.sir_std_db))
    voices = Voice(target, responses[plan.target_source]), Voice(interferer, responses[plan.interferer_source])
    noise = _noise(plan, responses, placement.samples)
    mixture, wanted = render(rng, *voices, placement, sir_db, data.mixtures, data.sample_rate, noise)
    write_audio(folder / plan.path("mixture"), mixture, data.sample_rate)
    write_audio(folder / plan.path("target"), wanted, data.sample_rate)
    target_talker = _talker(plan.target, len(spoken), plan.room, plan.target_source, placement.target_start, len(target))
    start = placement.interferer_start
    interferer_talker = _talker(utterance, uncut_samples, plan.room, plan.interferer_source, start, len(interferer))
    return Mixture(
        id=plan.id,
        made_from=plan.made_from,
        sample_rate=data.sample_rate,
        samples=placement.samples,
        array=array.setting,
        microphones=array.microphones,
        room=plan.room.index,
        room_size_m=plan.room.size_m,
        array_centre_m=plan.room.centre_m,
        t60_s=plan.room.t60_s,
        t60_measured_s=measure_t60(responses[plan.target_source, 0], data.sample_rate),
        target=target_talker,
        interferer=interferer_talker,
        angle_deg=angle_between(plan.room.doa_deg[plan.target_source], plan.room.doa_deg[plan.interferer_source]),
        overlap_drawn=overlap,
        overlap=placement.overlap(len(target), len(interferer)),
        sir_db=sir_db,
        noise_snr_db=data.mixtures.noise_snr_db,
        target_kind=data.mixtures.target,
        mixture_path=plan.path("mixture"),
        mixture_sha256=file_digest(folder / plan.path("mixture")),
        target_path=plan.path("target"),
        target_sha256=file_digest(folder / plan.path("target")),
        noise=None if noise is None else noise.file.id,
        noise_below_db=None if noise is None else noise.snr_db,
    )


def _noise(plan: Plan, responses: Audio, samples: int) -> Noise | None:
    """The noise of a mixture, if it has some."""
    if plan.noises is None:
        return None
    rng = generator(plan.name, "noise sound", plan.split, plan.index)
    taken = plan.target_source, plan.interferer_source
    return make_noise(rng, plan.noises, responses, taken, (samples, plan.data.sample_rate))


def _choose_interferer(
    rng: np.random.Generator, plan: Plan, target_samples: int, overlap: float, longest: int
) -> tuple[Utterance, int, Audio]:
    """Choose the first candidate that is long enough, otherwise the longest.

    An overlap r needs an interferer of r to 1 / r times the length of the target, and `longest` limits the mixture.

    Returns:
        The utterance, its length in samples, and its speech, cut if necessary.
    """
    most = int((1 + overlap) * longest) - target_samples
    if overlap > 0:
        most = min(most, int(target_samples / overlap))
    chosen, speech = plan.candidates[0], np.zeros(0, np.float32)
    for candidate in plan.candidates:
        loaded = load_speech(candidate, plan.data.sample_rate)
        if len(loaded) > len(speech):
            chosen, speech = candidate, loaded
        if len(speech) >= min(most, int(overlap * target_samples)):
            break
    return chosen, len(speech), cut(rng, speech, most)


def _talker(utterance: Utterance, uncut_samples: int, room: Room, source: int, start: int, samples: int) -> Talker:
    whole = samples == uncut_samples
    return Talker(
        utterance=utterance.id,
        speaker=utterance.speaker,
        transcript=utterance.transcript if whole else None,
        position_m=None if room.sources_m is None else room.sources_m[source],
        doa_deg=room.doa_deg[source],
        start=start,
        samples=samples,
        whole=whole,
    )
