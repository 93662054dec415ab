"""Small training sets of noise, and the base they are for."""

from functools import cache

import numpy as np
import torch

from hwsearch.data.example import Example
from hwsearch.experiment import QuantizationConfig, SeparatorConfig
from hwsearch.separator.prepare import PreparedBase
from hwsearch.training.pool import TrainingPool, analysed_pool
from tests.separator.small import RELU, noise_mixture, small_network

BASE_SHA256 = "a" * 64


@cache
def small_base(config: SeparatorConfig = RELU) -> PreparedBase:
    separator, graph, calibration = small_network(config)
    return PreparedBase(separator, graph, calibration, QuantizationConfig(), BASE_SHA256)


def example(seed: int, samples: int = 1500) -> Example:
    """Noise, with a target that the reference microphone holds in part."""
    mixture = noise_mixture(samples, seed).numpy()
    rest = 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed + 1000)).numpy()
    return Example(mixture, mixture[0] + rest, float(np.float32(20.0 * (seed % 7) + 10.0)))


@cache
def small_pool(config: SeparatorConfig = RELU, count: int = 6) -> TrainingPool:
    return analysed_pool(small_base(config).separator, BASE_SHA256, (example(seed) for seed in range(count)), count)
