from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hwsearch.data.arrays import ARRAYS
from hwsearch.data.dynamic import DynamicMixtures
from hwsearch.data.rooms import build_bank
from hwsearch.errors import UserError
from hwsearch.experiment import SeparatorConfig, Split, TrainingConfig
from hwsearch.separator.separator import Separator, build_separator
from hwsearch.training.checkpoint import TrainingProgress, save_checkpoint
from hwsearch.training.fit import fit
from tests.data.test_rooms import DATA

CONFIG = TrainingConfig(epochs=4, steps_per_epoch=3, batch_size=2, segment_seconds=0.5, threads=1)
SEPARATOR = SeparatorConfig(n_fft=128, hop_length=64, B=8, H=12, X=2, R=1)


def train(
    folder: Path,
    config: TrainingConfig = CONFIG,
    digest: str = "a" * 64,
    loudness: float = 1.0,
    device: torch.device = torch.device("cpu"),  # noqa: B008
) -> tuple[Separator, TrainingProgress]:
    rng = np.random.default_rng(0)
    bank = build_bank(DATA, "x", Split.TEST, folder / "rooms", 1, lambda done, total: None)
    speech = {f"s{i}": [loudness * rng.standard_normal(6000).astype(np.float32)] for i in range(3)}
    mixtures = DynamicMixtures(speech, bank, DATA.mixtures, 8000, 4000, ("x",))
    torch.manual_seed(5)
    separator = build_separator(SEPARATOR, ARRAYS["linear4"], 8000).to(device)
    validation = [mixtures.example(-2, index) for index in range(3)]
    nothing = {"on_step": lambda *_: None, "on_epoch": lambda _: None}
    progress = fit(separator, mixtures, validation, config, folder / "run", digest, **nothing)
    return separator, progress


def test_training_in_two_sittings_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, progress = train(tmp_path / "whole")

    def save_and_end(*state: Any) -> None:
        save_checkpoint(*state)
        if state[-1].epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("hwsearch.training.fit.save_checkpoint", save_and_end)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "cut")
    continued, after = train(tmp_path / "cut")
    assert after.history == progress.history
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, continued.state_dict()[name]), name


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    _, progress = train(tmp_path, CONFIG.model_copy(update={"epochs": 4, "steps_per_epoch": 8}))
    assert progress.history[-1][0] < progress.history[0][0] - 0.5


def test_training_stops_when_validation_stops_improving(tmp_path: Path) -> None:
    frozen = CONFIG.model_copy(update={"epochs": 50, "patience": 2, "learning_rate": 1e-12, "final_learning_rate": 1e-12})
    _, progress = train(tmp_path, frozen.model_copy(update={"steps_per_epoch": 1}))
    assert progress.epoch < 50
    assert progress.epoch == progress.best_epoch + 2


def test_checkpoint_of_another_experiment_is_refused(tmp_path: Path) -> None:
    train(tmp_path, CONFIG.model_copy(update={"epochs": 1}))
    with pytest.raises(UserError, match="another experiment"):
        train(tmp_path, digest="b" * 64)


def test_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    train(tmp_path, CONFIG.model_copy(update={"epochs": 1}))
    path = tmp_path / "run" / "checkpoint.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"checkpoint\.safetensors: not a checkpoint"):
        train(tmp_path)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(
        UserError, match=r"checkpoint\.safetensors: not a checkpoint of a training \(it changed since it was written"
    ):
        train(tmp_path)


def test_a_loss_that_is_no_number_is_an_error_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    train(tmp_path, CONFIG.model_copy(update={"epochs": 1}))
    kept = (tmp_path / "run" / "checkpoint.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"training\.learning_rate is 0\.001: the loss became nan in epoch 2"):
        train(tmp_path, loudness=np.nan)
    assert (tmp_path / "run" / "checkpoint.safetensors").read_bytes() == kept
