"""Reader of the JSON file of SMS-WSJ (arXiv 1910.13934), as its own program writes it beside the mixtures."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from hw_models.wording import first_mistake
from hwsearch.data.arrays import microphone_array
from hwsearch.data.csv_rows import words
from hwsearch.data.direction import Turned, angle_between, fit_array
from hwsearch.data.recorded import RecordedList, RecordedMixture
from hwsearch.errors import UserError
from hwsearch.experiment import DataConfig, Split
from hwsearch.files.reading import read_json

EARLY_MS = 50.0
"""Length of the early part of SMS-WSJ's responses after the direct sound, in milliseconds."""

MISFIT_M = 0.005
"""Largest distance of a microphone from its place in the array of which nothing is said, in metres."""

_SPLITS = {"train_si284": Split.TRAIN, "cv_dev93": Split.VALIDATION, "test_eval92": Split.TEST}

_WHAT = "SMS-WSJ's JSON file, with its 'datasets'"

_LOOSE = ConfigDict(extra="ignore", allow_inf_nan=False)
_Two = Field(min_length=2, max_length=2)
_Axes = Annotated[tuple[tuple[float, ...], ...], Field(min_length=3, max_length=3)]


class _Paths(BaseModel):
    model_config = _LOOSE

    observation: str
    speech_image: Annotated[tuple[str, ...], _Two] | None = None
    speech_reverberation_early: Annotated[tuple[str, ...], _Two] | None = None
    speech_reverberation_tail: Annotated[tuple[str, ...], _Two] | None = None


class _Example(BaseModel):
    model_config = _LOOSE

    audio_path: _Paths
    speaker_id: Annotated[tuple[str, ...], _Two]
    kaldi_transcription: Annotated[tuple[str, ...], _Two] | None = None
    source_position: _Axes
    sensor_position: _Axes


_DATASETS = TypeAdapter(dict[str, dict[str, _Example]])


def read_sms_wsj(path: Path, data: DataConfig) -> RecordedList:
    """Read the mixtures of SMS-WSJ. Each of the two speakers is a target once.

    Directions follow from the positions of sources and microphones. The target is the speaker's early and late reverberation, or
    the early part alone if `data.mixtures.target` is `early`.

    Raises:
        UserError: the file is missing or no such JSON, a data set is unknown, the parts of a target are not written, there are
            not as many microphones as in the array, or `data.mixtures.early_ms` is not SMS-WSJ's.
    """
    if data.mixtures.target == "early" and data.mixtures.early_ms != EARLY_MS:
        raise UserError(
            f"{path}: the early targets of SMS-WSJ last {EARLY_MS:g} ms; data.mixtures.early_ms is {data.mixtures.early_ms:g}"
        )
    content = read_json(path, _WHAT)
    try:
        datasets = _DATASETS.validate_python(content["datasets"])
    except (KeyError, TypeError):
        raise UserError(f"{path}: no 'datasets'; wanted {_WHAT}") from None
    except ValidationError as error:
        raise UserError(f"{path}: datasets.{first_mistake(error).said}; wanted {_WHAT}") from None
    found: list[RecordedMixture] = []
    misfit = 0.0
    for dataset, examples in datasets.items():
        if dataset not in _SPLITS:
            raise UserError(f"{path}: data set {dataset!r}; wanted {', '.join(_SPLITS)}")
        for name, example in examples.items():
            where = f"{path}: {dataset}/{name}"
            turned = _turned(example, where, data)
            misfit = max(misfit, turned.misfit_m)
            found += _mixtures(example, turned, name, where, _SPLITS[dataset], path.parent, data)
    return RecordedList(tuple(found), _said(path, misfit, data))


def _said(path: Path, misfit: float, data: DataConfig) -> tuple[str, ...]:
    if misfit <= MISFIT_M:
        return ()
    where = f"{path}: microphones lie up to {100 * misfit:.1f} cm from where data.array {microphone_array(data.array)} has them"
    return (f"{where}; what the network knows of directions may be wrong",)


def _turned(example: _Example, where: str, data: DataConfig) -> Turned:
    array = microphone_array(data.array)
    counts = {len(axis) for axis in example.sensor_position}
    if counts != {array.microphones}:
        found = next(count for count in counts if count != array.microphones)
        raise UserError(
            f"{where}: {found} microphones; data.array {microphone_array(data.array)} has {array.microphones}: wanted as many"
        )
    if {len(axis) for axis in example.source_position} != {2}:
        raise UserError(f"{where}: source_position is not that of two sources; wanted two in each of its three lists")
    turned = fit_array(array, np.array(example.sensor_position[:2]).T)
    if turned is None:
        raise UserError(f"{where}: all microphones lie in one place; wanted those of an array")
    return turned


def _mixtures(
    example: _Example, turned: Turned, name: str, where: str, split: Split, folder: Path, data: DataConfig
) -> Iterator[RecordedMixture]:
    directions = [turned.doa_deg(position) for position in np.array(example.source_position[:2]).T]
    angle = angle_between(*directions)
    for number, doa_deg in enumerate(directions):
        said = None if example.kaldi_transcription is None else words(example.kaldi_transcription[number])
        targets = tuple(folder / path for path in _target(example.audio_path, number, where, data))
        utterance, speaker = f"{name}/{number}", example.speaker_id[number]
        observation = folder / example.audio_path.observation
        yield RecordedMixture(where, split, observation, targets, doa_deg, utterance, speaker, said, angle)


def _target(paths: _Paths, number: int, where: str, data: DataConfig) -> tuple[str, ...]:
    """Files that add up to a target."""
    early, tail = paths.speech_reverberation_early, paths.speech_reverberation_tail
    if data.mixtures.target == "early" and early is not None:
        return (early[number],)
    if data.mixtures.target == "reverberant" and paths.speech_image is not None:
        return (paths.speech_image[number],)
    if data.mixtures.target == "reverberant" and early is not None and tail is not None:
        return early[number], tail[number]
    raise UserError(f"{where}: its targets are not written; wanted SMS-WSJ as it is made by default, with write_all=True")
