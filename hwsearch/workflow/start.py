"""A first experiment file, written from a few choices."""

import math
import os
import re
import shlex
import tomllib
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import tomli_w

from hw_models.errors import TargetError
from hw_models.target import load_target
from hwsearch.data.arrays import ARRAYS
from hwsearch.data.corpus import read_corpora
from hwsearch.data.feasible import check_recordings
from hwsearch.data.kinds import kind_of
from hwsearch.errors import UserError
from hwsearch.experiment import RESERVED_NAMES, ArrayName, CorpusConfig, Experiment, Split, experiment_in
from hwsearch.extensions import CORPORA
from hwsearch.files.writing import atomic_write_text, check_writable
from hwsearch.printable import printable

Size = Literal["quick", "small", "medium", "large"]

SYNTHESISED = "espeak"
"""The kind of speech that is made where no corpus is named."""

_SUFFIX = ".toml"
_LEAST_SPEAKERS = 6
"""Two for each of three splits."""

_SAMPLE_RATE = 8000
"""Hz, of the experiment that is written."""

_LOOKED_AT = 20
"""Recordings whose headers are read."""

_NAME_CHARACTERS = 64


@dataclass(frozen=True)
class Wishes:
    """What a first experiment is to be.

    Attributes:
        output: the TOML file to write.
        speech: folder or list of recorded speech; None for synthesised speech.
        array: a built-in array.
        chip: a target: a built-in name, or the path of a target file.
        size: how large the network, its data and its training are. "quick" has the network of "small" and trains it for minutes.
    """

    output: Path
    speech: Path | None = None
    array: ArrayName = "linear6"
    chip: str = "cortex-m7-cmsis-nn"
    size: Size = "quick"


@dataclass(frozen=True)
class _Amounts:
    """What depends on the size."""

    network: str
    one_microphone: str
    rooms: str
    mixtures: str
    seconds: float
    training: str
    shared_steps: int
    trials: int


_SMALL = (
    (
        'ipd = "none"  # phase differences between microphones as features: "cos_sin" or "steered" may help\n'
        "B = 64  # channels between blocks\nH = 128  # channels inside a block\n"
        "X = 6  # blocks in a repeat\nR = 2  # repeats"
    ),
    (
        "N = 64  # filters of the encoder\nL = 32  # samples of a filter\n"
        "B = 64  # channels between blocks\nH = 128  # channels inside a block\n"
        "Sc = 64  # channels of the skip connections\nX = 6  # blocks in a repeat\nR = 2  # repeats"
    ),
)
"""The small network, with several microphones and with one."""

_AMOUNTS: dict[Size, _Amounts] = {
    "quick": _Amounts(
        *_SMALL,
        "train = 64, validation = 8, test = 8",
        "validation = 32, test = 32",
        3.0,
        "epochs = 6  # CHANGE FIRST for quality: 30 and more; or take 'hwsearch init --size small'\nsteps_per_epoch = 200\n"
        "batch_size = 4\nsegment_seconds = 2.0",
        600,
        80,
    ),
    "small": _Amounts(
        *_SMALL,
        "train = 128, validation = 16, test = 16",
        "validation = 48, test = 48",
        4.0,
        "epochs = 30  # CHANGE FIRST for quality: 60 and more, while the validation score still rises\nsteps_per_epoch = 200\n"
        "batch_size = 8",
        1200,
        100,
    ),
    "medium": _Amounts(
        'ipd = "steered"  # phase differences between microphones, steered to the target, as features\n'
        "B = 128  # channels between blocks\nH = 256  # channels inside a block\n"
        "X = 6  # blocks in a repeat\nR = 3  # repeats",
        "N = 128  # filters of the encoder\nL = 32  # samples of a filter\n"
        "B = 128  # channels between blocks\nH = 256  # channels inside a block\n"
        "Sc = 128  # channels of the skip connections\nX = 6  # blocks in a repeat\nR = 3  # repeats",
        "train = 500, validation = 40, test = 60",
        "validation = 64, test = 120",
        5.0,
        "epochs = 45  # CHANGE FIRST for quality: more, while the validation score still rises\nsteps_per_epoch = 300\n"
        "batch_size = 8",
        3000,
        150,
    ),
    "large": _Amounts(
        'ipd = "steered"  # phase differences between microphones, steered to the target, as features\n'
        "B = 192  # channels between blocks\nH = 384  # channels inside a block\n"
        "X = 8  # blocks in a repeat\nR = 4  # repeats",
        "N = 256  # filters of the encoder\nL = 32  # samples of a filter\n"
        "B = 192  # channels between blocks\nH = 384  # channels inside a block\n"
        "Sc = 192  # channels of the skip connections\nX = 8  # blocks in a repeat\nR = 4  # repeats",
        "train = 1500, validation = 80, test = 150",
        "validation = 100, test = 300",
        6.0,
        "epochs = 60  # CHANGE FIRST for quality: more, while the validation score still rises\nsteps_per_epoch = 600\n"
        "batch_size = 8",
        6000,
        200,
    ),
}


