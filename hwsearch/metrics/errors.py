"""The error of a metric that has no value for one utterance."""


class MetricUnavailable(Exception):  # noqa: N818  (a fact about an utterance, not a fault of the program)
    """The metric has no value for this utterance; the message says why (silent, too short, refused).

    A caller that scores many utterances reports those that raise it, and leaves them out of means.
    """
