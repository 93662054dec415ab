"""References in the order of the estimates, against every order tried one by one."""

from itertools import permutations

import numpy as np
import pytest
import torch

from hwsearch.metrics.si_snr import si_snr
from hwsearch.training.loss import ordered


@pytest.mark.parametrize("speakers", [2, 3])
def test_the_best_order_is_that_of_brute_force(speakers: int) -> None:
    random = torch.Generator().manual_seed(speakers)
    references = torch.randn(6, speakers, 400, generator=random)
    shuffled = torch.stack([each[torch.randperm(speakers, generator=random)] for each in references])
    estimates = shuffled + 0.8 * torch.randn(shuffled.shape, generator=random)
    for found, wanted, estimate in zip(ordered(references, estimates), references, estimates, strict=True):
        scores = {order: np.mean(si_snr(estimate, wanted[list(order)])) for order in permutations(range(speakers))}
        assert torch.equal(found, wanted[list(max(scores, key=scores.__getitem__))])


def test_one_speaker_stays_as_it_is() -> None:
    references = torch.randn(3, 50)
    assert ordered(references, torch.randn(3, 50)) is references
