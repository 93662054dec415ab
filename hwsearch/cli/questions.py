"""Questions that `hwsearch init` asks in a terminal."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from hwsearch.cli.arguments import array_names
from hwsearch.errors import UserError
from hwsearch.workflow.start import check_chip, check_output, check_speech

_SPEECH = "Folder or CSV file of recorded speech, or nothing for synthesised speech"
_CHIP = "Chip: a name that 'hwsearch targets' lists, or a target file"


def ask(context: click.Context, given: dict[str, Any]) -> dict[str, Any]:
    """Ask for what stands neither on the command line nor can be asked elsewhere than in a terminal.

    A wrong answer is refused in a line, and the question is asked again.

    Args:
        context: of the command.
        given: the options with their defaults.

    Returns:
        The options with the answers.
    """
    if not (sys.stdin is not None and sys.stdin.isatty()):
        return given
    questions: dict[str, Callable[[], Any]] = {
        "speech": lambda: click.prompt(_SPEECH, default="", show_default=False, value_proc=_speech),
        "array": lambda: click.prompt("Microphone array", type=click.Choice(array_names()), default=given["array"]),
        "chip": lambda: click.prompt(_CHIP, default=given["chip"], value_proc=_checked(check_chip)),
        "size": lambda: click.prompt("Size", type=click.Choice(["quick", "small", "medium", "large"]), default=given["size"]),
        "output": lambda: click.prompt("File to write", default=str(given["output"]), value_proc=_output),
    }
    default = ParameterSource.DEFAULT
    answers = {name: question() for name, question in questions.items() if context.get_parameter_source(name) is default}
    return given | answers


def _speech(text: str) -> Path | None:
    if not text.strip():
        return None
    place = Path(text.strip()).expanduser()
    _checked(check_speech)(place)
    return place


def _output(text: str) -> Path:
    output = Path(text.strip()).expanduser()
    _checked(check_output)(output)
    return output


def _checked(check: Callable[[Any], object]) -> Callable[[Any], Any]:
    """Return a function that gives an answer back, or has the question asked again."""

    def asked(answer: Any) -> Any:
        try:
            check(answer)
        except UserError as error:
            raise click.UsageError(str(error)) from None
        return answer

    return asked