def write_first(wishes: Wishes) -> Experiment:
    """Write an experiment file with comments, which runs as it is. Nothing is written if it would be refused.

    Raises:
        UserError: the file is there already or cannot be written, the chip is unknown, or the speech cannot be used.
    """
    check_output(wishes.output)
    check_chip(wishes.chip)
    text = _text(wishes, None if wishes.speech is None else check_speech(wishes.speech))
    folder = wishes.output.resolve().parent
    experiment = experiment_in(folder, tomllib.loads(text), str(wishes.output))
    read_corpora(experiment.data, experiment.seed, folder)
    atomic_write_text(wishes.output, text)
    return experiment


def check_output(output: Path) -> None:
    """Refuse a name that is no TOML file's, or a file that is there already. Nothing is made."""
    if output.suffix.lower() != _SUFFIX:
        raise UserError(f"--output is {output}; wanted a name that ends in {_SUFFIX}")
    if os.path.lexists(output):
        raise UserError(f"{output}: is there already; wanted another --output, or no file there")
    check_writable(output)


def check_chip(chip: str) -> None:
    """Refuse an unknown target, or a target file that cannot be used."""
    try:
        load_target(chip)
    except TargetError as error:
        raise UserError(str(error)) from None


def check_speech(speech: Path) -> CorpusConfig:
    """Look at a corpus, and deal its speakers so that every split gets two at least.

    Raises:
        UserError: nothing that can be read, a broken corpus or recording, or too few speakers.
    """
    kind = kind_of(speech)
    whole = CorpusConfig(kind=kind, root=speech.absolute(), splits={Split.TRAIN: 1.0})
    utterances = CORPORA.load(kind)(whole, 0, Path()).speech[Split.TRAIN]
    check_recordings(islice(utterances, _LOOKED_AT), _SAMPLE_RATE)
    speakers = len({utterance.speaker for utterance in utterances})
    if speakers < _LEAST_SPEAKERS and kind != "fsdd":
        found = f"{speakers} speaker{'s' * (speakers != 1)}"
        raise UserError(f"{speech}: {found}; wanted at least {_LEAST_SPEAKERS}: two each to train, choose and test")
    return whole.model_copy(update={"splits": shares(speakers)})


def shares(speakers: int) -> dict[Split, float]:
    """Return shares of at least six speakers by which every split gets two or more, and training most."""
    other = math.ceil(1000 * max(0.1, 2 / max(speakers, _LEAST_SPEAKERS))) / 1000
    return {Split.TRAIN: round(1 - 2 * other, 3), Split.VALIDATION: other, Split.TEST: other}


