"""Text that is safe to print: names and reasons come from files, and a terminal obeys control characters in them."""

import re

_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, what ends a line or turns its direction, and what is no character."""


def printable(text: str, *, keep: str = "") -> str:
    r"""A text with what a terminal would obey shown as an escape such as `\x1b`.

    Args:
        text: from anywhere.
        keep: control characters that stay, such as a newline.
    """
    return _UNSAFE.sub(lambda found: found[0] if found[0] in keep else found[0].encode("unicode_escape").decode(), text)


def shortened(text: str, most: int) -> str:
    """A text of at most so many characters: what is longer loses its middle, since its end says what is wanted."""
    if len(text) <= most:
        return text
    behind = most // 3
    return f"{text[: most - behind - 5]} ... {text[-behind:]}"
