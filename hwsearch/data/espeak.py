"""The embedded corpus: sentences said by the formant voices of eSpeak NG, synthesised once into a cache.

The library comes with the `espeakng_loader` package and is called through ctypes. With one build of the library, an experiment
gets the same samples on every run. This takes two measures. The noise of breathy voices comes from two random generators, the
library's own and the C library's, and both get a fixed seed. An utterance also depends on those before it, so one new process
synthesises all utterances of a corpus in order.
"""

import ctypes
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import soundfile as sf
from numpy.typing import NDArray

from hwsearch.data.processes import in_processes
from hwsearch.data.seeding import generator
from hwsearch.data.sentences import digits_in_words, draw_digits, draw_sentence, sentence_split
from hwsearch.data.source import Source
from hwsearch.data.utterance import Utterance
from hwsearch.errors import UserError
from hwsearch.experiment import CorpusConfig, Split
from hwsearch.files.reading import digest

SAMPLE_RATE = 22_050
"""In Hz, fixed by the library."""

NOISE_SEED = 1
"""Seed of the generators of the voices' noise."""

ENDED = "eSpeak NG ended its process while synthesising; wanted a working espeakng-loader package"

PREFIX = "espeak:"

_ACCENTS = ("en-us", "en-gb-x-rp", "en-gb-scotland", "en-029", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-us-nyc", "en")

# The library's voice variants that sound like a person: no whispers, echoes or robots. Each differs as much as possible, in
# long-term mel spectrum and pitch, from all before it. The last ones are nearly equal to others.
_VARIANTS = (
    "f1", "ian", "klatt2", "iven2", "anika", "AnxiousAndy", "Reed", "Storm", "Nguyen", "Marco", "boris",
    "grandma", "Alicia", "travis", "Lee", "kaukovalta", "belinda", "steph3", "david", "gustave", "Jacky",
    "shelby", "ed", "m2", "victor", "m8", "Tweaky", "Andrea", "Diogo", "Mr serious", "klatt3", "Mario",
    "Gene2", "f5", "paul", "Annie", "marcelo", "antonio", "Alex", "m7", "pablo", "mike2", "linda", "m1",
    "Denis", "aunty", "robert", "edward", "quincy", "sandro", "f3", "iven", "m4", "john", "m5", "max",
    "edward2", "m6", "f2", "rob", "f4", "Mike", "grandpa", "Gene", "klatt5", "klatt6", "m3",
)  # fmt: skip

_VARIANT_OWNERS = (Split.TRAIN, Split.VALIDATION, Split.TRAIN, Split.TEST)
"""The split of each variant, by its position in the list, repeated."""


@dataclass(frozen=True)
class Voice:
    """A synthetic speaker: the library's names of accent and variant, words per minute, pitch and its range (0 to 100)."""

    accent: str
    variant: str
    rate: int
    pitch: int
    pitch_range: int

    @property
    def name(self) -> str:
        """The library's name of accent and variant."""
        return f"{self.accent}+{self.variant}"


def voices(split: Split, count: int) -> tuple[Voice, ...]:
    """The first `count` synthetic speakers of a split.

    Every variant belongs to the same split in all corpora: half of them to training, a quarter each to validation and test. A
    base or recogniser trained on one synthesised corpus therefore has heard no test voice of another. Beyond the split's share of
    the 67 variants, variants repeat with another accent, pitch and rate; such speakers are more alike than two people.

    Raises:
        UserError: the split has fewer combinations of variant and accent.
    """
    owned = [place for place in range(len(_VARIANTS)) if _VARIANT_OWNERS[place % len(_VARIANT_OWNERS)] is split]
    if count > len(owned) * len(_ACCENTS):
        raise UserError(
            f"data.corpora: {count} eSpeak voices for the {split.value} split; there are {len(owned) * len(_ACCENTS)}"
        )
    made = []
    for index in range(count):
        turn, position = divmod(index, len(owned))
        place = owned[position]
        accent = _ACCENTS[(place + 3 * turn) % len(_ACCENTS)]
        random = generator("voice", _VARIANTS[place], turn)
        rate, pitch, pitch_range = (int(random.integers(*ends)) for ends in ((140, 195), (30, 70), (35, 65)))
        made.append(Voice(accent, _VARIANTS[place], rate, pitch, pitch_range))
    return tuple(made)


@dataclass(frozen=True)
class Line:
    """One utterance to be synthesised."""

    id: str
    voice: Voice
    text: str


def read_corpus(corpus: CorpusConfig, seed: int, cache: Path) -> Source:
    """Let synthetic voices say sentences, of which a share are digit strings.

    Each split takes its share of the speakers, rounded, from its own voices. A sentence belongs to the split of its words.

    Raises:
        UserError: a split has fewer voices, or the experiment names a root.
    """
    if corpus.root is not None:
        raise UserError("data.corpora: root is not used for kind 'espeak'")
    cast = {split: voices(split, round(corpus.splits.get(split, 0.0) * corpus.speakers)) for split in Split}
    lines = _write_lines(cast, corpus.utterances_per_speaker, corpus.digit_strings, seed)
    key = digest({"library": version("espeakng-loader"), "noise": NOISE_SEED, "script": [asdict(line) for line in lines]})
    folder = cache / f"espeak-{key[:16]}"
    speech: dict[Split, list[Utterance]] = {split: [] for split in Split}
    for number, line in enumerate(lines):
        said = Utterance(line.id, PREFIX + line.voice.name, folder, (_file_name(number),), line.text)
        speech[sentence_split(line.text)].append(said)
    return Source({split: tuple(said) for split, said in speech.items()}, lambda: _synthesise_missing(folder, lines))


def _file_name(number: int) -> str:
    return f"{number:05d}.flac"


def _write_lines(cast: Mapping[Split, Sequence[Voice]], per_speaker: int, digit_strings: float, seed: int) -> list[Line]:
    lines = []
    for split, voice in ((owner, speaker) for owner in Split for speaker in cast[owner]):
        random = generator("espeak", seed, voice.name)
        said: set[str] = set()
        while len(said) < per_speaker:
            # Exactly the wanted share, evenly spread among the sentences.
            is_digits = int((len(said) + 1) * digit_strings) > int(len(said) * digit_strings)
            text = digits_in_words(draw_digits(random)) if is_digits else draw_sentence(random)
            if sentence_split(text) is split and text not in said:
                name = f"{PREFIX}{voice.name}-{len(said):04d}".replace(" ", "_")
                said.add(text)
                lines.append(Line(name, voice, text))
    return lines


def _synthesise_missing(folder: Path, lines: Sequence[Line]) -> None:
    if not folder.is_dir():
        _synthesise_into(folder, lines)
    for number in range(len(lines)):
        if not (folder / _file_name(number)).is_file():
            raise UserError(f"{folder}: {_file_name(number)} is gone; delete the folder to have it made again")


def _synthesise_into(folder: Path, lines: Sequence[Line]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with closing(in_processes(_synthesise, [(lines, unfinished)], 1, ENDED)) as fresh_process:
            next(fresh_process)
        unfinished.chmod(0o755)
        try:
            unfinished.rename(folder)
        except OSError:
            # Another process has made the same corpus.
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _synthesise(lines: Sequence[Line], folder: Path) -> None:
    synthesiser = _Synthesiser()
    for number, line in enumerate(lines):
        sf.write(folder / _file_name(number), synthesiser.say(line.voice, line.text), SAMPLE_RATE, subtype="PCM_16")


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

# Values of espeak-ng/speak_lib.h.
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_DONT_EXIT = 0x8000
_CHARS_UTF8 = 1
_RATE, _PITCH, _RANGE = 1, 3, 4


class _Synthesiser:
    """The loaded library. Its state is global, so a process must not hold two."""

    def __init__(self) -> None:
        import espeakng_loader

        try:
            self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        except OSError as error:
            raise UserError(f"eSpeak NG does not load ({error}); wanted a working espeakng-loader package") from None
        data = str(espeakng_loader.get_data_path())
        rate = self._library.espeak_Initialize(_AUDIO_OUTPUT_SYNCHRONOUS, 0, data.encode(), _INITIALIZE_DONT_EXIT)
        if rate != SAMPLE_RATE:
            raise UserError(f"{data}: eSpeak NG does not start from these data (code {rate}); the path may be too long")
        # The initialisation has seeded the library's generator with the time.
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(NOISE_SEED))
        ctypes.CDLL(None).srand(ctypes.c_uint(NOISE_SEED))
        self._chunks: list[bytes] = []
        self._callback = _CALLBACK(self._collect)
        self._library.espeak_SetSynthCallback(self._callback)

    def say(self, voice: Voice, text: str) -> NDArray[np.int16]:
        """Speech at `SAMPLE_RATE` Hz, [samples]."""
        if self._library.espeak_SetVoiceByName(voice.name.encode()) != 0:
            raise UserError(f"eSpeak NG has no voice {voice.name!r}; wanted the voices of espeakng-loader 0.2")
        for parameter, value in ((_RATE, voice.rate), (_PITCH, voice.pitch), (_RANGE, voice.pitch_range)):
            self._library.espeak_SetParameter(parameter, value, 0)
        self._chunks.clear()
        encoded = text.encode()
        self._library.espeak_Synth(encoded, ctypes.c_size_t(len(encoded) + 1), 0, 1, 0, _CHARS_UTF8, None, None)
        self._library.espeak_Synchronize()
        return np.frombuffer(b"".join(self._chunks), dtype=np.int16)

    def _collect(self, samples: "ctypes._Pointer[ctypes.c_short] | None", count: int, _events: object) -> int:
        if samples and count > 0:
            self._chunks.append(ctypes.string_at(samples, 2 * count))
        return 0