def _text(wishes: Wishes, corpus: CorpusConfig | None) -> str:
    amounts = _AMOUNTS[wishes.size]
    name = _name(wishes.output)
    shipped = corpus is None and wishes.array == "linear6" and _AMOUNTS[wishes.size].network == _SMALL[0]
    file = printable(shlex.quote(wishes.output.name))
    return f"""\
# Made by 'hwsearch init'. It runs as it is. Change first what is marked so.
#   hwsearch doctor {file}    says what it needs
#   hwsearch run {file}    runs it
#   hwsearch explain KEY    says what a key means; keys that are not here have their defaults
name = "{name}"  # the run folder is runs/{name}
seed = 0  # another seed gives other rooms, other mixtures and another training
{_base(shipped=shipped)}
[data]
sample_rate = {_SAMPLE_RATE}  # Hz; 16000 keeps more of the speech, and takes more than twice the work
array = "{wishes.array}"  # or your own, in cm: {{ positions_cm = [[0, 0], [3, 0], [6, 0]] }}

{_corpus(wishes, corpus)}
[data.rooms]  # simulated; more rooms make the network more robust
count = {{ {amounts.rooms} }}
t60_min_s = 0.05  # reverberation time in seconds
t60_max_s = 0.35  # CHANGE FIRST for your rooms: 0.3 is a furnished room, 0.7 a bare one
distance_min_m = 0.8  # of speakers from the array, in metres
distance_max_m = 2.5

[data.mixtures]  # of two speakers; training mixes anew at every step
count = {{ {amounts.mixtures} }}
seconds = {amounts.seconds}
noise_snr_db = 35.0  # sensor noise, below the mixture in dB

{_separator(wishes, amounts)}
{_training(amounts, shipped=shipped)}
[shared]  # one training of the weights that all candidates share
steps = {amounts.shared_steps}  # CHANGE FIRST for quality at few bits: 3000 and more
batch_size = 8
learning_rate = 3e-4
report_steps = {amounts.shared_steps}

[qat]  # the training mixtures of that training
examples = 1024
segment_seconds = {1.0 if amounts.network == _SMALL[0] else 2.0}

[search]
fidelity = "shared"  # candidates are scored with the shared weights
trials = {amounts.trials}  # candidates to score; more refine the front
weight_bits = [2, 3, 4, 5, 6, 8]  # what weights may have
activation_bits = [8]
validation_mixtures = {amounts.mixtures.split()[2].strip(",")}
{_chip(wishes)}
[export]
max_drop_db = 0.5  # the smallest candidate that loses at most this is exported

[evaluation]
recogniser = "{"none" if corpus is not None and corpus.kind != "fsdd" else "ctc-digits"}"  # counts word errors; it knows digits
"""


def _base(*, shipped: bool) -> str:
    if not shipped:
        return ""
    return 'base = "embedded"  # the trained network of the package, for this array and speech; without it, one is trained\n'


def _corpus(wishes: Wishes, corpus: CorpusConfig | None) -> str:
    if corpus is None or wishes.speech is None:
        return """\
[[data.corpora]]  # CHANGE FIRST: this is for trying out; 'hwsearch init --speech FOLDER' takes your own
kind = "espeak"
speakers = 120
utterances_per_speaker = 10
digit_strings = 0.5
splits = { train = 0.75, validation = 0.125, test = 0.125 }  # shares of the speakers
"""
    splits = ", ".join(f"{split.value} = {share:g}" for split, share in corpus.splits.items())
    place = tomli_w.dumps({"root": _from(wishes.output, wishes.speech)}).strip()
    return f"""\
[[data.corpora]]  # there may be several
kind = "{corpus.kind}"  # {CORPORA.entries[corpus.kind].says.replace("`", "'")}
{place}
splits = {{ {splits} }}  # shares of the speakers; nobody is in two splits
"""


def _separator(wishes: Wishes, amounts: _Amounts) -> str:
    if ARRAYS[wishes.array].microphones == 1:
        return f"""\
[separator]  # Conv-TasNet: it separates both speakers and needs no direction
network = "conv-tasnet"
{amounts.one_microphone}"""
    return f"""\
[separator]  # the time-frequency network; 'hwsearch explain separator' shows the others
n_fft = 512  # samples of a frame, 64 ms
hop_length = 128  # samples from frame to frame
{amounts.network}"""


def _training(amounts: _Amounts, *, shipped: bool) -> str:
    if shipped:
        return ""
    return f"""
[training]  # of the base, in full precision; it takes longest
{amounts.training}
learning_rate = 1.5e-3
"""


def _chip(wishes: Wishes) -> str:
    is_file = wishes.chip.lower().endswith(_SUFFIX)
    chip = _from(wishes.output, Path(wishes.chip)) if is_file else wishes.chip
    targets = tomli_w.dumps({"targets": [chip]}).replace("\n", "").replace("[    ", "[").replace(",]", "]")
    return f"""\
{targets}  # 'hwsearch targets' lists the chips
objectives = ["si_snr_improvement_db", "size_bytes"]  # what the front trades off
# CHANGE FIRST for your chip, for example:
# limits = {{ size_bytes = 200_000 }}
"""


def _from(output: Path, place: Path) -> str:
    """A path as the file names it: as it was given if that was from the root, else from the file's folder."""
    return str(place) if place.is_absolute() else os.path.relpath(place, output.resolve().parent)


def _name(output: Path) -> str:
    """Make a run folder's name of that of a file."""
    plain = re.sub(r"[^a-z0-9_-]+", "-", output.stem.lower()).strip("-_")[:_NAME_CHARACTERS]
    return f"my-{plain or 'experiment'}" if plain in ("", *RESERVED_NAMES) else plain
