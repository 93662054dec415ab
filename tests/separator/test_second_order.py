"""Second-order rounding against its definition, and statistics against torch's own."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from hwsearch.network.graph import Graph
from hwsearch.network.operations import Convolution, Linear
from hwsearch.separator.second_order import InputStatistics, input_statistics, mean_error, second_order_integers


def by_definition(row: np.ndarray, step: float, limit: int, covariance: np.ndarray) -> np.ndarray:
    """Round one weight at a time, the one of the highest variance first; the others then take their best values."""
    damped = covariance + np.eye(len(row)) * (0.01 * np.trace(covariance) / len(row) + 1e-12)
    order = np.argsort(-np.diag(damped), kind="stable")
    weights, integers = row.copy(), np.zeros(len(row))
    for position, index in enumerate(order):
        integers[index] = np.clip(np.round(weights[index] / step), -limit, limit)
        fixed, free = order[: position + 1], order[position + 1 :]
        error = row[fixed] - integers[fixed] * step
        # The least of (error, e) H (error, e) over the errors e of the free weights.
        weights[free] = row[free] + np.linalg.solve(damped[np.ix_(free, free)], damped[np.ix_(free, fixed)] @ error)
    return integers


@settings(max_examples=30)
@given(
    groups=st.integers(1, 3), rows=st.integers(1, 3), values=st.integers(1, 7), bits=st.integers(2, 5), seed=st.integers(0, 999)
)
def test_weights_are_rounded_as_defined(groups: int, rows: int, values: int, bits: int, seed: int) -> None:
    random, limit = np.random.default_rng(seed), 2 ** (bits - 1) - 1
    mixing = random.normal(size=(groups, values, values))
    covariance = mixing @ mixing.transpose(0, 2, 1)
    weight = random.normal(size=(groups * rows, values, 1)).astype(np.float32)
    scale = random.uniform(0.2, 1.0, size=(groups * rows, 1, 1)).astype(np.float32)
    statistics = InputStatistics(torch.zeros(groups, values), torch.from_numpy(covariance))
    found = second_order_integers(torch.from_numpy(weight), torch.from_numpy(scale), limit, statistics)
    assert found.dtype == torch.int32
    for row in range(groups * rows):
        wanted = by_definition(weight[row, :, 0].astype(np.float64), float(scale[row, 0, 0]), limit, covariance[row // rows])
        assert found[row, :, 0].tolist() == wanted.tolist()


def test_many_inputs_are_rounded_as_defined() -> None:
    random = np.random.default_rng(0)
    mixing = random.normal(size=(300, 40))
    covariance = mixing @ mixing.T  # of low rank: only the damping makes it one that can be inverted
    weight = random.normal(size=(2, 300, 1)).astype(np.float32)
    statistics = InputStatistics(torch.zeros(1, 300), torch.from_numpy(covariance)[None])
    found = second_order_integers(torch.from_numpy(weight), torch.tensor([[[0.5]]]), 7, statistics)
    for row in range(2):
        assert found[row, :, 0].tolist() == by_definition(weight[row, :, 0].astype(np.float64), 0.5, 7, covariance).tolist()


@settings(max_examples=30)
@given(
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    kernel=st.integers(1, 3),
    groups=st.sampled_from((1, 2, 4)),
    ends=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    seed=st.integers(0, 99),
)
def test_statistics_of_a_convolution(
    stride: int, dilation: int, kernel: int, groups: int, ends: tuple[int, int], seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 4 // groups, kernel, generator=random)
    layer = Convolution("layer", ("x",), stride, dilation, groups, ends)
    graph = Graph(("x",), (layer,), ("layer",), {"layer.weight": weight, "layer.bias": torch.zeros(4)})
    features = [torch.randn(1, 4, frames, generator=random) for frames in (9, 14)]
    statistics = input_statistics(graph, features)["layer"]
    outputs = torch.cat(
        [
            functional.conv1d(functional.pad(x.double(), ends), weight.double(), None, stride, 0, dilation, groups)
            for x in features
        ],
        dim=2,
    )[0]
    torch.testing.assert_close(mean_error(weight, statistics), outputs.mean(1))
    for channel in range(4):
        row = weight[channel].double().flatten()
        variance = row @ statistics.covariance[channel // (4 // groups)] @ row
        torch.testing.assert_close(variance, outputs[channel].var(correction=0))


def test_statistics_of_a_linear_layer() -> None:
    graph = Graph(
        ("x",), (Linear("layer", ("x",)),), ("layer",), {"layer.weight": torch.ones(2, 5), "layer.bias": torch.zeros(2)}
    )
    x = torch.randn(3, 4, 5)
    statistics = input_statistics(graph, [x])["layer"]
    torch.testing.assert_close(statistics.covariance[0], torch.cov(x.double().flatten(0, 1).T, correction=0))
    torch.testing.assert_close(statistics.mean[0], x.double().flatten(0, 1).mean(0))
