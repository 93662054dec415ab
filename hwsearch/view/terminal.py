"""What every part of the command line prints with.

Whatever is printed, control characters in it are shown and not obeyed (`hwsearch.printable`).
"""

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from hwsearch.printable import printable


class SafeConsole(Console):
    """A console that shows control characters in texts instead of sending them. Its own codes, of colours and bars, pass."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as Rich does, with control characters shown."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text, keep="\n"), segment.style)


console = SafeConsole(stderr=True)
output = SafeConsole()


def duration(seconds: float) -> str:
    """Write seconds as 42 s, 3 min 20 s, 2 h 05 min or 3 d 4 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def say(line: str) -> None:
    """A line of the answer, as it is: a path may be long, and hold what looks like markup."""
    output.print(printable(line), soft_wrap=True, markup=False, highlight=False)


def tell(line: str) -> None:
    """A line about the progress, as it is."""
    console.print(printable(line), soft_wrap=True, markup=False, highlight=False)
