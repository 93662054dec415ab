import pytest

from hwsearch.metrics.errors import MetricUnavailable
from hwsearch.metrics.scores import score_each
from hwsearch.metrics.si_snr import si_snr


def test_utterances_without_a_value_are_named_and_do_not_stop_the_others() -> None:
    pairs = {"good": ([1.0, 0.0, 1.1], [1.0, 0.0, 1.0]), "silent": ([1.0, 2.0], [0.0, 0.0])}
    scores = score_each(pairs.items(), lambda pair: float(si_snr(*pair)))
    assert set(scores.values) == {"good"}
    assert scores.unavailable == {"silent": "target is silent"}


def test_other_errors_are_not_swallowed() -> None:
    with pytest.raises(ZeroDivisionError):
        score_each([("a", 0)], lambda x: 1 / x)


@pytest.mark.parametrize("fails", [False, True])
def test_two_utterances_of_one_name_are_refused(*, fails: bool) -> None:
    def score(_: int) -> float:
        if fails:
            raise MetricUnavailable("x")
        return 0.0

    with pytest.raises(ValueError, match="two utterances are called a"):
        score_each([("a", 1), ("a", 2)], score)
