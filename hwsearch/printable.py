"""Text that is safe to print: names and reasons come from files, and a terminal obeys control characters in them."""

import re

_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, line ends, marks of the writing direction, and halves of surrogate pairs."""


def printable(text: str, *, keep: str = "") -> str:
    r"""Replace what a terminal would obey by escapes such as `\x1b`, except the characters in `keep`."""
    return _UNSAFE.sub(lambda found: found[0] if found[0] in keep else found[0].encode("unicode_escape").decode(), text)


def shortened(text: str, most: int) -> str:
    """Shorten a text to at most so many characters. It loses its middle, because the end of a message says what is wanted."""
    if len(text) <= most:
        return text
    behind = most // 3
    return f"{text[: most - behind - 5]} ... {text[-behind:]}"
