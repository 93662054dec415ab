"""Full-precision training of the base."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from hwsearch.data.example import Example
from hwsearch.data.training_examples import Examples
from hwsearch.errors import UserError
from hwsearch.experiment import TrainingConfig
from hwsearch.process.interrupts import checkpoint
from hwsearch.separator.separator import Separator
from hwsearch.training.checkpoint import TrainingProgress, load_checkpoint, save_checkpoint
from hwsearch.training.loss import StepReport, half_cosine, ordered, si_snr

STATISTICS_EXAMPLES = 64
"""Mixtures that give the mean and the scale of the features."""

Batch = tuple[Tensor, Tensor, Tensor]
"""Mixtures [batch, mics, samples], directions [batch], targets [batch, samples]."""

EpochReport = Callable[[TrainingProgress], None]
"""Called after each epoch."""


def fit(
    separator: Separator,
    training: Examples,
    validation: Sequence[Example],
    config: TrainingConfig,
    folder: Path,
    experiment: str,
    on_step: StepReport,
    on_epoch: EpochReport,
) -> TrainingProgress:
    """Train until the last epoch or until validation stops improving, and leave the best weights in the separator.

    Each epoch ends with a checkpoint. The next call continues exactly there, since every example is a function of its epoch and
    number.

    Args:
        separator: untrained, on the device that trains it.
        training: the endless training set.
        validation: fixed examples of one length, scored after each epoch.
        config: sizes and rates.
        folder: folder of the checkpoint.
        experiment: digest of the experiment that the checkpoint belongs to.
        on_step: called after each step.
        on_epoch: called after each epoch.

    Raises:
        UserError: a damaged checkpoint, one of another experiment, or a loss that is not finite.
    """
    torch.set_num_threads(config.threads)
    optimizer = torch.optim.Adam(separator.parameters(), lr=config.learning_rate)
    path = folder / "checkpoint.safetensors"
    progress = TrainingProgress(experiment)
    best = {name: tensor.clone() for name, tensor in separator.state_dict().items()}
    if path.is_file():
        progress, best = load_checkpoint(path, separator, optimizer, experiment)
    else:
        mixtures, doas, _ = collate([training.example(-1, i) for i in range(STATISTICS_EXAMPLES)])
        separator.front_end.learn_statistics(mixtures.to(separator.device), doas.to(separator.device))
    while progress.epoch < config.epochs and progress.epoch - progress.best_epoch < config.patience:
        loss = _train_epoch(separator, optimizer, training, config, progress.epoch, on_step)
        score = mean_improvement(separator, validation, config.batch_size)
        progress = replace(progress, epoch=progress.epoch + 1, history=(*progress.history, (round(loss, 4), round(score, 4))))
        if score > progress.best_score_db:
            progress = replace(progress, best_epoch=progress.epoch, best_score_db=score)
            best = {name: tensor.clone() for name, tensor in separator.state_dict().items()}
        save_checkpoint(path, separator, best, optimizer, progress)
        on_epoch(progress)
    separator.load_state_dict(best)
    separator.eval()
    return progress


def step_seconds(separator: Separator, config: TrainingConfig, sample_rate: int) -> float:
    """Measure the seconds of a training step, without the mixing, on noise. The separator's weights change.

    A step of at most four mixtures is timed, after one that does not count. Larger batches take longer in proportion.
    """
    mixtures = min(config.batch_size, 4)
    torch.set_num_threads(config.threads)
    optimizer = torch.optim.Adam(separator.parameters(), lr=config.learning_rate)
    microphones, samples = separator.front_end.array.microphones, round(config.segment_seconds * sample_rate)
    noise = torch.randn(mixtures, microphones, samples, generator=torch.Generator().manual_seed(0))
    batch = (noise, torch.full((mixtures,), 90.0), noise[:, 0] / 2)
    separator.train()
    for _ in range(2):
        start = time.perf_counter()
        _step(separator, optimizer, batch, config)
    return (time.perf_counter() - start) * config.batch_size / mixtures


@torch.no_grad()
def mean_improvement(separator: Separator, examples: Sequence[Example], batch_size: int) -> float:
    """Mean SI-SNR improvement in dB over examples of one length."""
    separator.eval()
    improvements = []
    for start in range(0, len(examples), batch_size):
        checkpoint()
        mixtures, doas, targets = (part.to(separator.device) for part in collate(examples[start : start + batch_size]))
        estimates = separator(mixtures, doas)
        wanted = ordered(separator.front_end.references(mixtures, targets), estimates)
        unprocessed = si_snr(mixtures[:, 0] if wanted.ndim == 2 else mixtures[:, :1], wanted)
        improvements.append((si_snr(estimates, wanted) - unprocessed).flatten())
    return float(torch.cat(improvements).mean())


def collate(examples: Sequence[Example]) -> Batch:
    """Stack examples of one length."""
    return (
        torch.from_numpy(np.stack([example.mixture for example in examples])),
        torch.tensor([example.doa_deg for example in examples], dtype=torch.float32),
        torch.from_numpy(np.stack([example.target for example in examples])),
    )


def _train_epoch(
    separator: Separator,
    optimizer: torch.optim.Adam,
    training: Examples,
    config: TrainingConfig,
    epoch: int,
    on_step: StepReport,
) -> float:
    """Train for one epoch; returns the mean loss in dB."""
    separator.train()
    total, steps = 0.0, config.epochs * config.steps_per_epoch
    try:
        for step, batch in enumerate(_batches(training, config, epoch)):
            share = (epoch * config.steps_per_epoch + step) / steps
            for group in optimizer.param_groups:
                group["lr"] = half_cosine(share, config.learning_rate, config.final_learning_rate)
            loss = _step(separator, optimizer, batch, config)
            if not math.isfinite(loss):
                raise UserError(
                    f"training.learning_rate is {config.learning_rate}: the loss became {loss} in epoch {epoch + 1}; "
                    "wanted a lower learning rate (the last checkpoint is kept)"
                )
            total += loss
            on_step(step + 1, config.steps_per_epoch, loss)
    except RuntimeError:
        checkpoint()  # SIGTERM may be sent to all processes: a loader that has died of it is no error
        raise
    return total / config.steps_per_epoch


def _step(separator: Separator, optimizer: torch.optim.Adam, batch: Batch, config: TrainingConfig) -> float:
    device = separator.device
    mixtures, doas, targets = (part.to(device, non_blocking=True) for part in batch)
    with torch.no_grad():
        analysis = separator.analyse(mixtures, doas)
    with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
        output = separator.network(analysis.normalised)
    estimates = separator.synthesise(analysis, output.float(), mixtures.shape[-1])
    wanted = ordered(separator.front_end.references(mixtures, targets), estimates)
    loss = -si_snr(estimates, wanted).mean()
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(separator.parameters(), config.gradient_clip)
    optimizer.step()
    return float(loss.detach())


def _batches(training: Examples, config: TrainingConfig, epoch: int) -> DataLoader[int]:
    """The batches of an epoch. Worker processes, if any, make them ahead."""
    return DataLoader(
        range(config.steps_per_epoch * config.batch_size),  # type: ignore[arg-type]  # any sequence will do
        batch_size=config.batch_size,
        collate_fn=lambda numbers: collate([training.example(epoch, number) for number in numbers]),
        num_workers=config.loaders,
        multiprocessing_context="fork" if config.loaders else None,
    )
