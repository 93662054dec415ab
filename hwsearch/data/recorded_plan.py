"""Recorded mixtures as part of a data set: each is planned, checked, converted and written."""

from dataclasses import dataclass, replace
from pathlib import Path

from hwsearch.data.arrays import microphone_array
from hwsearch.data.audio import write_audio
from hwsearch.data.dataset import AS_RECORDED, Mixture, Talker
from hwsearch.data.recorded import RecordedMixture, load_recorded
from hwsearch.experiment import DataConfig, Split
from hwsearch.files.reading import file_digest


@dataclass(frozen=True)
class RecordedPlan:
    """A recorded mixture and its place in the data set.

    Attributes:
        index: number of the mixture among the recorded ones of its split.
        content: `RecordedMixture.content`.
    """

    data: DataConfig
    source: RecordedMixture
    index: int
    content: str

    @property
    def split(self) -> Split:
        """The split of the mixture."""
        return self.source.split

    @property
    def id(self) -> str:
        """Split and number."""
        return f"{self.split.value}-recorded-{self.index:05d}"

    def has_made(self, mixture: Mixture) -> bool:
        """Whether a mixture was made by this plan."""
        return mixture.made_from == self.content and mixture.target_kind == AS_RECORDED

    def with_words(self, mixture: Mixture) -> Mixture:
        """A mixture of this plan, with the present words of the list."""
        return replace(mixture, target=replace(mixture.target, transcript=self.source.transcript))

    def path(self, part: str) -> str:
        """Path of a file of the mixture, relative to the data set's folder."""
        return f"{self.split.value}/recorded-{self.index:05d}-{part}.wav"


def plan_recorded(data: DataConfig, mixtures: tuple[RecordedMixture, ...], split: Split) -> tuple[RecordedPlan, ...]:
    """Plan the recorded mixtures of a split."""
    chosen = [mixture for mixture in mixtures if mixture.split is split]
    return tuple(RecordedPlan(data, mixture, index, mixture.content) for index, mixture in enumerate(chosen))


def write_recorded(plan: RecordedPlan, folder: Path) -> Mixture:
    """Read, resample and write one mixture. Levels stay as they are.

    Raises:
        UserError: a file is unusable.
    """
    data, source = plan.data, plan.source
    sound, target = load_recorded(source, data.sample_rate)
    write_audio(folder / plan.path("mixture"), sound, data.sample_rate)
    write_audio(folder / plan.path("target"), target, data.sample_rate)
    samples = len(target)
    speaker = f"recorded:{source.speaker}" if source.speaker else f"recorded:{source.utterance}"
    talker = Talker(
        f"recorded:{source.utterance}", speaker, source.transcript, None, source.doa_deg, start=0, samples=samples, whole=True
    )
    return Mixture(
        id=plan.id,
        made_from=plan.content,
        sample_rate=data.sample_rate,
        samples=samples,
        array=data.array,
        microphones=microphone_array(data.array).microphones,
        room=None,
        room_size_m=None,
        array_centre_m=None,
        t60_s=None,
        t60_measured_s=None,
        target=talker,
        interferer=None,
        angle_deg=source.angle_deg,
        overlap_drawn=None,
        overlap=None,
        sir_db=None,
        noise_snr_db=None,
        target_kind=AS_RECORDED,
        mixture_path=plan.path("mixture"),
        mixture_sha256=file_digest(folder / plan.path("mixture")),
        target_path=plan.path("target"),
        target_sha256=file_digest(folder / plan.path("target")),
    )
