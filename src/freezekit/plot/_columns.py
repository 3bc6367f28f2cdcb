"""The axis of time of a picture: where the columns stand, and what is written at their edges."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from ._canvas import LEAST_PITCH, LEAST_TYPE, SMALL
from ._moments import Edge, Line, Moments
from ._texts import shortened, text_width, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BETWEEN = 0.6
"""What lies between two lines of columns, in columns."""
_SIZE = 7.0
_NARROWEST = 0.2  # inches of a column drawn to scale: a hatch, and a text turned upright
_LATEST = 2**53  # moments from here on are not told apart on an axis
_TOLD = 14  # characters of a metric that tell which it is
_TALLEST = 1.6  # inches of a text turned upright
_USUAL = 0.35  # of these what any axes have room for


@dataclass(frozen=True, slots=True)
class Columns:
    """Where the phases stand along an axis of time.

    Attributes:
        lines: for each line of phases the edges of its columns; moments where time is to scale.
        inch: inches of one unit.
        texts: what is written at all these edges.
        upright: whether these texts are turned.
        caption: what the axis shows.
        names: of the lines, where they are several.
    """

    lines: tuple[tuple[float, ...], ...]
    inch: float
    texts: tuple[str, ...]
    upright: bool
    caption: str
    names: tuple[str, ...] = ()

    @property
    def xs(self) -> tuple[float, ...]:
        """All edges."""
        return tuple(x for line in self.lines for x in line)

    @property
    def spans(self) -> list[tuple[float, float]]:
        """The left and the right of each column."""
        return [span for line in self.lines for span in pairwise(line)]

    @property
    def more(self) -> float:
        """The inches above and below that these columns need more than others."""
        tallest = max(text_width(text, _SIZE) for text in self.texts) if self.upright else 0.0
        further = self.caption.count("\n") * 1.3 * SMALL + (1.4 * _SIZE if self.names else 0.0)
        return max(0.0, tallest - _USUAL) + further / 72

    def draw_edges(self, ax: Axes) -> None:
        """Labels the edges below the axes and draws lines between the columns."""
        ax.set_xticks(
            self.xs,
            self.texts,
            rotation=90 if self.upright else 0,
            fontsize=_SIZE,
            parse_math=False,
        )
        if not self.upright:  # beside the last one stands another scale
            ax.get_xticklabels()[-1].set_horizontalalignment("right")
        ax.tick_params(axis="x", length=3)
        ax.grid(False, axis="x")

    def draw_above(self, ax: Axes, texts: Sequence[str]) -> float:
        """Writes a text above each column, turned where that is too wide; returns their height."""
        widths = [text_width(text, _SIZE) for text in texts]
        rooms = [(right - left) * self.inch for left, right in self.spans]
        upright = any(width + 0.05 > room for width, room in zip(widths, rooms, strict=True))
        centres = [sum(span) / 2 for span in self.spans]
        for column in _apart(centres, self.inch) if upright else range(len(texts)):
            angle, size = (90, LEAST_TYPE) if upright else (0, _SIZE)
            _write_above(ax, texts[column], centres[column], 3, size=size, angle=angle)
        height = 72 * max(widths) + 4 if upright else _SIZE * 1.3
        for line, name in zip(self.lines, self.names, strict=False):
            _write_above(ax, name, (line[0] + line[-1]) / 2, height + 3)
        return height + 1.4 * _SIZE if self.names else height


def _write_above(
    ax: Axes, text: str, x: float, lift: float, *, size: float = _SIZE, angle: float = 0
) -> None:
    ax.annotate(
        text,
        (x, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, lift),
        textcoords="offset points",
        ha="center",
        va="bottom",
        rotation=angle,
        fontsize=size,
        annotation_clip=False,
        parse_math=False,
    )


def wanted(when: Moments) -> float:
    """Returns the inches of a column in which the metrics of a plan can be told."""
    edges = [text_width(e.monitor + e.long, _SIZE) + 0.1 for e in when.lines[0].edges if e.monitor]
    names = [
        (text_width(line.said[0] + line.monitor + line.said[1], _SIZE) + 0.1) / len(line.phases)
        for line in when.lines
        if line.monitor
    ]
    return max([0.0, *edges, *names])


def columns(when: Moments, width: float) -> Columns:
    """Returns the columns of phases in a width: to scale where each is wide enough for that."""
    edges = [edge for line in when.lines for edge in line.edges]
    if when.times and when.times[-1] < _LATEST:
        inch = width / when.times[-1]
        narrowest = min(b - a for a, b in pairwise(when.times)) * inch
        end = "" if edges[-1].short else ", end not known"
        for texts in (_texts(edges, 0.0, long=long) for long in (True, False)):
            if narrowest >= _NARROWEST and _fits(when.times, inch, texts):
                return Columns((when.times,), inch, tuple(texts), False, when.unit + end)
    return _evenly(when, edges, width)


def _evenly(when: Moments, edges: Sequence[Edge], width: float) -> Columns:
    """Returns columns of one width."""
    lines = tuple(_places(when.lines))
    inch = width / lines[-1][-1]
    caption = when.unit or "training"
    lengths = {b - a for a, b in pairwise(when.times)}
    if len(lengths) == 1 and not edges[-1].short:
        caption += ", end not known"
    elif len(lengths) != 1 and len(when.phases) > 1:
        caption += ", not to scale"
    if len(lines) > 1:
        caption += f"; once a metric stalls, training goes on in the next part at that {when.unit}"
    caption = wrapped(caption, width, SMALL)
    xs = [x for line in lines for x in line]
    names = _names(when.lines, inch) if len(lines) > 1 else ()
    for long in (True, False):
        texts = _texts(edges, inch - 0.1, long=long)
        if _fits(xs, inch, texts):
            return Columns(lines, inch, tuple(texts), False, caption, names)
    kept = {*_apart(xs, inch)}
    texts = _texts(edges, _TALLEST, long=False)
    texts = [text if k in kept else "" for k, text in enumerate(texts)]
    return Columns(lines, inch, tuple(texts), True, caption, names)


def _places(lines: Sequence[Line]) -> Iterator[tuple[float, ...]]:
    """Yields the edges of columns of length 1, line after line."""
    start = 0.0
    for line in lines:
        yield tuple(start + k for k in range(len(line.edges)))
        start += len(line.phases) + BETWEEN


def _names(lines: Sequence[Line], inch: float) -> tuple[str, ...]:
    """Returns what is written above lines: until or since when they hold, or only a number."""
    names = []
    for line in lines:
        before, after = line.said
        room = (len(line.phases) + BETWEEN) * inch - 0.12
        left = room - text_width(before, _SIZE)
        names.append(before + _said(line.monitor, after, left))
        if text_width(names[-1], _SIZE) > room:
            break
    else:
        return tuple(names)
    counts = [f"{k} stall{'' if k == 1 else 's'}" for k in range(len(lines))]
    widths = [text_width(text, _SIZE) + 0.1 for text in counts]
    rooms = [(len(line.phases) + BETWEEN) * inch for line in lines]
    if all(width <= room for width, room in zip(widths, rooms, strict=True)):
        return tuple(counts)
    return tuple(str(k) if rooms[k] > 0.2 else "" for k in range(len(lines)))


def _texts(edges: Sequence[Edge], room: float, *, long: bool) -> list[str]:
    """Returns what is written at edges, metrics in what has room, or as much as tells them."""
    texts = [edge.long if long else edge.short for edge in edges]
    return [
        _said(edge.monitor, text, room) if edge.monitor else text
        for edge, text in zip(edges, texts, strict=True)
    ]


def _said(monitor: str, after: str, room: float) -> str:
    """Returns a metric and what is said of it, shorter where that is too wide, but not by much."""
    least = shortened(monitor[-_TOLD:], after, 99.0, _SIZE)
    short = shortened(monitor, after, room, _SIZE)
    return short if len(short) >= len(least) else f"...{least}"


def _apart(xs: Sequence[float], inch: float) -> Iterator[int]:
    """Yields which of some places have texts that are turned, so that they stay apart."""
    free = -1.0
    for k, x in enumerate(xs):
        if x * inch >= free:
            yield k
            free = x * inch + LEAST_PITCH - 1e-6


def _fits(xs: Sequence[float], inch: float, texts: Sequence[str]) -> bool:
    """Returns whether texts that are centred at edges, and the last one before it, stay apart."""
    widths = [text_width(text, _SIZE) if text else 0.0 for text in texts]
    widths[-1] *= 2
    return all(
        (b - a) * inch >= (one + two) / 2 + 0.08
        for (a, b), (one, two) in zip(pairwise(xs), pairwise(widths), strict=True)
    )
