"""What the jobs of several methods compute together."""

from enum import StrEnum


class Kind(StrEnum):
    """What is computed. All but the last two are of one mixture."""

    MEASURED = "measured"
    OUTPUT_NOISE = "output-noise"
    KL = "kl"
    PAPER_KL = "paper-kl"
    GRADIENT = "gradient"
    FISHER = "fisher"
    ERRORS = "errors"
    TRACE = "trace"
    TRAINING = "training"
