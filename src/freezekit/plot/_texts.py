"""Texts of pictures: how wide they are, and what of them has room. Lengths are inches."""

from __future__ import annotations


def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """Returns the width of a text."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=size, weight="bold" if bold else None)
    return float(text_to_path.get_text_width_height_descent(text, font, False)[0]) / 72


def shortened(text: str, end: str, room: float, size: float) -> str:
    """Returns a path and what is said of it, without what is too wide: inner segments first."""
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
