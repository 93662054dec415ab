"""Reader of the manifests of lhotse, and through it of Kaldi's data folders. It needs the package `lhotse`, but no torchaudio.

Only recordings in files are read, by the same decoder as all others: lhotse would run the commands and open the addresses that a
manifest may name in place of files.
"""

import logging
import math
import zlib
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hw_models.reading import Unreadable, no_file, read_text
from hwsearch.data.source import Source, dealt_to_all, root_of
from hwsearch.data.utterance import Utterance
from hwsearch.errors import UserError
from hwsearch.experiment import CorpusConfig

if TYPE_CHECKING:
    from lhotse import RecordingSet, SupervisionSet

PREFIX = "lhotse:"

MANIFEST_BYTES = 2**30
"""Size limit of a manifest, as it is on the disk."""

_RECORDINGS, _SUPERVISIONS = "recordings", "supervisions"
_SUFFIXES = (".jsonl", ".jsonl.gz")
_KALDI = "wav.scp"
_WHOLE_S = 1e-3
"""A supervision that leaves out no more of its recording is the whole of it."""

_WANTED = "wanted lhotse's manifests of recordings and supervisions (.jsonl or .jsonl.gz), or a Kaldi data folder (wav.scp)"

_BROKEN = (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, AssertionError, RuntimeError, zlib.error)
"""What lhotse raises for files that it cannot read."""


def read_corpus(corpus: CorpusConfig, seed: int, _cache: Path) -> Source:
    """Read the supervisions of lhotse's manifests or of a Kaldi data folder, and deal their speakers to splits.

    The root is a manifest of recordings, whose supervisions lie beside it, or a folder with such pairs, of which all are read, or
    a folder with `wav.scp`. The names of the manifests differ only in `recordings` and `supervisions`. Relative paths in them
    start at the manifest's folder, or else at the folder where the command runs.

    Raises:
        UserError: lhotse is not installed, the experiment names no root, a manifest is missing or broken, or a supervision has no
            speaker, no recording, or one that is no file.
    """
    root = root_of(corpus)
    if find_spec("lhotse") is None:
        raise UserError("data.corpora: kind 'lhotse' wants a package that is not installed: pip install 'hwsearch[lhotse]'")
    channel = corpus.channel
    found = [utterance for folder, *pair in _opened(root) for utterance in _utterances(folder, pair[0], pair[1], channel)]
    if not found:
        raise UserError(f"{root}: no supervision in it; {_WANTED}")
    return dealt_to_all(found, corpus, seed)


def _opened(root: Path) -> Iterator[tuple[Path, "RecordingSet", "SupervisionSet"]]:
    """Each pair of manifests, with the folder that it lies in."""
    if (root / _KALDI).exists():
        yield root, *_kaldi(root)
        return
    manifests = [root] if root.is_file() else sorted(_manifests(root))
    if not manifests:
        raise UserError(f"{root}: no manifest of recordings in it; {_WANTED}")
    from lhotse import RecordingSet, SupervisionSet

    for manifest in manifests:
        beside = manifest.with_name(manifest.name.replace(_RECORDINGS, _SUPERVISIONS))
        if beside == manifest:
            raise UserError(f"{manifest}: no 'recordings' in its name; {_WANTED}")
        yield manifest.parent, _loaded(RecordingSet, manifest), _loaded(SupervisionSet, beside)


def _manifests(root: Path) -> Iterator[Path]:
    if not root.is_dir():
        raise UserError(f"{root}: no such file or folder; {_WANTED}")
    yield from (path for path in root.iterdir() if _RECORDINGS in path.name and path.name.endswith(_SUFFIXES))


def _loaded(kind: Any, path: Path) -> Any:
    """All entries of a manifest."""
    reason = no_file(path)
    if reason is None and path.stat().st_size > MANIFEST_BYTES:
        reason = f"larger than {MANIFEST_BYTES / 2**20:g} MiB"
    if reason is not None:
        raise UserError(f"{path}: {reason}; {_WANTED}")
    try:
        return kind.from_jsonl(path)
    except _BROKEN as error:
        raise UserError(f"{path}: lhotse cannot read it ({_reason(error)}); {_WANTED}") from None


def _kaldi(root: Path) -> tuple["RecordingSet", "SupervisionSet"]:
    """Recordings and supervisions of a Kaldi data folder."""
    scp = root / _KALDI
    try:
        lines = read_text(scp, MANIFEST_BYTES).splitlines()
    except Unreadable as error:
        raise UserError(f"{scp}: {error}; {_WANTED}") from None
    for number, line in enumerate(lines, start=1):
        if line.rstrip().endswith("|"):
            raise UserError(f"{scp}:{number}: names a command, and none is run; wanted the path of a sound file")
    from lhotse.kaldi import load_kaldi_data_dir

    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        # lhotse wants a rate, which it cannot know here; times are in seconds.
        recordings, supervisions, _ = load_kaldi_data_dir(root, sampling_rate=16_000)
    except _BROKEN as error:
        raise UserError(f"{root}: lhotse cannot read it ({_reason(error)}); wanted a Kaldi data folder") from None
    finally:
        logging.disable(level)
    if supervisions is None:
        raise UserError(f"{root}: no utt2spk and no segments; wanted a Kaldi data folder that names the speakers")
    return recordings, supervisions


def _utterances(folder: Path, recordings: Iterable[Any], supervisions: Iterable[Any], channel: int | None) -> Iterator[Utterance]:
    try:
        by_id = {recording.id: recording for recording in recordings}
        for supervision in supervisions:
            recording = by_id.get(supervision.recording_id)
            if recording is None:
                raise UserError(f"{folder}: supervision {supervision.id} is of no recording there; {_WANTED}")
            yield _utterance(folder, recording, supervision, channel)
    except _BROKEN as error:
        raise UserError(f"{folder}: lhotse cannot read a line of its manifests ({_reason(error)}); {_WANTED}") from None


def _utterance(folder: Path, recording: Any, supervision: Any, channel: int | None) -> Utterance:
    where = f"{folder}: supervision {supervision.id}"
    if not supervision.speaker:
        raise UserError(f"{where} has no speaker; wanted one, so that no speaker is in two splits")
    if recording.transforms or len(recording.sources) != 1 or recording.sources[0].type != "file":
        raise UserError(f"{where}: recording {recording.id} is no single, unchanged file; wanted one file for each recording")
    path = Path(recording.sources[0].source)
    path = folder / path if (folder / path).exists() else path.absolute()
    if (reason := no_file(path)) is not None:
        raise UserError(f"{where}: {path}: {reason}; wanted a recording")
    heard = supervision.channel if isinstance(supervision.channel, int) else min(supervision.channel)
    if not isinstance(heard, int) or heard < 0:
        raise UserError(f"{where}: channel is {supervision.channel!r}; wanted a number from 0 on")
    start, end = float(supervision.start), float(supervision.end)
    if not -_WHOLE_S <= start <= end < math.inf:
        raise UserError(f"{where}: starts at {start:g} s and ends at {end:g} s; wanted a part of the recording")
    whole = start <= _WHOLE_S and end >= recording.duration - _WHOLE_S
    words = " ".join((supervision.text or "").lower().split()) or None
    name, speaker = f"{PREFIX}{supervision.id}", f"{PREFIX}{supervision.speaker}"
    place = path.relative_to(folder) if path.is_relative_to(folder) else path
    span = None if whole else (max(start, 0.0), end)
    heard = heard if channel is None else channel
    return Utterance(name, speaker, folder, (place.as_posix(),), words, heard, span, by_content=True)


def _reason(error: BaseException) -> str:
    """What went wrong, on one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
