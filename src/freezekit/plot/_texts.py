"""Texts of pictures: how wide they are, and what of them has room. Lengths are inches."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_NO_GLYPH = r"(?s)Glyph .* missing from |Matplotlib currently does not support "


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps back what matplotlib says of characters that its font lacks: names have any."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", _NO_GLYPH)
        yield


def plain(text: str) -> str:
    """Returns a text of one line, with escapes for what cannot be written, as `repr` has them."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """Returns the width of a text."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=size, weight="bold" if bold else None)
    with quiet():
        return float(text_to_path.get_text_width_height_descent(text, font, False)[0]) / 72


def shortened(text: str, end: str, room: float, size: float) -> str:
    """Returns a path and what is said of it, without what is too wide: inner segments first."""
    text, end = plain(text), plain(end)
    head, *segments = text.split(".")
    while len(segments) > 1 and text_width(text + end, size) > room:
        segments = segments[1:]
        text = f"{head}...{'.'.join(segments)}"
    tail = text
    while len(tail) > 4 and text_width(text + end, size) > room:
        tail = tail[1:]
        text = f"...{tail.lstrip('.')}"
    return text + end


def wrapped(text: str, room: float, size: float) -> str:
    """Returns a text with line breaks between words where it is too wide."""
    lines: list[str] = []
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, size) <= room:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)
