"""Arguments of the command line that are looked at before anything heavy is loaded."""

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from hwsearch.errors import UserError

_NO_PATH = {errno.ELOOP: "is a link that leads back to itself", errno.ENAMETOOLONG: "has a name that is too long"}


class PathArgument(click.Path):
    """A path that a file can have, whether or not one is there."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text = os.fspath(value)
        if not text:
            self.fail("it is empty; wanted a path", param, ctx)
        try:
            text.encode()
            Path(text).stat()
        except UnicodeEncodeError:
            self.fail(f"{os.fsencode(text)!r} is not UTF-8; wanted a path in UTF-8", param, ctx)
        except OSError as error:
            if error.errno in _NO_PATH:
                self.fail(f"'{text}' {_NO_PATH[error.errno]}; wanted another path", param, ctx)
        return super().convert(value, param, ctx)


class Chosen(click.ParamType[str]):
    """One of some names, which are looked up when they are needed."""

    name = "name"

    def __init__(self, names: Callable[[], Sequence[str]]) -> None:
        self._names = names

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return f"[{'|'.join(self._names())}]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return click.Choice(self._names()).convert(value, param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(name) for name in self._names() if name.startswith(incomplete)]


class Registered(Chosen):
    """The name of an extension, such as a sampler, that is registered when the command runs."""

    def __init__(self, registry: str) -> None:
        """Take names of a registry of `hwsearch.extensions`."""

        def names() -> tuple[str, ...]:
            from hwsearch import extensions

            return tuple(getattr(extensions, registry))

        super().__init__(names)


def array_names() -> tuple[str, ...]:
    """Return the names of the built-in arrays."""
    from typing import get_args

    from hwsearch.experiment import ArrayName

    return get_args(ArrayName)


def check_not_read(output: Path, *inputs: Path) -> None:
    """Refuse an output that would replace what is read."""
    if any(output.exists() and given.exists() and output.samefile(given) for given in inputs):
        raise UserError(f"--output is {output}, which is read; wanted another file")
