"""What `hwsearch finetune` prints."""

from collections.abc import Sequence

from hwsearch.view.terminal import say
from hwsearch.workflow.finetune import Finetuned


def print_finetuned(found: Sequence[Finetuned]) -> None:
    """Print the quality of each candidate before and after."""
    for each in found:
        before = f"{each.before_db:.2f} dB at '{each.fidelity.value}'"
        say(f"candidate {each.candidate}: SI-SNR improvement {before}, {each.after_db:.2f} dB finetuned")
